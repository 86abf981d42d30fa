"""Published feedback by use: what is learned from, trained on and judged by; every question is on one side only.

    train   helpful and cost feedback, noisy pairs, prompts of the policy
    judge   feedback of the judges alone: of help, and of compliance by people's labels
    words   feedback of the second judge of compliance, which reads words
    test    what accuracies are measured on, people's verdicts that validate the judge, and the prompts of the verdict

AdvBench stands on the test side as a whole; a third of XSTest's prompts do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import Any

from poise.data import first_prompts, load, merge, select
from poise.data.lint_checks import normalised
from poise.data.splits import split_together
from poise.feedback.compliance_rows import FEATURES, WORDS, people_sets, require_apart, said_by_people
from poise.feedback.demonstrations import safe_demonstrations
from poise.feedback.groups import may_harm
from poise.feedback.rules import is_refusal
from poise.types import Comparison, Dataset, Demonstration, Origin, Prompt, SafetyLabel

Sides = Mapping[str, Dataset]

SOURCES = {  # name -> what is loaded; those first whose sides matter most
    "advbench": "advbench",
    "xstest": "xstest:completions",
    "redteam": "safety-tuned-llamas",
    "pku": "pku-safety-pairs",
    "helpful": "hh-rlhf:helpful",
    "harmless": "hh-rlhf:harmless",
    "instructions": "instructions:alpaca+instructions:self-instruct",
    "starter": "starter",
}
SHARES = {"train": 0.5, "judge": 0.25, "test": 0.25}
OWN_SHARES = {
    "advbench": {"test": 1.0},
    "xstest": {"train": 0.4, FEATURES: 0.125, WORDS: 0.125, "test": 0.35},
    "helpful": {"train": 0.55, "judge": 0.2, "test": 0.25},
    "starter": {"train": 1.0},
}
MOST_ROWS = {"redteam": 1400, "harmless": 400, "instructions": 400}  # time, not virtue, sets these
# Lists whose every request is harmful; those of unsafe household advice and of PKU hold much that nobody should refuse.
MALICIOUS = ("I-MaliciousInstructions", "I-Controversial")
PHYSICAL = ("I-PhysicalSafetySafe",)
PAIRS_OF_A_PROMPT = 2  # of PKU, whose 742 prompts have up to 40 pairs each
DECLINES = re.compile(r"\b(can(no|')t|won't|will not|not able to|unable to)\b", re.IGNORECASE)
TURNS = re.compile(r"\bhave (the )?(personal|access|capab|abil)|\bhowever\b", re.IGNORECASE)
VALIDATED = 24  # prompts of each kind on which the policy that is kept is chosen
FURTHER = 400  # harmless prompts of either kind that are imitated besides those that the policy is asked
LONGEST_PROMPT = 40  # words of a prompt that the policy answers
TOO_NEAR = 0.5  # share of content words that a training prompt may have in common with an evaluated one


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRows:
    """All rows by use and side."""

    helpful: Sides  # train, judge, test: which answer helps more
    look_alikes: Sides  # train, judge, test: on XSTest's safe prompts an answer helps more than a refusal
    cost: Sides  # train, test: labels that people or clear sources support
    noisy: Sides  # train, test: pairs and flags as they were published
    verdicts: Sides  # judge, words, test: people's labels, whose `safe` says that the answer declines
    partial: tuple[SafetyLabel, ...]  # test: what people called a partial refusal; nobody's right answer
    demonstrations: tuple[Demonstration, ...]  # train: refusals of harmful prompts
    policy_prompts: tuple[Prompt, ...]
    further_prompts: tuple[Prompt, ...]  # train: harmless ones besides, that the start model's own answers are shown to
    validation: tuple[Prompt, ...]  # train, and never trained on: what the kept policy is chosen on
    evaluation: tuple[Prompt, ...]
    provenance: Mapping[str, object]

    def prompts_by_side(self) -> dict[str, list[Prompt]]:
        """Every prompt that is used, under its side."""
        imitated = [row.prompt for row in self.demonstrations]
        sides: dict[str, list[Prompt]] = {
            "train": [*self.policy_prompts, *imitated],
            FEATURES: [],
            WORDS: [],
            "test": [],
        }
        sides["train"] += (*self.further_prompts, *self.validation)
        sides["test"] += self.evaluation
        for uses in (self.helpful, self.look_alikes, self.cost, self.noisy, self.verdicts):
            for side, dataset in uses.items():
                sides[side] += [row.prompt for row in dataset.comparisons] + [row.prompt for row in dataset.labels]
        return sides

    def helpful_pairs(self) -> tuple[Comparison, ...]:
        """What the judge of help learns from: pairs on the side of the judges."""
        own = self.helpful["judge"].comparisons
        return (*own, *(row for side in (FEATURES, WORDS) for row in self.look_alikes[side].comparisons))

    def require_independent_verdict(self) -> None:
        """Raise DataError if a judge of compliance learned from a rule's label, or knows a question of another use."""
        sides = self.prompts_by_side()
        learned = [(row.prompt, row.response) for row in self.cost["train"].labels]
        learned += [(row.prompt, row.response) for row in self.demonstrations]
        judged_by = [label for side in (FEATURES, WORDS) for label in self.verdicts[side].labels]
        require_apart(judged_by, rows=learned, prompts=(*sides["train"], *sides["test"]))

    def validation_apart(self) -> PublishedRows:
        """The same without the prompts of validation in what signal and policy learn from."""
        chosen = {prompt.id for prompt in self.validation}

        def kept(sides: Sides) -> Sides:
            own = sides["train"]
            comparisons = tuple(row for row in own.comparisons if row.prompt.id not in chosen)
            labels = tuple(row for row in own.labels if row.prompt.id not in chosen)
            return {**sides, "train": replace(own, comparisons=comparisons, labels=labels)}

        return replace(
            self,
            helpful=kept(self.helpful),
            look_alikes=kept(self.look_alikes),
            cost=kept(self.cost),
            noisy=kept(self.noisy),
            demonstrations=tuple(row for row in self.demonstrations if row.prompt.id not in chosen),
        )


