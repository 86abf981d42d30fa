"""The checks of the linter: each is a function from a data set to findings, and CHECKS lists them all."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poise.data import contradictions
from poise.types import Comparison, Dataset, Prompt, text_of

Severity = Literal["error", "warning", "info"]
LONG_RESPONSE = 4000  # characters: about 1,000 tokens of English, more than most training windows keep
NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One named observation: how many of how many, where, and what to do about it."""

    code: str
    count: int
    of: int
    severity: Severity
    advice: str
    about: str = ""  # a criterion, where a code is counted for each
    examples: tuple[str, ...] = ()  # each begins with its file:line

    @property
    def is_found(self) -> bool:
        """True if there is something to say: a count, or a share that is worth knowing at 0 too."""
        return self.count > 0 or bool(self.about and self.of)

    def __str__(self) -> str:
        name = f"{self.code} ({self.about})" if self.about else self.code
        share = f" ({100 * self.count / self.of:.1f} %)" if self.of else ""
        return f"{self.severity}: {name} {self.count}/{self.of}{share}. {self.advice}"


def normalised(text: str) -> str:
    """A text without case, punctuation and spacing, for finding near-identical ones.

    >>> normalised("How do I  bake bread?")
    'how do i bake bread'
    """
    return " ".join(re.findall(r"\w+", text.casefold()))


def leaks_between(by_split: Mapping[str, Sequence[Prompt]]) -> tuple[Finding, ...]:
    """Prompts that stand on more than one side, as they are and but for case, spacing and punctuation."""
    exact: dict[str, dict[str, Prompt]] = defaultdict(dict)
    near: dict[str, dict[str, Prompt]] = defaultdict(dict)
    for split, prompts in by_split.items():
        for prompt in prompts:
            exact[prompt.id].setdefault(split, prompt)
            near[_normalised_prompt(prompt)].setdefault(split, prompt)
    leaks = [sides for sides in exact.values() if len(sides) > 1]
    leaked = {prompt.id for sides in leaks for prompt in sides.values()}
    close = [sides for sides in near.values() if len(sides) > 1 and not {p.id for p in sides.values()} <= leaked]
    advice = "A held-out figure on these prompts is not held out: split with split_by_prompt, or remove them."
    return (
        _finding("prompt_leak", leaks, len(exact), "error", advice, _sides),
        _finding("near_prompt_leak", close, len(near), "error", advice, _sides),
    )


def _sides(sides: Mapping[str, Prompt]) -> str:
    return " and ".join(f"{split} at {_line(prompt)}" for split, prompt in sides.items())


def _bad_rows(dataset: Dataset) -> Iterator[Finding]:
    of = dataset.provenance.get("rows_read", len(dataset.bad_rows))
    advice = "These rows were not read: load with quarantine=FILE to keep them, then fix or drop them."
    yield _finding(
        "bad_rows", dataset.bad_rows, of, "error", advice, lambda row: f"{row.path}:{row.line}: {row.reason}"
    )


def _contradictions(dataset: Dataset) -> Iterator[Finding]:
    rows = contradictions.helpful_and_safe(dataset)
    conflicts = [safe for helpful, safe in rows if helpful.winner != safe.winner]
    advice = "Not an error: help and harm disagree here, as a reward and a cost model expect."
    yield _finding("helpful_safe_conflict", conflicts, len(rows), "info", advice, _comparison)

    ranked = contradictions.ranked_and_flagged(dataset)
    flagged = [each for each in ranked if each.contradicts_its_flags]
    advice = "The response ranked safer is flagged unsafe while another is flagged safe. See drop_contradictions."
    yield _finding("safer_but_flagged_unsafe", flagged, len(ranked), "warning", advice, _comparison)

    labels = contradictions.labels_by_response(dataset)
    disputed = [places for places in labels.values() if len(places) > 1]
    advice = (
        "The same response is labelled safe in one row and unsafe in another, which limits the possible "
        "accuracy. See drop_contradictions."
    )
    yield _finding("safety_label_conflict", disputed, len(labels), "warning", advice, _safe_and_unsafe)

    winners = contradictions.winners_by_pair(dataset)
    reversed_pairs = [places for places in winners.values() if len(places) > 1]
    advice = "The same two responses are ranked both ways under one criterion. See drop_contradictions."
    yield _finding("preference_conflict", reversed_pairs, len(winners), "warning", advice, _both_places)


