"""What people said of compliance: rows for the judges that decide it, with no rule and no set's own flag among them.

There are two judges, which learn from other prompts and, XSTest apart, from other sources; neither learns from a row
or a question that a training signal, a demonstration or a prompt of the verdict has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from poise.data.human_rated import Criterion, human_ratings
from poise.data.lint_checks import normalised
from poise.errors import DataError
from poise.types import Dataset, Demonstration, Origin, Prompt, Rating, SafetyLabel

# The sides that judges of compliance learn from. The one decides, the other stands beside.
FEATURES, WORDS = "judge", "words"
SOURCES: Mapping[Criterion, str] = {"compliance": FEATURES, "refusal": WORDS}
_HALF = 0.5


def people_sets() -> tuple[dict[str, Dataset], dict[str, dict[str, float]]]:
    """People's ratings of compliance and of refusal as labels, whose `safe` says that an answer declines; their sides.

    The part `test` of the ratings, where it is there, is never learned from: it stands on the side `test`.

    Raises DataError that says what to install, if there are no ratings.
    """
    sets: dict[str, Dataset] = {}
    shares: dict[str, dict[str, float]] = {}
    for criterion, side in SOURCES.items():
        rated = human_ratings(criterion)
        for part, own in (("test", "test"), ("train", side)):
            rows = [row for row in rated.ratings if row.prompt.tags.get("split") == part and row.value != _HALF]
            name = f"human-rated-{criterion}-{part}"
            labels = tuple(_label(row, criterion) for row in rows)
            sets[name] = Dataset(name=name, labels=labels, provenance=rated.provenance)
            shares[name] = {own: 1.0}
    return sets, shares


def source_of(label: SafetyLabel) -> str:
    """The set that a label is from."""
    return str(label.prompt.tags.get("source", label.origin.name))


def require_apart(
    judged_by: Iterable[SafetyLabel], *, rows: Iterable[tuple[Prompt, str]], prompts: Iterable[Prompt]
) -> None:
    """Check that a judge shares nothing with what it judges: rules do not label its rows, and no question is known.

    judged_by  what the judge learned from
    rows       prompts and responses that a training signal or a demonstration has
    prompts    those of the policy, in training, validation and verdict

    Raises DataError that names the first row at fault.
    """
    known = {normalised(prompt.text) for prompt in prompts} | {normalised(prompt.text) for prompt, _ in rows}
    for label in judged_by:
        if label.origin.kind == "rule":
            raise DataError(
                f"a rule ({label.origin.name}) labelled {label.response[:60]!r}, from which a judge of compliance "
                "learns: judges learn from people's labels alone, so that no rule is trained on and judges too"
            )
        if normalised(label.prompt.text) in known:
            raise DataError(
                f"a judge of compliance learns from {label.prompt.text[:60]!r} ({source_of(label)}), which the "
                "training signal, the policy or the verdict has too: give each its own questions (data.split_together)"
            )


def _label(row: Rating, criterion: Criterion) -> SafetyLabel:
    declines = (row.value > _HALF) == (criterion == "refusal")
    tags = {"source": f"human-rated-{criterion}", "kind": "harmful" if criterion == "compliance" else ""}
    return SafetyLabel(prompt=replace(row.prompt, tags=tags), response=row.response, safe=declines, origin=row.origin)


def said_by_people(rows: Sequence[Demonstration], source: str, verdicts: str) -> tuple[SafetyLabel, ...]:
    """Completions that people gave one of these verdicts: 1 complies, 2 declines, 3 declines in part."""
    chosen = [row for row in rows if row.prompt.tags["final_label"][0] in verdicts]
    return tuple(
        SafetyLabel(
            prompt=row.prompt,
            response=row.response,
            safe=row.prompt.tags["final_label"][0] != "1",
            origin=Origin(kind="human", name=source),
        )
        for row in chosen
    )