def published_rows(*, evaluated: int, trained: int) -> PublishedRows:
    """Load the published sets from the folder that POISE_DATA names.

    evaluated, trained  how many prompts of each kind are answered for the verdict, and in all by the policy in training
    """
    people, sides_of_people = people_sets()
    own = {name: _first_rows(load(source), MOST_ROWS.get(name)) for name, source in SOURCES.items()}
    first = {name: own.pop(name) for name in ("advbench", "xstest")}
    loaded = {**first, **people, **own}
    parts = split_together(loaded, {name: OWN_SHARES.get(name, SHARES) for name in loaded} | sides_of_people)
    xstest, redteam, instructions = parts["xstest"], parts["redteam"], parts["instructions"]
    pku = {side: _few_pairs(part) for side, part in parts["pku"].items()}
    evaluation = _evaluated(parts, evaluated)
    asked, further, validation = _trained(parts, trained, evaluation)
    cost = {
        side: [
            *redteam[side].labels,
            *xstest[side].labels,
            *_harmless(_of_kind(xstest[side], "look_alike")),
            *_harmless(instructions[side].demonstrations),
            *_preferred(parts["helpful"][side]),
            *(label for label in pku[side].labels if not label.safe),
        ]
        for side in ("train", "test")
    }
    verdicts = {
        side: [
            # a question of both sets of people's labels stands with the first: no judge learns from the other's source
            *(row for name in people if side in ("test", *sides_of_people[name]) for row in parts[name][side].labels),
            *said_by_people(xstest[side].demonstrations, SOURCES["xstest"], "12"),
        ]
        for side in (FEATURES, WORDS, "test")
    }
    return PublishedRows(
        helpful=parts["helpful"],
        look_alikes={side: _answers_beat_refusals(part) for side, part in xstest.items()},
        cost={side: Dataset(name="cost", labels=tuple(labels)) for side, labels in cost.items()},
        noisy={side: merge([pku[side], parts["harmless"][side]], name="noisy") for side in ("train", "test")},
        verdicts={side: Dataset(name="verdicts", labels=tuple(labels)) for side, labels in verdicts.items()},
        partial=said_by_people(xstest["test"].demonstrations, SOURCES["xstest"], "3"),
        demonstrations=_refusals(xstest["train"], redteam["train"]),
        policy_prompts=asked,
        further_prompts=further,
        validation=validation,
        evaluation=evaluation,
        provenance=merge(list(loaded.values())).provenance,
    ).validation_apart()


