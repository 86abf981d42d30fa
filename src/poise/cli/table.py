"""Several runs side by side: one table of their figures with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from poise.errors import ConfigError, RunError
from poise.experiment.pages import figure_text
from poise.files import read_json
from poise.run_folder import RECORD
from poise.text import in_markdown

RESULTS = "results.json"
_NOT_SETTINGS = {"folder", "output", "workers"}


def table_of(runs: Sequence[Path], *, metrics: Sequence[str] = ()) -> str:
    """A Markdown table: a row for each metric, a column for each arm of each run, and below it what the runs differ in.

    runs     run folders, or the files that `--output FILE.json` wrote
    metrics  names or labels of the metrics that are wanted; all by default

    Raises RunError for a run without results, or runs without a figure, ConfigError for a metric that no run has.
    """
    documents = {str(run): _document(run) for run in runs}
    columns = list(_columns(documents))
    known = {each["name"]: each for found in documents.values() for each in found["metrics"]}
    labels = {name: each["label"] for name, each in known.items()}
    wanted = [_metric(name.strip(), labels) for name in metrics] or list(labels)
    rows = [
        [in_markdown(labels[name]), *(in_markdown(figure_text(found, known[name])) for _, found in columns)]
        for name in wanted
        if any(name in column[1] for column in columns)
    ]
    if not rows:
        raise RunError(f"{', '.join(documents)}: no figure was measured, so that there is nothing to compare")
    head = ["", *(in_markdown(name) for name, _ in columns)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    methods = dict.fromkeys(
        each["method"] for _, found in columns for name, each in found.items() if name in wanted and each["method"]
    )
    about = [f"95 % intervals: {'; '.join(methods)}." if methods else "", *_about(documents)]
    return "\n".join([*lines, "", *(in_markdown(line) for line in about if line)])


def _document(run: Path) -> dict[str, Any]:
    path = run / RESULTS if run.is_dir() else run
    if not path.is_file():
        what = "has not finished" if (run / RECORD).is_file() else "is not the folder of a run"
        raise RunError(f"{run} {what}: it has no {RESULTS}. Give folders of finished runs, or files of --output")
    document = read_json(path)
    if not isinstance(document.get("estimates"), dict) or not isinstance(document.get("metrics"), list):
        raise RunError(f"{path} holds no results of a run: give a run folder, or a file that --output wrote")
    return document


def _columns(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for run, document in documents.items():
        for arm, found in document["estimates"].items():
            alone = len(document["estimates"]) == 1
            name = run if alone else f"{run}: {document['arms'].get(arm, arm)}"
            yield f"{name} (smoke test)" if document.get("is_quick") else name, found


def _metric(name: str, labels: Mapping[str, str]) -> str:
    if name in labels:
        return name
    by_label = {label: each for each, label in labels.items()}
    if name in by_label:
        return by_label[name]
    close = get_close_matches(name, [*labels, *by_label], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(labels)}"
    raise ConfigError(f"no run has a metric {name!r}: {hint}")


def _about(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the runs differ in: figures of other data or another recipe are not of the same thing."""
    settings = {run: {"recipe": d.get("recipe"), **d.get("arguments", {})} for run, d in documents.items()}
    first, *others = settings.values()
    # a setting that only one recipe has is no difference of its own: that the recipes differ is said
    for name in (name for name in first if name not in _NOT_SETTINGS and all(name in each for each in others)):
        values = [each[name] for each in settings.values()]
        if any(value != values[0] for value in values):
            told = ", ".join(f"{run} {_shown(value)}" for run, value in zip(settings, values, strict=True))
            yield f"They differ in {name}: {told}."


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
