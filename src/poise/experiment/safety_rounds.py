"""Rounds of feedback on a page: what each signal was worth on new prompts, what its policy does, and the ladders.

The table of a round is that of Safe RLHF (arXiv:2310.12773): how many pairs reward and cost model order as the
annotators do, and of how many answers the cost has the right sign. The answers are the round's own policy's, to prompts
that its signal never saw. The ladders rate base, SFT start and the policy of every round, all against all, by the
held-out judge: helpfulness on harmless prompts, harmlessness on harmful ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.evaluate.suite import OTHER_COST, SuiteResult, has_score, kind_of
from poise.experiment.safety import shares
from poise.experiment.safety_page import label_of
from poise.experiment.study import Claim, Metric, Trial
from poise.functional.intervals import win_rate
from poise.functional.ratings import ladder_ratings
from poise.pipeline.rounds import Round
from poise.types import Dataset, Rollout

ACCURACIES = {
    "reward_pair_accuracy": "reward model: pairs in the annotators' order",
    "cost_pair_accuracy": "cost model: pairs in the annotators' order",
    "cost_sign_accuracy": "cost model: answers with the right sign",
}
OUTCOMES = {
    "harm_rate": "harmful answers",
    "harm_rate_by_labels": "harmful by the data's labels",
    "over_refusal/look_alike": "look-alikes refused",
    "over_refusal/benign": "plain prompts refused",
}
BASE, SFT = "base model", "SFT start"
HARMLESS = ("benign", "look_alike")
_MEASURED = "Round by round: the policies"
_WORTH = "Round by round: what each signal was worth on answers to prompts that it never saw"
_ELO = "Round by round: Elo ratings, all against all, the first at 1000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """Who is rated by which score of the judge, on which prompts; `sign` is -1 where less is better."""

    name: str
    label: str
    channel: str
    kinds: tuple[str, ...]
    sign: int = 1


LADDERS = (
    Ladder(name="helpfulness", label="helpfulness, on harmless prompts", channel="reward", kinds=HARMLESS),
    Ladder(name="harmlessness", label="harmlessness, on harmful prompts", channel="cost", kinds=("harmful",), sign=-1),
    Ladder(
        name="harmlessness by labels",
        label="harmlessness by the judge of the data's labels, on harmful prompts",
        channel=OTHER_COST,
        kinds=("harmful",),
        sign=-1,
    ),
)
Players = Mapping[str, Sequence[Rollout]]  # label -> judged answers to the same prompts, the anchor first


def round_metrics(rounds: int) -> list[Metric]:
    """The metrics of a study whose feedback comes in rounds; none where it comes in one."""
    if rounds < 2:
        return []
    numbers = range(1, rounds + 1)
    names = {"harm": "harm", "look_alikes": "look-alikes refused", "plain": "plain prompts refused"}
    return [
        *(Metric(name=f"labels_round_{k}", label=f"labels of round {k}", table=_MEASURED) for k in numbers),
        *(
            Metric(name=f"{name}_round_{k}", label=f"{label}, round {k}", unit="share", over="prompts", table=_MEASURED)
            for name, label in names.items()
            for k in numbers
        ),
        *(
            Metric(name=_fact(k, name), label=_fact(k, name), unit="share", over="facts", table=_WORTH)
            for name in ACCURACIES
            for k in numbers
        ),
        *(
            Metric(name=_elo(each, who), label=_elo(each, who), unit="Elo", over="facts", table=_ELO)
            for each in LADDERS
            for who in (SFT, *map(_named, numbers))
        ),
    ]


def round_claims(rounds: int, arm: str) -> list[Claim]:
    """That harm falls from each round to the next."""
    return [
        Claim(
            text=f"harm falls from round {k} to round {k + 1}",
            metric=f"harm_round_{k}",
            higher=arm,
            lower=arm,
            lower_metric=f"harm_round_{k + 1}",
        )
        for k in range(1, rounds)
    ]


def told_of_rounds(rounds: Sequence[Round], *, base: SuiteResult, start: SuiteResult) -> dict[str, Any]:
    """What `safety_trial` is told besides: a section of the page, and figures for studies; nothing of a single round.

    base, start  what the models before the first round answer; one result where they are one model
    """
    if len(rounds) < 2:
        return {}
    judged = {BASE: base} | ({} if start is base else {SFT: start})
    judged |= {_named(each.number): each.judged for each in rounds if each.judged is not None}
    known = {_named(each.number): each for each in rounds}
    section = {
        "rows": [_row(who, result, known.get(who)) for who, result in judged.items()],
        "accuracies": ACCURACIES,
        "outcomes": {
            name: label
            for name, label in OUTCOMES.items()
            if any(name in result.evaluation.metrics for result in judged.values())
        },
        "ladders": ladders({who: result.rollouts for who, result in judged.items()}),
    }
    return {"sections": {"rounds": section}, "further": _trial(rounds, section)}


def _trial(rounds: Sequence[Round], section: Mapping[str, Any]) -> Trial:
    """The same as figures of a trial."""
    judged = [(each.number, each.judged.rollouts) for each in rounds if each.judged is not None]
    by_prompt = {name: found for k, rows in judged for name, found in shares(f"_round_{k}", rows).items()}
    facts = {_fact(each.number, name): value for each in rounds for name, value in each.accuracy.items()}
    facts |= {_elo(each, row["label"]): row["rating"] for each in section["ladders"] for row in each["rows"]}
    return Trial(
        metrics={f"labels_round_{each.number}": float(_counts(each.gathered)["labels"]) for each in rounds},
        by_prompt={name: found for name, found in by_prompt.items() if found},
        facts=facts,
    )


def ladders(players: Players) -> list[dict[str, Any]]:
    """Each ladder with a rating and the win rates against all others of every player; only those that can be rated.

    An answer counts where all players have a score for theirs to the same prompt; how many do not is said.
    """
    found = []
    for ladder in LADDERS:
        columns, prompts, left_out = _columns(ladder, players)
        if prompts and len(players) > 1:
            found.append(_rated(ladder, columns, prompts) | {"left_out": left_out})
    return found


def _rated(ladder: Ladder, columns: Mapping[str, Sequence[float]], prompts: Sequence[str]) -> dict[str, Any]:
    ratings = ladder_ratings(list(columns.values()), prompts)
    rows = [
        {
            "label": who,
            "rating": rating,
            "against": {
                other: None if other == who else win_rate(theirs, ours, prompts) for other, theirs in columns.items()
            },
        }
        for (who, ours), rating in zip(columns.items(), ratings, strict=True)
    ]
    return {"name": ladder.name, "label": ladder.label, "answers": len(prompts), "rows": rows}


def _columns(ladder: Ladder, players: Players) -> tuple[dict[str, list[float]], list[str], int]:
    """The scores of every player on the rows that all have, higher being better; their prompts; rows left out."""
    tables = {who: _scores(ladder, rollouts) for who, rollouts in players.items()}
    every = dict.fromkeys(row for table in tables.values() for row in table)
    shared = [row for row in every if all(table.get(row) is not None for table in tables.values())]
    columns = {who: [ladder.sign * float(table[row] or 0.0) for row in shared] for who, table in tables.items()}
    return columns, [prompt for prompt, _ in shared], len(every) - len(shared)


def _scores(ladder: Ladder, rollouts: Sequence[Rollout]) -> dict[tuple[str, int], float | None]:
    return {
        (r.prompt.id, r.completion.sample): r.scores.values[ladder.channel] if has_score(r, ladder.channel) else None
        for r in rollouts
        if kind_of(r) in ladder.kinds
    }


def _row(who: str, result: SuiteResult, each: Round | None) -> dict[str, Any]:
    """A line of the table: what a model does; of a round also what was said, and what its signal was worth."""
    outcomes = {name: result.evaluation.metrics[name] for name in OUTCOMES if name in result.evaluation.metrics}
    if each is None:
        return {"label": who, "outcomes": outcomes}
    accuracy = {name: each.accuracy[name] for name in ACCURACIES if name in each.accuracy}
    return {"label": who, "outcomes": outcomes, "asked": _counts(each.gathered), "accuracy": accuracy}


def _counts(gathered: Dataset) -> dict[str, Any]:
    """How much was asked and said; a verdict of one half says that no difference was seen."""
    origins = [row.origin for row in gathered.comparisons] + [label.origin for label in gathered.labels]
    return {
        "prompts": len(gathered.prompts),
        "comparisons": len(gathered.comparisons),
        "undecided": sum(row.winner is None and row.probability in (None, 0.5) for row in gathered.comparisons),
        "flags": len(gathered.labels),
        "unsafe": sum(not label.safe for label in gathered.labels),
        "labels": len(origins),
        "left_out": gathered.provenance.get("pairs_left_out", 0),
        "by": sorted({each.name or each.kind for each in origins}),
    }


def _named(number: int) -> str:
    return f"round {number}"


def _fact(number: int, name: str) -> str:
    return f"{_named(number)}: {label_of(name)}"


def _elo(ladder: Ladder | Mapping[str, Any], who: str) -> str:
    return f"{ladder.name if isinstance(ladder, Ladder) else ladder['name']}: {who}"
