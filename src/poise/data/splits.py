"""Rearrange data sets: split by prompt, merge, select. Records stay as they are; only their places change."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from poise.data.collect import summed
from poise.data.lint_checks import normalised
from poise.errors import ConfigError, DataError
from poise.types import Comparison, Dataset, Demonstration, Origin, Prompt, Rating, SafetyLabel, Verdict, text_of

Judged = TypeVar("Judged", Demonstration, Comparison, SafetyLabel, Verdict, Rating)
Choice = str | Collection[str] | None
ROWS = ("demonstrations", "comparisons", "labels", "verdicts", "ratings")
_HELD_OUT = 0.2
_OUTSIDE = ("test", "validation")  # the splits of a publisher that are held out, the first that has prompts


def split_by_prompt(dataset: Dataset, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, Dataset]:
    """Divide a data set so that all rows of a prompt are on one side.

    The side follows from a hash of the prompt's id and the seed alone, so a prompt keeps its side when rows are added
    and in every other set. A prompt whose tag `split` names one of the shares goes there. Bad rows stay with the whole.

    Raises ConfigError unless the shares are above 0 and add up to 1.

    >>> two = Dataset(name="two", prompts=(Prompt.of("a"), Prompt.of("b")))
    >>> parts = split_by_prompt(two, {"train": 0.9, "test": 0.1})
    >>> sum(len(part.prompts) for part in parts.values())
    2
    """
    _require_shares(shares)
    sides: dict[str, str] = {}
    for prompt in prompts_of(dataset):
        if prompt.id not in sides:
            tagged = str(prompt.tags.get("split"))
            sides[prompt.id] = tagged if tagged in shares else _drawn(prompt.id, shares, seed)
    return {name: _keep(dataset, _is_on(sides, name), name) for name in shares}


def split_in_strata(dataset: Dataset, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, Dataset]:
    """Divide a data set by prompt so that every side has its share of each kind of prompt, to within one.

    The prompts of a kind (tag `kind`) are put in the order of a hash of id and seed, and cut at the shares. Tags
    `split` are ignored: this divides what stands on one side already.

    Raises ConfigError unless the shares are above 0 and add up to 1.

    >>> few = Dataset(name="few", prompts=tuple(Prompt.of(f"{i}", kind="benign") for i in range(10)))
    >>> [len(part.prompts) for part in split_in_strata(few, {"kept": 0.6, "rest": 0.4}).values()]
    [6, 4]
    """
    _require_shares(shares)
    strata: dict[str, set[str]] = {}
    for prompt in prompts_of(dataset):
        strata.setdefault(str(prompt.tags.get("kind", "")), set()).add(prompt.id)
    sides: dict[str, str] = {}
    for ids in strata.values():
        order = sorted(ids - sides.keys(), key=lambda each: hashlib.sha256(f"strata:{seed}:{each}".encode()).digest())
        begin, edge = 0, 0.0
        for name, share in shares.items():
            edge += share
            end = round(edge * len(order))
            sides |= dict.fromkeys(order[begin:end], name)
            begin = end
    return {name: _keep(dataset, _is_on(sides, name), name) for name in shares}


def held_out(dataset: Dataset, *, seed: int = 0) -> dict[str, Dataset]:
    """The sides train and test, as the rows say; where they leave one empty, a fifth of the prompts is held out.

    >>> rows = Dataset(name="rows", prompts=tuple(Prompt.of(f"{i}", split="train") for i in range(50)))
    >>> 0 < len(held_out(rows)["test"].prompts) < 25
    True
    """
    tags = {str(prompt.tags.get("split")) for prompt in dataset.prompts}
    outside = next((name for name in _OUTSIDE if name in tags), _OUTSIDE[0])
    shares = {"train": 1 - _HELD_OUT, outside: _HELD_OUT}
    parts = split_by_prompt(dataset, shares, seed=seed)
    if not all(part.prompts for part in parts.values()):
        parts = split_by_prompt(without_splits(dataset), shares, seed=seed)
    named = {"train": parts["train"], "test": parts[outside]}
    return {
        name: replace(part, name=f"{dataset.name}[{name}]", provenance=dataset.provenance)
        for name, part in named.items()
    }


def judges_harm(data: Dataset) -> bool:
    """True if some rows say which responses are safe, or safer: what a judge of harm learns from."""
    return bool(data.labels) or any(each.criterion == "safe" for each in data.comparisons)


def split_together(
    datasets: Mapping[str, Dataset], shares: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> dict[str, dict[str, Dataset]]:
    """Divide several data sets so that no question stands on two sides, in whichever set and however it goes on.

    A question is the first user turn, but for case, spacing and punctuation: a dialogue and its continuations belong
    together. `shares` gives the sides of each set; where two sets hold a question, the set named first decides, so name
    those first whose sides matter most. Returns name -> side -> Dataset, with every side of any set.

    >>> one = Dataset(name="one", prompts=(Prompt.of("Why?"),))
    >>> parts = split_together({"test": one, "rest": one}, {"test": {"held": 1.0}, "rest": {"train": 1.0}})
    >>> len(parts["rest"]["held"].prompts), len(parts["rest"]["train"].prompts)
    (1, 0)
    """
    sides: dict[str, str] = {}
    for name, dataset in datasets.items():
        _require_shares(shares[name])
        for prompt in prompts_of(dataset):
            sides.setdefault(question := _question(prompt), _drawn(question, shares[name], seed))
    every = dict.fromkeys(side for each in shares.values() for side in each)

    def stands_on(side: str) -> Callable[[Prompt], bool]:
        return lambda prompt: sides[_question(prompt)] == side

    return {name: {side: _keep(dataset, stands_on(side), side) for side in every} for name, dataset in datasets.items()}


def merge(datasets: Sequence[Dataset], *, name: str = "") -> Dataset:
    """Put data sets behind each other; a prompt that several hold is kept once, as the first has it.

    Raises DataError if there are none.
    """
    if not datasets:
        raise DataError("merge needs at least one data set, got none")
    prompts = {prompt.id: prompt for each in reversed(datasets) for prompt in reversed(each.prompts)}
    return Dataset(
        name=name or "+".join(each.name for each in datasets),
        prompts=tuple(reversed(prompts.values())),
        demonstrations=tuple(row for each in datasets for row in each.demonstrations),
        comparisons=tuple(row for each in datasets for row in each.comparisons),
        labels=tuple(row for each in datasets for row in each.labels),
        verdicts=tuple(row for each in datasets for row in each.verdicts),
        ratings=tuple(row for each in datasets for row in each.ratings),
        bad_rows=tuple(row for each in datasets for row in each.bad_rows),
        provenance=_merged_provenance(datasets),
    )


def select(dataset: Dataset, *, kind: Choice = None, split: Choice = None, criterion: Choice = None) -> Dataset:
    """Keep the rows whose prompt has one of these tags `kind` and `split`, and judgements under one of these criteria.

    None keeps all. `criterion` leaves prompts, demonstrations and labels as they are.

    Raises DataError if no prompt is left, naming the tags there are.

    >>> pair = Dataset(name="two", prompts=(Prompt.of("a", kind="harmful"), Prompt.of("b", kind="benign")))
    >>> select(pair, kind="benign").prompts[0].text
    'b'
    """
    wanted = {"kind": _as_set(kind), "split": _as_set(split)}

    def fits(prompt: Prompt) -> bool:
        return all(values is None or prompt.tags.get(tag) in values for tag, values in wanted.items())

    chosen = {tag: sorted(values) for tag, values in wanted.items() if values is not None}
    kept = _keep(dataset, fits, "")
    criteria = _as_set(criterion)
    if criteria is not None:
        comparisons = tuple(row for row in kept.comparisons if row.criterion in criteria)
        kept = replace(kept, comparisons=comparisons, ratings=tuple(r for r in kept.ratings if r.criterion in criteria))
    if dataset.prompts and not kept.prompts:
        there = {tag: sorted({str(prompt.tags.get(tag)) for prompt in dataset.prompts}) for tag in chosen}
        raise DataError(f"data set {dataset.name!r} has no prompt with {chosen}; available: {there}")
    return kept


def prompts_of(dataset: Dataset) -> Iterator[Prompt]:
    """Every prompt as it stands in every row: repeated, and with that row's tags."""
    yield from dataset.prompts
    for name in ROWS:
        yield from (row.prompt for row in getattr(dataset, name))