def starter_rows(*, evaluated: int, trained: int) -> PublishedRows:
    """The same from the starter set, whose own flags stand for people's verdicts: for a smoke test without data."""
    starter = load("starter")
    sides = {side: select(starter, split=side) for side in SHARES}

    def rows(side: str, **chosen: Any) -> Dataset:
        return first_prompts(select(sides[side], **chosen), trained)

    def flagged(side: str) -> tuple[SafetyLabel, ...]:
        return rows(side, kind="harmful").labels

    learned = flagged("judge")
    half = {prompt: number % 2 for number, prompt in enumerate(dict.fromkeys(label.prompt.id for label in learned))}
    parts = {
        side: [label for label in learned if half[label.prompt.id] == n] for n, side in enumerate((FEATURES, WORDS))
    }
    helpful = {side: _comparisons(rows(side, criterion="helpful", kind=("benign", "harmful"))) for side in sides}
    of_words = {label.prompt.id for label in parts[WORDS]}
    own = tuple(row for row in helpful["judge"].comparisons if row.prompt.id not in of_words)
    return PublishedRows(
        helpful=helpful | {"judge": replace(helpful["judge"], comparisons=own)},
        look_alikes={side: _comparisons(rows(side, criterion="helpful", kind="look_alike")) for side in sides}
        | {WORDS: Dataset(name="none")},
        cost={side: Dataset(name="cost", labels=rows(side).labels) for side in ("train", "test")},
        noisy={side: rows(side, criterion="safe") for side in ("train", "test")},
        verdicts={
            side: Dataset(name="verdicts", labels=tuple(labels))
            for side, labels in {**parts, "test": flagged("test")}.items()
        },
        partial=(),
        demonstrations=tuple(row for row in safe_demonstrations(rows("train")) if may_harm(row.prompt)),
        policy_prompts=rows("train").prompts,
        further_prompts=(),
        validation=tuple(
            prompt
            for prompt in first_prompts(sides["train"], trained + 3 * evaluated).prompts
            if prompt.id not in {own.id for own in rows("train").prompts}
        ),
        evaluation=first_prompts(sides["test"], 3 * evaluated).prompts,
        provenance=starter.provenance,
    ).validation_apart()


def _first_rows(dataset: Dataset, most: int | None) -> Dataset:
    """At most so many rows of each sort, chosen by the hash that a prompt's id is; all prompts stay."""
    chosen: dict[str, Any] = {
        name: tuple(sorted(getattr(dataset, name), key=lambda row: row.prompt.id)[:most])
        for name in ("demonstrations", "comparisons", "labels")
    }
    return replace(dataset, **chosen)


def _few_pairs(dataset: Dataset) -> Dataset:
    """The first distinct pairs of every prompt, and the labels of their responses."""
    pairs: dict[str, dict[tuple[str, ...], Comparison]] = {}
    for row in dataset.comparisons:
        of_prompt = pairs.setdefault(row.prompt.id, {})
        if len(of_prompt) < PAIRS_OF_A_PROMPT:
            of_prompt.setdefault(row.responses, row)
    kept = tuple(row for of_prompt in pairs.values() for row in of_prompt.values())
    known = {(row.prompt.id, response) for row in kept for response in row.responses}
    labels = tuple(label for label in dataset.labels if (label.prompt.id, label.response) in known)
    return replace(dataset, comparisons=kept, labels=labels)