def _duplicates(dataset: Dataset) -> Iterator[Finding]:
    rows = _row_contents(dataset)
    exact = _repeated(rows, lambda text: text)
    known = {place for _, place in exact}
    near = [pair for pair in _repeated(rows, lambda text: " ".join(text.casefold().split())) if pair[1] not in known]
    advice = "Repeated rows count double and inflate n: keep one of each."
    yield _finding("duplicate_rows", exact, len(rows), "warning", advice, _repetition)
    advice = "Equal except for case and spacing: keep one of each."
    yield _finding("nearly_duplicate_rows", near, len(rows), "warning", advice, _repetition)
    repeated = dataset.provenance.get("repeated_prompts", 0)
    yield Finding(
        code="duplicate_prompts",
        count=repeated,
        of=repeated + len(dataset.prompts),
        severity="warning",
        advice="Rows of prompt files that repeat an earlier prompt; each prompt was kept once.",
    )


def _row_contents(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """For each row, by location, all its texts and verdicts; labels that only restate a comparison are left out."""
    contents: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for index, each in enumerate(dataset.comparisons):
        said = (each.criterion, str(each.winner), str(each.probability), str(each.safe))
        contents[each.origin.location or f"comparison {index}"] += (_all_turns(each.prompt), *each.responses, *said)
    compared = set(contents)
    for index, demonstration in enumerate(dataset.demonstrations):
        place = _line(demonstration.prompt, f"demonstration {index}")
        contents[place] += (_all_turns(demonstration.prompt), demonstration.response)
    for index, verdict in enumerate(dataset.verdicts):
        place = verdict.origin.location or f"verdict {index}"
        contents[place] += (_all_turns(verdict.prompt), verdict.response, str(verdict.desirable))
    for index, label in enumerate(dataset.labels):
        place = label.origin.location or f"label {index}"
        if place not in compared:
            contents[place] += (_all_turns(label.prompt), label.response, str(label.safe))
    return contents


def _repeated(rows: Mapping[str, tuple[str, ...]], fold: Callable[[str], str]) -> list[tuple[str, str]]:
    first: dict[tuple[str, ...], str] = {}
    folded = ((place, tuple(fold(text) for text in texts)) for place, texts in rows.items())
    return [(first[texts], place) for place, texts in folded if first.setdefault(texts, place) != place]


def _pairs_without_choice(dataset: Dataset) -> Iterator[Finding]:
    same = [each for each in dataset.comparisons if len({normalised(text) or text for text in each.responses}) == 1]
    advice = "Both responses are equal except for case, spacing and punctuation. Drop them."
    yield _finding("identical_responses", same, len(dataset.comparisons), "warning", advice, _comparison)


def _near_identical_prompts(dataset: Dataset) -> Iterator[Finding]:
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in dataset.prompts:
        groups[_normalised_prompt(prompt)].append(prompt)
    close = [group for group in groups.values() if len(group) > 1]
    advice = "Different ids, same words: split_by_prompt may put them into different splits."
    yield _finding("near_identical_prompts", close, len(groups), "warning", advice, _first_two)


def _responses(dataset: Dataset) -> Iterator[Finding]:
    found = [(each.response, _line(each.prompt)) for each in dataset.demonstrations if not each.tool_calls]
    found += [(text, each.origin.location) for each in dataset.comparisons for text in each.responses]
    found += [(each.response, each.origin.location) for each in dataset.labels]
    found += [(each.response, each.origin.location) for each in dataset.verdicts]
    places = list(dict.fromkeys(found))  # a response with a verdict on help and one on harm is one response
    empty = [place for text, place in places if not text.strip()]
    long = [f"{place}: {len(text)} characters" for text, place in places if len(text) > LONG_RESPONSE]
    yield _finding("empty_responses", empty, len(places), "warning", "Drop them, unless silence is an answer.", str)
    advice = f"Longer than {LONG_RESPONSE} characters: check that the model's window keeps their end."
    yield _finding("long_responses", long, len(places), "info", advice, str)


def _label_balance(dataset: Dataset) -> Iterator[Finding]:
    unsafe, of = sum(not label.safe for label in dataset.labels), len(dataset.labels)
    if not of:
        return
    if unsafe in (0, of):
        advice = f"All are {'unsafe' if unsafe else 'safe'}: add labels of the other kind before training on them."
        yield Finding(code="one_sided_labels", count=of, of=of, severity="warning", advice=advice)
        return
    lopsided = not 0.2 <= unsafe / of <= 0.8
    advice = "Unbalanced: compare accuracy with the larger share, and weight the classes." if lopsided else "Balanced."
    yield Finding(code="unsafe_labels", count=unsafe, of=of, severity="warning" if lopsided else "info", advice=advice)


def _verdicts(dataset: Dataset) -> Iterator[Finding]:
    """Verdicts that contradict each other, and whether there are some of either kind; nothing if there are none."""
    places: dict[tuple[str, str], dict[bool, str]] = defaultdict(dict)
    for each in dataset.verdicts:
        places[each.prompt.id, each.response].setdefault(each.desirable, each.origin.location)
    if not places:
        return
    both = [found for found in places.values() if len(found) > 1]
    advice = "The same response is labelled desirable in one row and undesirable in another: drop one."
    yield _finding("verdict_conflict", both, len(places), "warning", advice, _desirable_and_not)
    desirable, of = sum(each.desirable for each in dataset.verdicts), len(dataset.verdicts)
    advice = "All verdicts are equal: add some of the other kind before training on them."
    one_sided = of if desirable in (0, of) else 0
    yield Finding(code="one_sided_verdicts", count=one_sided, of=of, severity="warning", advice=advice)


def _length_preference(dataset: Dataset) -> Iterator[Finding]:
    counts: Counter[tuple[str, bool]] = Counter()
    for each in dataset.comparisons:
        if each.winner is not None and len(each.responses) == 2:
            winner, loser = len(each.responses[each.winner]), len(each.responses[1 - each.winner])
            if winner != loser:
                counts[each.criterion, winner > loser] += 1
    for criterion in sorted({criterion for criterion, _ in counts}):
        longer, of = counts[criterion, True], counts[criterion, True] + counts[criterion, False]
        strong = abs(longer / of - 0.5) > 0.15 and of >= 30
        advice = "Of pairs of unequal length, the longer response wins."
        advice += " A score model can learn length instead of quality: compare it with this share." if strong else ""
        severity: Severity = "warning" if strong else "info"
        yield Finding(
            code="longer_is_preferred", about=criterion, count=longer, of=of, severity=severity, advice=advice
        )


CHECKS: tuple[Callable[[Dataset], Iterator[Finding]], ...] = (
    _bad_rows,
    _contradictions,
    _duplicates,
    _pairs_without_choice,
    _near_identical_prompts,
    _responses,
    _label_balance,
    _verdicts,
    _length_preference,
)


def _finding(
    code: str, found: Sequence[Any], of: int, severity: Severity, advice: str, show: Callable[[Any], str]
) -> Finding:
    examples = tuple(show(each) for each in found[:NUM_EXAMPLES])
    return Finding(code=code, count=len(found), of=of, severity=severity, advice=advice, examples=examples)


def _repetition(pair: tuple[str, str]) -> str:
    return f"{pair[1]} repeats {pair[0]}"


def _first_two(prompts: Sequence[Prompt]) -> str:
    return " and ".join(_line(prompt) for prompt in prompts[:2])


def _line(prompt: Prompt, otherwise: str = "") -> str:
    return str(prompt.tags.get("line") or otherwise or f"prompt {prompt.id}")


def _comparison(comparison: Comparison) -> str:
    return f"{comparison.origin.location or _line(comparison.prompt)}: {comparison.prompt.text[:60]!r}"


def _safe_and_unsafe(places: Mapping[bool, str]) -> str:
    return f"safe at {places[True]}, unsafe at {places[False]}"


def _desirable_and_not(places: Mapping[bool, str]) -> str:
    return f"desirable at {places[True]}, undesirable at {places[False]}"


def _both_places(places: Mapping[str, str]) -> str:
    return " against ".join(places.values())


def _all_turns(prompt: Prompt) -> str:
    return "\n".join(text_of(message) for message in prompt.messages)


def _normalised_prompt(prompt: Prompt) -> str:
    text = "\x1e".join(normalised(text_of(message)) for message in prompt.messages)
    return text if text.strip("\x1e") else prompt.id  # a prompt of symbols alone is like no other
