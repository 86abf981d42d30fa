"""Pages from results: a page of every results/NAME.json, with its pictures, and the lists of all recipes.

A page holds what its JSON holds and nothing else, so that the two cannot differ without a test noticing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.estimates import Estimate, JudgedRate
from poise.evaluate.stage_text import markdown_table
from poise.files import atomic_write, read_json

_AT_ROWS = re.compile(r" at [\d.]+ effective of \d+ rows, over \d+ prompts")  # which differ from cell to cell
_BY = {"paper": "the paper", "ours": "us"}
Document = Mapping[str, Any]  # what `Results.document` gave, and when, where and by what it was made


def results_folder() -> Path:
    """Where published results are: results/ of the repository, which an installed package carries along."""
    package = Path(__file__).parents[1]
    carried = package / "results"
    return carried if carried.is_dir() else package.parents[1] / "results"


def published(name: str) -> dict[str, Any] | None:
    """The published results of a recipe; None if there are none yet."""
    path = results_folder() / f"{name}.json"
    return read_json(path) if path.is_file() else None


def page_text(document: Document, *, stem: str = "", is_published: bool = False) -> str:
    """The page of some results as Markdown; pictures are files named after `stem`."""
    return rendered(
        "study.md.j2",
        **{**document, "claims": [_claim_cells(claim) for claim in document["claims"]]},
        published=is_published,
        options=_options(document["given"]),
        commit=_commit(document["made"]),
        hardware=hardware(document["made"]),
        stage_table=markdown_table(document["stages"]) if document.get("stages") else "",
        tables=list(_tables(document)),
        pictures=list(zip([plot["title"] for plot in document["plots"]], _files(document, stem), strict=True)),
    )


def rendered(template: str, **values: Any) -> str:
    """A page as one of templates/ has it; texts of others must be fit for Markdown (`poise.text.in_markdown`)."""
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("poise.experiment", "templates")
    templates = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return templates.get_template(template).render(**values).rstrip() + "\n"


def write_page(document: Document, path: Path, *, is_published: bool = False) -> str:
    """Write a page and, beside it, its pictures; returns the page."""
    from poise.evaluate.figures import Series, charts

    text = page_text(document, stem=path.stem, is_published=is_published)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)
    for plot, file in zip(document["plots"], _files(document, path.stem), strict=True):
        panels = {name or plot["title"]: [Series(**each) for each in every] for name, every in plot["panels"].items()}
        atomic_write(path.with_name(file), charts(panels, across=plot["across"], up=plot["up"]))
    return text


def render(root: Path) -> Iterator[Path]:
    """Write docs/results/NAME.md again from every results/NAME.json below `root`, and yield what was written."""
    for path in sorted((root / "results").glob("*.json")):
        target = root / "docs" / "results" / f"{path.stem}.md"
        write_page(json.loads(path.read_text("utf-8")), target, is_published=True)
        yield target


def hardware(made: Mapping[str, Any]) -> str:
    """The machine of some results in words."""
    machine = made["machine"]
    return f"{machine['cpu_count']} cores ({machine.get('cpu') or machine['platform']})"


def verdicts(document: Document) -> str:
    """How many claims held, were contradicted or were not shown, over how many seeds."""
    found = [claim["outcome"] for claim in document["claims"]]
    kinds = {
        "holds": "held",
        "not shown": "not shown",
        "contradicted": "contradicted",
        "not measurable": "not measurable by their judge",
    }
    counts = [f"{found.count(kind)} {word}" for kind, word in kinds.items() if kind in found]
    return f"{', '.join(counts) or 'no claims'} (n = {len(document['seeds'])} seeds)"


def _tables(document: Document) -> Iterator[dict[str, Any]]:
    """The tables of a page: metrics by heading, and of each the arms that have some of them."""
    headings = list(dict.fromkeys(metric["table"] for metric in document["metrics"]))
    for heading in headings:
        metrics = [metric for metric in document["metrics"] if metric["table"] == heading]
        if all(metric["over"] == "facts" for metric in metrics):
            yield from _facts(heading, metrics, document)
            continue
        rows, methods = [], dict[str, None]()
        for arm, label in document["arms"].items():
            found = document["estimates"][arm]
            if heading and not any(metric["name"] in found for metric in metrics):
                continue
            methods |= dict.fromkeys(found[each["name"]]["method"] for each in metrics if each["name"] in found)
            rows.append((label, [figure_text(found, metric, how="bare") for metric in metrics]))
        head = [metric["label"] for metric in metrics]
        if not rows:
            continue
        yield {"heading": heading, "head": head, "rows": rows, "methods": _explained(methods, document)}


def figure_text(found: Mapping[str, Any], metric: Mapping[str, Any], *, how: str = "") -> str:
    """A figure of an arm; one that a judge gives stands beside what the judge is worth.

    found   the arm's estimates by the name of their metric, as a document keeps them
    metric  of the same document
    how     the format of `Estimate`: "bare" leaves n out
    """
    if metric["name"] not in found:
        return "–"
    estimate = Estimate(**found[metric["name"]])
    if not (judge := metric.get("judged_by")):
        return format(estimate, how)
    return format(JudgedRate(rate=estimate, right=Estimate(**found[judge]) if judge in found else None), how)


def _facts(heading: str, metrics: Sequence[Mapping[str, Any]], document: Document) -> Iterator[dict[str, Any]]:
    """A table with a row for each fact, as the first arm that has it says: arms share them."""
    every = document["estimates"].values()
    found = [(each, next((arm[each["name"]] for arm in every if each["name"] in arm), None)) for each in metrics]
    rows = [(metric["label"], [str(Estimate(**fact))]) for metric, fact in found if fact]
    seeds = "" if len(document["seeds"]) == 1 else "the worst seed's, "
    if rows:
        methods = f"In brackets {seeds}95 % intervals over prompts."
        yield {"heading": heading, "head": ["value"], "rows": rows, "methods": methods}


def _explained(methods: Mapping[str, None], document: Document) -> str:
    """One sentence on what stands in a table."""
    seeds = len(document["seeds"])
    said = {
        "Student": f"means over {seeds} seeds, in brackets Student's 95 % intervals",
        "no interval: one value": "one seed",
        "no interval: nothing varies": "a figure without an interval is the same in every seed",
    }
    plain = (_AT_ROWS.sub(", at the rows that those of one prompt are worth", method) for method in methods if method)
    known = sorted(plain, key=lambda method: method.startswith("no interval"))
    text = "; ".join(dict.fromkeys(said.get(method, method) for method in known))
    return f"{text[:1].upper()}{text[1:]}." if text else "Nothing was measured."


def _claim_cells(claim: Mapping[str, Any]) -> dict[str, str]:
    difference = Estimate(**claim["difference"])
    size = claim["detectable"]
    least = "–" if size is None else f"{Estimate(value=size, n=difference.n, unit=difference.unit):bare}"
    return {
        "text": claim["text"],
        "by": _BY[claim["source"]],
        "difference": f"{difference:bare}, {_power(claim)}",
        "detectable": least,
        "verdict": claim["outcome"] if claim["outcome"] != "contradicted" else "**contradicted**",
    }


def _power(claim: Mapping[str, Any]) -> str:
    prompts = f", {claim['prompts']} prompts" if claim["prompts"] else ""
    lost = f", {claim['left_out']} answers left out, which only one side has" if claim.get("left_out") else ""
    return f"{claim['seeds']} seed{'s' if claim['seeds'] != 1 else ''}{prompts}{lost}"


def _files(document: Document, stem: str) -> list[str]:
    stem = stem or document["recipe"]
    return [f"{stem}{'' if i == 0 else f'-{i + 1}'}.svg" for i in range(len(document["plots"]))]


def _options(given: Mapping[str, Any]) -> str:
    """The options of a command line that are not the defaults."""
    words: list[str] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return f" {shlex.join(words)}" if words else ""


def _commit(made: Mapping[str, Any]) -> str:
    commit = made["commit"]
    if commit is None:
        return "unknown"
    return f"`{commit['commit'][:9]}`" + (" with changes" if commit["dirty"] else "")
