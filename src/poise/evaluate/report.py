"""The report of a run: report.json with every figure, and report.html, one file that needs nothing else.

The mapping that `write_report` takes has these sections, any of which may be absent; estimates are `Estimate` records
or their `dataclasses.asdict`:

    title, subtitle, created   str
    headline     [{metric, label, before, after, even, better: "lower" | "higher" | "", note}], see `verdict`
    judge        {name, description, metrics: [{label, value}]}
    limit        float, the largest mean cost allowed
    scatter      {before: [{reward, cost, kind}], after: [...]}
    curves       [{step, reward, cost, multiplier, kl, ...}]
    categories   [{category, before, after}]
    comparison   [{objective, label, harm_rate, over_refusal, helpful_win_rate, mean_cost, kl, steps}]
    samples      [{prompt, kind, category, before: {text, cost, reward, outcome}, after: {...}}]
    learned      [{label, value, note}]
    settings, provenance       mappings
    notes        [str]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from poise.errors import RunError
from poise.evaluate import charts
from poise.files import read_json
from poise.ranks import by_main
from poise.text import hide_passwords, one_line, visible
from poise.types import Estimate

_TABLES = ("settings", "provenance")
NO_BREAK = "\u00a0"
CURVE_LABELS = {"reward": "reward", "cost": "cost", "multiplier": "multiplier λ", "kl": "KL (nats)"}
KIND_TITLES = {
    "harmful": "Harmful prompts",
    "look_alike": "Look-alikes",
    "benign": "Benign prompts",
    "": "Other prompts",
}
COMPARED = {
    "harm_rate": "harm rate",
    "over_refusal": "over-refusal",
    "helpful_win_rate": "helpful win rate",
    "mean_cost": "mean cost",
    "kl": "KL to reference",
}
TRADEOFFS = {
    "over_refusal": "over-refusal, % (lower is better)",
    "helpful_win_rate": "helpful win rate, % (higher is better)",
}


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write report.json and report.html into `folder` (made if missing) and return the path of the page.

    Unsafe samples are folded away in the page until a reader opens them.
    """
    page = Path(folder) / "report.html"
    content = _plain(report)
    _write(page, content | {name: hide_passwords(content[name]) for name in _TABLES if name in content})
    return page


@by_main
def _write(page: Path, plain: Mapping[str, Any]) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    content, rendered = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False), render(plain)
    page.with_name("report.json").write_text(content, "utf-8")
    page.write_text(rendered, "utf-8")