def _comparisons(dataset: Dataset) -> Dataset:
    return Dataset(name=dataset.name, comparisons=dataset.comparisons)


def _of_kind(dataset: Dataset, kind: str) -> list[Demonstration]:
    return [row for row in dataset.demonstrations if row.prompt.tags.get("kind") == kind]


def _harmless(rows: Iterable[Demonstration]) -> list[SafetyLabel]:
    """Whatever a model said to a question that its authors wrote to be harmless."""
    return [_label(row, declined=True) for row in rows]


def _preferred(helpful: Dataset) -> list[SafetyLabel]:
    """The answers that people found more helpful, to questions that were collected for help."""
    return [
        SafetyLabel(prompt=row.prompt, response=row.responses[row.winner], safe=True, origin=row.origin)
        for row in helpful.comparisons
        if row.winner is not None
    ]


def _label(row: Demonstration, *, declined: bool) -> SafetyLabel:
    return SafetyLabel(prompt=row.prompt, response=row.response, safe=declined, origin=Origin(name=_source(row.prompt)))


def _source(prompt: Prompt) -> str:
    return str(prompt.tags.get("source", ""))


def _answers_beat_refusals(xstest: Dataset) -> Dataset:
    """On a prompt that only looks harmful, each full refusal beside a full compliance: people's verdicts as pairs."""
    said: dict[str, dict[str, list[Demonstration]]] = {}
    for row in _of_kind(xstest, "look_alike"):
        said.setdefault(row.prompt.id, {}).setdefault(row.prompt.tags["final_label"][0], []).append(row)
    pairs = [
        Comparison(
            prompt=good.prompt,
            responses=(good.response, bad.response),
            winner=0,
            origin=Origin(kind="human", name="xstest"),
        )
        for verdicts in said.values()
        for good in verdicts.get("1", ())
        for bad in verdicts.get("2", ())
    ]
    return Dataset(name="look_alikes", comparisons=tuple(pairs))


def _refusals(xstest: Dataset, redteam: Dataset) -> tuple[Demonstration, ...]:
    """Plain refusals by turns: of XSTest's harmful prompts, with which its safe ones contrast, and of requests."""
    full = [row for row in _of_kind(xstest, "harmful") if row.prompt.tags["final_label"].startswith("2")]
    turns = zip_longest(*([row for row in rows if _declines(row.response)] for rows in (full, redteam.demonstrations)))
    return tuple(
        Demonstration(prompt=_tagged(row.prompt, "harmful"), response=row.response.strip())
        for turn in turns
        for row in turn
        if row is not None
    )


def _declines(response: str) -> bool:
    """Whether an answer begins by declining and does not go on to answer.

    "As an AI language model, I do not have opinions. However, ..." teaches to begin with a refusal and to go on.
    """
    begins = DECLINES.search(response[:90]) is not None
    return begins and TURNS.search(response[:160]) is None and is_refusal(response)


def _evaluated(parts: Mapping[str, Sides], count: int) -> tuple[Prompt, ...]:
    """`count` prompts of each kind from the test side: AdvBench, XSTest's safe half, and plain questions."""
    test = {name: sides["test"] for name, sides in parts.items()}
    groups: dict[str, list[list[Prompt]]] = {
        "harmful": [_short(test["advbench"].prompts)],
        "look_alike": [_short(_prompts_of_kind(test["xstest"], "look_alike"))],
        "benign": [_short(_asked(test[name])) for name in ("helpful", "instructions")],
    }
    return tuple(_tagged(prompt, kind) for kind, each in groups.items() for prompt in _in_turn(each, count))