def _require_shares(shares: Mapping[str, float]) -> None:
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"shares must be above 0 and add up to 1, got {dict(shares)}")


def _question(prompt: Prompt) -> str:
    """The first user turn, folded; a turn of signs alone as it is."""
    text = next((text_of(m) for m in prompt.messages if m["role"] == "user"), prompt.text)
    return normalised(text) or text


def _drawn(prompt: str, shares: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    position, edge = int.from_bytes(digest[:8]) / 2**64, 0.0
    for name, share in shares.items():
        edge += share
        if position < edge:
            return name
    return list(shares)[-1]  # rounding can leave the sum just below 1


def _is_on(sides: Mapping[str, str], name: str) -> Callable[[Prompt], bool]:
    return lambda prompt: sides[prompt.id] == name


def _keep(dataset: Dataset, fits: Callable[[Prompt], bool], part: str) -> Dataset:
    def kept(rows: Sequence[Judged]) -> tuple[Judged, ...]:
        return tuple(row for row in rows if fits(row.prompt))

    return replace(
        dataset,
        name=f"{dataset.name}[{part}]" if part else dataset.name,
        prompts=tuple(prompt for prompt in dataset.prompts if fits(prompt)),
        demonstrations=kept(dataset.demonstrations),
        comparisons=kept(dataset.comparisons),
        labels=kept(dataset.labels),
        verdicts=kept(dataset.verdicts),
        ratings=kept(dataset.ratings),
        bad_rows=() if part else dataset.bad_rows,
    )


def _as_set(choice: Choice) -> set[str] | None:
    return None if choice is None else {choice} if isinstance(choice, str) else set(choice)


def _merged_provenance(datasets: Sequence[Dataset]) -> dict[str, object]:
    files = [file for each in datasets for file in each.provenance.get("files", ())]
    repeated = sum(each.provenance.get("repeated_prompts", 0) for each in datasets)
    return summed(files) | {"repeated_prompts": repeated, "sources": [each.name for each in datasets]}


def first_prompts(dataset: Dataset, count: int) -> Dataset:
    """The rows of about `count` prompts, equally many of each kind."""
    kinds: dict[str, list[Prompt]] = {}
    for prompt in dataset.prompts:
        kinds.setdefault(str(prompt.tags.get("kind", "")), []).append(prompt)
    chosen = {prompt.id for group in kinds.values() for prompt in group[: max(1, count // len(kinds))]}
    rows: dict[str, Any] = {name: tuple(x for x in getattr(dataset, name) if x.prompt.id in chosen) for name in ROWS}
    return Dataset(name=dataset.name, prompts=tuple(p for p in dataset.prompts if p.id in chosen), **rows)


def without_splits(dataset: Dataset) -> Dataset:
    """The same rows with prompts that name no split, so that they can be split anew."""
    bare: dict[str, Prompt] = {}

    def strip(prompt: Prompt) -> Prompt:
        tags = {key: value for key, value in prompt.tags.items() if key != "split"}
        return bare.setdefault(prompt.id, replace(prompt, tags=tags))

    rows: dict[str, Any] = {
        name: tuple(replace(x, prompt=strip(x.prompt)) for x in getattr(dataset, name)) for name in ROWS
    }
    return Dataset(name=dataset.name, prompts=tuple(strip(p) for p in dataset.prompts), **rows)


def with_cut_responses(dataset: Dataset) -> Dataset:
    """The labels once more on responses that end early: after the first sentence, or somewhere among the words.

    What begins to do harm is unsafe, and what begins harmlessly safe, wherever it stops. Without such rows a cost
    takes short and finished responses for safe ones, because those that a small model made are mostly neither; and a
    policy finds that out before it finds anything better.
    """
    cut = [
        replace(label, response=shorter, origin=Origin(kind="rule", name="cut"))
        for label in dataset.labels
        for shorter in [_cut(label)]
        if shorter and shorter != label.response
    ]
    return replace(dataset, labels=(*dataset.labels, *cut))


def _cut(label: SafetyLabel) -> str:
    draw = random.Random(f"{label.prompt.id}/{label.response}")
    sentence = re.match(r"\s*\S.*?[.!?](?=\s)", label.response, re.DOTALL)
    if sentence and draw.random() < 0.5:
        return sentence[0]
    words = re.findall(r"\s*\S+", label.response)
    return "".join(words[: round(len(words) * draw.uniform(0.3, 0.9))])