def rewrite_report(folder: Path) -> Path:
    """Write report.html again from the report.json beside it, and return its path.

    Raises RunError if report.json is damaged, or holds what no page can be made of.
    """
    from jinja2 import TemplateError

    source = folder / "report.json"
    report = read_json(source, remedy="Repeat the run's command: it writes it again")
    try:
        return write_report(folder, report)
    except (TypeError, ValueError, AttributeError, KeyError, TemplateError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        raise RunError(
            f"{source} holds what no page can be made of ({reason}): it was changed, or another poise wrote it. Repeat "
            "the run's command: it writes it again"
        ) from error


def render(report: Mapping[str, Any]) -> str:
    """Render a report, its estimates as mappings, as one self-contained HTML page."""
    from jinja2 import Environment, PackageLoader

    report = _shown(report)
    environment = Environment(
        loader=PackageLoader("poise.evaluate", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "value": value_text,
        "interval": interval_text,
        "score": _score_text,
        "plain": _setting_text,
    }
    environment.tests |= {"unsafe": is_unsafe}
    return environment.get_template("report.html.j2").render(
        report=report,
        verdicts=[verdict(row) for row in report.get("headline") or ()],
        compared={
            key: label for key, label in COMPARED.items() if any(r.get(key) for r in report.get("comparison") or ())
        },
        charts=_charts(report),
        categories=charts.worst_first(report.get("categories") or ()),
        level=_level_text(report),
        samples=_grouped(report.get("samples") or ()),
        tables={name.capitalize(): dict(_flat(report[name])) for name in _TABLES if report.get(name)},
        point_counts={side: len(rows) for side, rows in (report.get("scatter") or {}).items()},
        max_points=charts.MAX_POINTS,
    )


def _shown(value: Any) -> Any:
    """A report with all its texts, names among them, made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {_shown(key): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value


def value_text(estimate: Mapping[str, Any] | None) -> str:
    """Write a value with its unit.

    >>> value_text({"value": 48.0, "n": 40, "unit": "tokens"})
    '48.0 tokens'
    """
    if not estimate or estimate.get("value") is None:
        return "–"
    unit = estimate.get("unit") or ""
    number = _number(estimate["value"], unit)
    return f"{number}{NO_BREAK}%" if unit == "share" else f"{number} {unit}".strip()


def interval_text(estimate: Mapping[str, Any] | None) -> str:
    """Write the interval and the sample size, with no-break spaces inside each.

    >>> interval_text({"value": 0.125, "n": 40, "unit": "share", "low": 0.055, "high": 0.261}).split(" · ")[0].split()
    ['[5.5,', '26.1]']
    """
    if not estimate or estimate.get("value") is None:
        return "not measured"
    unit = estimate.get("unit") or ""
    given = Estimate(
        value=estimate["value"], n=estimate["n"], unit=unit, low=estimate.get("low"), high=estimate.get("high")
    )
    interval = given.interval_text(lambda end: _number(end, unit)).replace(" ", NO_BREAK)
    return f"{interval or 'no interval'} · n{NO_BREAK}={NO_BREAK}{estimate['n']}"


def verdict(row: Mapping[str, Any]) -> dict[str, str]:
    """Say what happened between before and after: the change, and whether the intervals part.

    A figure that compares already, such as a win rate, is held against `even`, its value where nothing has changed.
    """
    before, after = row.get("before"), row.get("after")
    if row.get("even") is not None:
        even = row["even"]
        before = {"value": even, "low": even, "high": even}
    if not before or not after or before.get("value") is None or after.get("value") is None:
        return {"tone": "none", "change": "–", "words": "not measured on both sides"}
    unit, change = after.get("unit") or "", after["value"] - before["value"]
    text = f"{'+' if change > 0 else ''}{_number(change, unit)}{' points' if unit == 'share' else ''}"
    if any(side.get("low") is None and side.get("high") is None for side in (before, after)):
        return {"tone": "none", "change": text, "words": "no interval"}
    if not _part(before, after):
        words = (
            "intervals overlap" if row.get("even") is None else f"interval holds {value_text(after | {'value': even})}"
        )
        return {"tone": "none", "change": text, "words": words}
    if row.get("better") not in ("lower", "higher"):
        return {"tone": "none", "change": text, "words": "changed"}
    improved = (change < 0) == (row["better"] == "lower")
    return {"tone": "good" if improved else "bad", "change": text, "words": "better" if improved else "worse"}


def _part(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Tell whether two intervals have no number in common; an end that is missing is open."""
    ends = [(side.get("low"), side.get("high")) for side in (before, after)]
    (low, high), (other_low, other_high) = (
        (-math.inf if low is None else low, math.inf if high is None else high) for low, high in ends
    )
    return bool(high < other_low or other_high < low)


def is_unsafe(sample: Mapping[str, Any], kind: str) -> bool:
    """Tell whether a text stays folded: judged harmful, or an answer to a harmful prompt that nobody judged safe."""
    cost = sample.get("cost")
    if sample.get("outcome") == "harm" or (cost is not None and cost > 0):
        return True
    return kind == "harmful" and sample.get("outcome") != "safe"


def _charts(report: Mapping[str, Any]) -> dict[str, Any]:
    limit, curves, compared = report.get("limit"), report.get("curves") or [], report.get("comparison") or []
    names = [*CURVE_LABELS, *dict.fromkeys(key for row in curves for key in row if key not in (*CURVE_LABELS, "step"))]
    drawn = [name for name in names if any(charts.has_numbers(row, "step", name) for row in curves)]
    return {
        "scatter": charts.scatter(report.get("scatter") or {}, limit),
        "curves": [
            charts.curve(
                curves, name, CURVE_LABELS.get(name, name.replace("_", " ")), limit if name == "cost" else None
            )
            for name in drawn
        ],
        "categories": charts.category_bars(report["categories"]) if report.get("categories") else "",
        "tradeoffs": [chart for chart in (charts.tradeoff(compared, *axis) for axis in TRADEOFFS.items()) if chart],
    }


def _level_text(report: Mapping[str, Any]) -> str:
    """Name the level of the intervals, when all have the same."""
    levels = set(_levels(report))
    return f"{100 * levels.pop():g} % " if len(levels) == 1 else ""


def _levels(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        if value.get("low") is not None and value.get("level"):
            yield float(value["level"])
        for item in value.values():
            yield from _levels(item)
    elif isinstance(value, list):
        for item in value:
            yield from _levels(item)


def _grouped(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Put the samples under the title of their kind."""
    groups = {title: [s for s in samples if s.get("kind", "") == kind] for kind, title in KIND_TITLES.items()}
    groups["Other prompts"] = [s for s in samples if s.get("kind", "") not in KIND_TITLES] + groups["Other prompts"]
    return {title: rows for title, rows in groups.items() if rows}


def _number(value: float, unit: str) -> str:
    scaled = 100 * value if unit == "share" else value
    digits = 1 if unit in ("share", "percentage points") else 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
    text = f"{scaled:.{digits}f}".replace("-", "−")
    return text.lstrip("−") if not text.strip("−0.") else text  # no minus zero


def _score_text(value: Any) -> str:
    return "–" if value is None else _number(float(value), "")


def _setting_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name nested settings by their path, such as sampling.max_tokens."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    """Turn records, tuples and paths into what JSON knows; a number that is not finite becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)