def _trained(
    parts: Mapping[str, Sides], count: int, evaluation: Sequence[Prompt]
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...], tuple[Prompt, ...]]:
    """What the policy is asked, half harmful, a quarter look-alikes and plain questions; harmless ones besides; and
    prompts of every kind, never trained on, to choose the policy by.

    None is near an evaluated prompt. The starter set gives harmless prompts alone: XSTest's train side has few.
    """
    train = {name: sides["train"] for name, sides in parts.items()}
    evaluated = [_content_words(prompt) for prompt in evaluation]
    malicious, advice = (_listed(train["redteam"], names) for names in (MALICIOUS, PHYSICAL))
    declined = [row.prompt for row in train["redteam"].demonstrations if _declines(row.response)]
    xstest = {kind: _prompts_of_kind(train["xstest"], kind) for kind in ("harmful", "look_alike")}
    starter = {kind: _prompts_of_kind(train["starter"], kind) for kind in ("look_alike", "benign")}
    plain = [*(_asked(train[name]) for name in ("helpful", "instructions")), advice, starter["benign"]]
    groups: dict[str, tuple[list[list[Prompt]], int, int]] = {  # where from, how many are asked, how many besides
        "harmful": ([malicious, xstest["harmful"], declined], count // 2, 0),
        "look_alike": ([xstest["look_alike"], starter["look_alike"]], count // 4, FURTHER),
        "benign": (plain, count // 4, FURTHER),
    }
    asked: list[Prompt] = []
    besides: list[Prompt] = []
    validation: list[Prompt] = []
    for kind, (each, own, more) in groups.items():
        found = _in_turn([_far(_short(prompts), evaluated) for prompts in each], VALIDATED + own + more)
        tagged = [_tagged(prompt, kind) for prompt in found]
        asked += tagged[:own]
        validation += tagged[own : own + VALIDATED]
        besides += tagged[own + VALIDATED :]
    return tuple(asked), tuple(besides), tuple(validation)


def _listed(redteam: Dataset, names: Sequence[str]) -> list[Prompt]:
    """The prompts of evaluation lists of Safety-Tuned LLaMAs."""
    return [prompt for prompt in redteam.prompts if prompt.tags.get("list") in names]


def _prompts_of_kind(dataset: Dataset, kind: str) -> list[Prompt]:
    return [prompt for prompt in dataset.prompts if prompt.tags.get("kind") == kind]


def _asked(dataset: Dataset) -> list[Prompt]:
    """The prompts of the rows that were kept."""
    asked = [row.prompt for row in dataset.demonstrations] + [row.prompt for row in dataset.comparisons]
    return list({prompt.id: prompt for prompt in asked}.values())


def _short(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Single questions of few words, in the order of their ids, which is random and always the same."""
    fit = (p for p in prompts if len(p.messages) == 1 and len(p.text.split()) <= LONGEST_PROMPT)
    return sorted(fit, key=lambda prompt: prompt.id)


def _in_turn(groups: Sequence[Sequence[Prompt]], count: int) -> list[Prompt]:
    """The first `count` prompts when groups take turns."""
    turns: Iterable[tuple[Prompt | None, ...]] = zip_longest(*groups)
    found = (prompt for turn in turns for prompt in turn if prompt is not None)
    return list(islice(found, count))


def _tagged(prompt: Prompt, kind: str) -> Prompt:
    return replace(prompt, tags={"source": _source(prompt), "kind": kind})


def _far(prompts: Iterable[Prompt], others: Sequence[frozenset[str]]) -> list[Prompt]:
    """The prompts that share less than `TOO_NEAR` of all content words with each of the others."""

    def is_near(words: frozenset[str]) -> bool:
        return any(len(words & other) >= TOO_NEAR * len(words | other) for other in others)

    return [prompt for prompt in prompts if not is_near(_content_words(prompt))]


def _content_words(prompt: Prompt) -> frozenset[str]:
    return frozenset(word for word in normalised(prompt.text).split() if len(word) > 3)
