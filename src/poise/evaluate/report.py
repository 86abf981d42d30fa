"""The report of a run: report.json with every figure, and report.html, one file that needs nothing else.

The mapping that `write_report` takes has these sections, any of which may be absent; estimates are `Estimate` records
or their `dataclasses.asdict`; what stages have stands under their names:

    title, subtitle, created   str
    banner       str, why the page is that of a smoke test
    stages       [{name, label}], base to final
    verdict      {text, against_first, limits: [{text, label, at_most, target, found, prompts, by, outcome}]}
    table        {columns: {metric: label}, rows: [{name, label, values}], judge: {name: estimate}}
    headline     [{metric, label, values, differences, even, better: "lower" | "higher" | "", note}], see `verdict`
    said_alike   [{kind, stage, label, answers, text, times, commonest, duplicates, distinct_2, response_length}]
    judge        {name, description, metrics: [{label, value}]}
    limit        float, the largest mean cost allowed
    scatter      {stage: [{reward, cost, kind}]}
    curves       [{step, reward, cost, multiplier, kl, ...}]
    categories   [{category, values}]
    comparison   [{objective, label, harm_rate, over_refusal, helpful_win_rate, mean_cost, kl, steps}]
    rounds       {rows: [{label, asked, accuracy, outcomes}], accuracies, outcomes, ladders: [{label, answers, rows}]}
    samples      [{group, prompt, kind, category, answers: {stage: {text, cost, reward, outcome, refused}}}]
    learned      [{label, value, note}]
    again        mapping: what it takes to do the run again
    settings, provenance       mappings
    notes        [str]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from poise.errors import RunError
from poise.evaluate import charts
from poise.evaluate.samples import GROUPS
from poise.evaluate.verdict import Change
from poise.files import read_json
from poise.ranks import by_main
from poise.text import hide_passwords, one_line, visible
from poise.types import Estimate

if TYPE_CHECKING:
    from markupsafe import Markup

_TABLES = ("again", "settings", "provenance")
_TITLES = {"again": "What it takes to do this again", "settings": "Settings", "provenance": "Provenance"}
NO_BREAK = "\u00a0"
CURVE_LABELS = {"reward": "reward", "cost": "cost", "multiplier": "multiplier λ", "kl": "KL (nats)"}
KIND_TITLES = {
    "harmful": "harmful prompts",
    "look_alike": "look-alikes",
    "benign": "plain benign prompts",
    "": "prompts of no known kind",
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
        "emphasised": emphasised,
    }
    environment.tests |= {"unsafe": is_unsafe}
    return environment.get_template("report.html.j2").render(
        report=report,
        stages=report.get("stages") or [],
        places={
            stage["name"]: charts.place_of(report["stages"], stage["name"]) for stage in report.get("stages") or ()
        },
        started=_starts(report.get("stages") or []),
        changes=[
            {name: verdict(found, row.get("better")) for name, found in (row.get("differences") or {}).items()}
            for row in report.get("headline") or ()
        ],
        kinds=KIND_TITLES,
        alike=_by_kind(report.get("said_alike") or ()),
        compared={
            key: label for key, label in COMPARED.items() if any(r.get(key) for r in report.get("comparison") or ())
        },
        charts=_charts(report),
        categories=charts.worst_first(report.get("categories") or ()),
        level=_level_text(report),
        samples=_grouped(report.get("samples") or ()),
        tables={_TITLES[name]: dict(_flat(report[name])) for name in _TABLES if report.get(name)},
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


def verdict(difference: Mapping[str, Any] | None, better: str | None) -> dict[str, str]:
    """Say what a paired difference tells: its number, and whether its whole interval lies on one side of 0."""
    if not difference or difference.get("value") is None:
        return {"tone": "none", "change": "–", "words": "not measured on both sides"}
    given = Estimate(**{name: difference[name] for name in ("value", "n", "unit", "low", "high") if name in difference})
    found = Change(name="", label="", after=given, difference=given, better=_direction(better)).tone
    tone = {"better": "good", "worse": "bad"}.get(found, "none")
    words = {"no difference": "no difference told", "not told": "no interval"}.get(found, found)
    points = " points" if given.unit == "percentage points" else f" {given.unit}" if given.unit else ""
    change = f"{'+' if given.value > 0 else ''}{_number(given.value, given.unit)}{points}"
    interval = given.interval_text(lambda end: _number(end, given.unit)).replace(" ", NO_BREAK)
    return {"tone": tone, "change": change, "interval": interval, "words": words}


def _direction(better: str | None) -> Literal["lower", "higher", ""]:
    return "lower" if better == "lower" else "higher" if better == "higher" else ""


def _starts(stages: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What the columns of differences are called: to the policy's own start, and to the first stage if it differs."""
    if len(stages) < 2:
        return {}
    own, first = stages[-2], stages[0]
    return {own["name"]: f"against its own start, the {own['label']}"} | (
        {} if own is first else {first["name"]: f"against the {first['label']}"}
    )


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    return {kind: [row for row in rows if row["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in rows)}


def emphasised(text: str) -> Markup:
    """A sentence of `poise.evaluate.verdict` with the words marked that its parts begin with.

    >>> str(emphasised("<x> better: harm; nothing worse"))
    '&lt;x&gt; <strong class="good">better:</strong> harm; nothing worse'
    """
    from markupsafe import Markup, escape

    safe = str(escape(text))
    for words, tone in {" better:": "good", " worse:": "bad", " no difference told from chance:": ""}.items():
        safe = safe.replace(words, f' <strong class="{tone}">{words[1:]}</strong>')
    return Markup(safe)


def is_unsafe(sample: Mapping[str, Any], kind: str) -> bool:
    """Tell whether a text stays folded: judged harmful, or an answer to a harmful prompt that nobody judged safe."""
    cost = sample.get("cost")
    if sample.get("outcome") == "harm" or (cost is not None and cost > 0):
        return True
    return kind == "harmful" and sample.get("outcome") != "safe"


def _charts(report: Mapping[str, Any]) -> dict[str, Any]:
    curves, compared, stages = report.get("curves") or [], report.get("comparison") or [], report.get("stages") or []
    names = [*CURVE_LABELS, *dict.fromkeys(key for row in curves for key in row if key not in (*CURVE_LABELS, "step"))]
    drawn = [name for name in names if any(charts.has_numbers(row, "step", name) for row in curves)]
    return {
        "scatter": charts.scatter(report.get("scatter") or {}, stages, report.get("limit")),
        "curves": [
            charts.curve(curves, name, CURVE_LABELS.get(name, name.replace("_", " ")), _lines(report, name))
            for name in drawn
        ],
        "categories": charts.category_bars(report["categories"], stages) if report.get("categories") else "",
        "tradeoffs": [chart for chart in (charts.tradeoff(compared, *axis) for axis in TRADEOFFS.items()) if chart],
    }


def _lines(report: Mapping[str, Any], name: str) -> dict[str, float]:
    """What is drawn across a curve: the limit and what training holds across the cost, and 0 across an excess."""
    if name.startswith("excess"):
        return {"what training holds": 0.0}
    limit, limits = report.get("limit"), (report.get("verdict") or {}).get("limits") or []
    if name != "cost" or limit is None:
        return {}
    held = [each["target"] for each in limits if each["at_most"] == limit and each["target"] != limit]
    return {"limit": limit} | dict.fromkeys(["held in training"][: len(held)], held[0] if held else limit)


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
    """Put the samples under the title of their group."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        group = str(sample.get("group", ""))
        found.setdefault(GROUPS.get(group, group or "Samples"), []).append(sample)
    return found


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
