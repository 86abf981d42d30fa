"""Rounds of feedback: answers of the current policy to new prompts, judged on each criterion apart; then all again.

    round k: policy k-1 -> align under the limits of signal k -> policy k -> its answers to prompts held out for round k
             -> annotators -> signal k measured on them -> signal k+1, which learns from everything gathered so far

Prompts that are held out for rounds teach nothing before their round: neither the SFT start nor any score model. Every
round goes on from the policy of the round before; the reference of the KL penalty stays the start of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poise.data import load, merge, with_cut_responses
from poise.data.rollouts import read_comparison, read_label
from poise.errors import ConfigError, DataError, FeedbackError
from poise.evaluate.suite import SuiteResult
from poise.feedback.annotators import ErringAnnotator, RecordedAnnotator, RuleAnnotator, ScoreAnnotator
from poise.files import atomic_write, json_line, read_jsonl_tolerant, to_jsonable
from poise.models.channels import COST, REWARD
from poise.models.policy import Policy
from poise.pipeline.alignment import FILLED, align
from poise.pipeline.limits import under_limits
from poise.pipeline.safety import Material, calibrations_of, held_limits, known_prompts, unseen_accuracy
from poise.pipeline.scores import TrainedScoreModel, fit_scores
from poise.plan.work import CHARACTERS_PER_TOKEN, Planner, current_planner
from poise.ranks import by_main, current
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.limit_text import LimitText, group_named
from poise.train.objectives import Objective
from poise.train.score_model import evaluate_scores
from poise.train.sharding import shard_engine
from poise.train.validation import Validation
from poise.types import Annotator, Comparison, Completion, Dataset, Engine, Estimate, Prompt, SafetyLabel, Sampling

ANNOTATORS = (RuleAnnotator("helpful"), RuleAnnotator("safe"))
ANSWERS = 4  # to each prompt that annotators are asked about: two pairs
PERSON = "person"  # before the flip rate of a simulated person: person:0.1
FLIP_RATE = 0.1
_PERSON_DEPTH = 0.6  # neither the signal's nor the judge's
ASKED = "asked.jsonl"  # of a stage: the responses that are to be compared
TO_JUDGE = "to-judge.jsonl"  # those that people have not judged yet, for them to fill in
_BLANKS = ("better_response_id", "safer_response_id", "is_response_0_safe", "is_response_1_safe")
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".gz")

RedTeam = Callable[[Run, Policy, int], Sequence[Prompt]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: its training signal, and what annotators said of its policy's answers.

    gathered  comparisons and labels of the policy's answers to prompts that nothing had learned from
    accuracy  of this round's signal on them, by the names of `evaluate_scores`
    judged    what its policy answers to test prompts; None where nobody asked
    """

    number: int
    signal: TrainedScoreModel
    gathered: Dataset
    accuracy: Mapping[str, Estimate]
    judged: SuiteResult | None = None


def align_in_rounds(
    run: Run,
    policy: Policy,
    material: Material,
    signal: TrainedScoreModel,
    *,
    objective: Callable[[], Objective] | Sequence[LimitText],
    sampling: Sampling,
    rounds: int = 1,
    annotators: Sequence[Annotator] = ANNOTATORS,
    red_team: RedTeam | None = None,
    judged: Mapping[str, Any] | None = None,
    seed: int = 0,
    validate_every: int = 0,
    **options: Any,
) -> tuple[Round, ...]:
    """Reinforcement learning in rounds of feedback; returns every round, the last with the signal of the policy.

    objective       a fresh one for each round, or the limits under which the reward is maximised
    annotators      one or more for each criterion; they are asked after every round for which prompts are held out
    red_team        further prompts to ask about after a round, found against its policy; keep them in a stage
    judged          arguments of `Material.evaluated`, which measures the policy of each round by its own signal
    validate_every  updates between checks of these limits on the judge's prompts, which neither policy nor signal learn
                    from; the policy that is kept is chosen there. 0: it is not
    options         further arguments of `align`

    A policy is trained on the prompts of the first round and on those of the rounds before it.
    """
    prompts, done = list(material.train_prompts), list[Round]()
    limits = () if callable(objective) else tuple(objective)
    for number in range(1, rounds + 1):
        if number > 1:
            gathered = [each.gathered for each in done]
            signal = material.signal(run, gathered=gathered, name=f"scores-{number}")
            prompts += gathered[-1].prompts
        if limits:
            limits = held_limits(limits, signal)
            run.record_reading("limits", [each.record() for each in limits])
            options["validate"] = validation_of(limits, signal, material, every=validate_every)
        wanted = objective() if callable(objective) else under_limits(limits, calibrations_of(signal.model))
        options |= {"objective": wanted, "sampling": sampling, "seed": seed + number}
        align(run, policy, material.scorers(signal, limits), prompts, name=f"policy-{number}", **options)
        name = "evaluate" if number == rounds else f"evaluate-{number}"
        result = None if judged is None else material.evaluated(run, policy, name=name, **{**judged, "signal": signal})
        asked = [*material.asked_after(number), *(red_team(run, policy, number) if red_team else ())]
        drawn = replace(sampling, temperature=1.0, seed=seed + number)
        found = _gathered(run, policy, material, asked, annotators, drawn, f"annotations-{number}")
        accuracy = _on_answers(signal, found)
        done.append(Round(number=number, signal=signal, gathered=found, accuracy=accuracy, judged=result))
    return tuple(done)


def validation_of(
    limits: Sequence[LimitText], signal: TrainedScoreModel, material: Material, *, every: int
) -> Validation | None:
    """Checks of the limits, without a margin, on prompts that neither policy nor signal learn from.

    None where none are wanted, or a limit speaks of prompts of which there are none.
    """
    prompts = known_prompts(material.splits["judge"]) if "judge" in material.splits else ()
    groups = [group_named(each.group) for each in limits if each.group]
    if not every or not prompts or not all(any(map(group.contains, prompts)) for group in groups):
        return None
    meant = under_limits([replace(each, margin=0.0) for each in limits], calibrations_of(signal.model)).limits
    return Validation(prompts=prompts, every=every, limits=meant)


def collect_comparisons(
    run: Run,
    policy: Policy,
    prompts: Sequence[Prompt],
    annotators: Sequence[Annotator],
    *,
    sampling: Sampling = Sampling(),
    engine: Engine | None = None,
    name: str = "annotations",
    answers: int = 2,
) -> Dataset:
    """Sample responses to each prompt and have every annotator compare them two by two.

    answers  to each prompt, an even number: every one stands in one pair, but for equal and empty ones

    What is said of a response alone (`safe`) becomes a `SafetyLabel`, apart from the comparisons. The stage keeps the
    pairs in asked.jsonl before anybody is asked, and then what was said: a resumed run samples and asks nothing twice.
    """
    if (planner := current_planner()) is not None:
        _plan(planner, planner.named(run, name), prompts, answers, sampling.max_tokens)
        return _expected(prompts, answers, sampling.max_tokens, name)
    stage = run.stage(name)
    if not stage.finished:
        rows, known = stage.path / ASKED, {prompt.id: prompt for prompt in prompts}
        if not current().broadcast_object(rows.exists()):
            answering = shard_engine(engine or NativeEngine(policy))
            write_asked(rows, prompts, answering.generate(prompts, replace(sampling, samples=answers)))
        asked = [(known[row["id"]], row["responses"]) for row in read_jsonl_tolerant(rows)]
        _require_verdicts(stage.path / TO_JUDGE, asked, annotators)
        compared, labels = _decoupled([each.compare(*question) for question in asked for each in annotators])
        left_out = answers // 2 * len(prompts) - len(asked)
        stage.finish({"rows": to_jsonable(compared), "labels": to_jsonable(labels), "left_out": left_out})
    return Dataset(
        name=name,
        prompts=tuple(prompts),
        comparisons=tuple(map(read_comparison, stage.result["rows"])),
        labels=tuple(map(read_label, stage.result["labels"])),
        provenance={"pairs_left_out": stage.result["left_out"]},
    )


@by_main
def write_asked(path: Path, prompts: Sequence[Prompt], made: Sequence[Completion]) -> None:
    """The pairs that annotators are to compare, a line each; responses of one prompt are adjacent in `made`."""
    texts = ["" if completion.unfit else completion.text for completion in made]
    answers = len(made) // len(prompts)
    rows = [
        {"prompt": prompt.messages, "id": prompt.id, "responses": pair}
        for place, prompt in enumerate(prompts)
        for pair in _pairs(texts[answers * place : answers * (place + 1)])
    ]
    atomic_write(path, b"".join(json_line(to_jsonable(row)) for row in rows))


def _require_verdicts(
    path: Path, asked: Sequence[tuple[Prompt, Sequence[str]]], annotators: Sequence[Annotator]
) -> None:
    """Write the pairs that people have yet to judge, in the columns of PKU-SafeRLHF, and raise FeedbackError if any."""
    people = [each for each in annotators if isinstance(each, RecordedAnnotator)]
    missing = [question for question in asked if not all(each.knows(*question) for each in people)]
    if not missing:
        return
    rows = [
        {"prompt": prompt.text if len(prompt.messages) == 1 else prompt.messages, "response_0": pair[0]}
        | {"response_1": pair[1], **dict.fromkeys(_BLANKS)}
        for prompt, pair in missing
    ]
    by_main(atomic_write)(path, b"".join(json_line(to_jsonable(row)) for row in rows))
    raise FeedbackError(
        f"{len(missing)} of {len(asked)} pairs are to be judged by people: {path} has them. Fill in better_response_id "
        "and safer_response_id (0, 1, or null where neither is) and is_response_0_safe and is_response_1_safe (true or "
        f"false), add the rows to {people[0].name}, and repeat the command: it goes on from there"
    )


def _plan(planner: Planner, name: str, prompts: Sequence[Prompt], answers: int, longest: int) -> None:
    """Sampling alone: nobody knows how long annotators take."""
    number = answers * len(prompts)
    context = planner.tokens.template + planner.tokens.mean([prompt.text for prompt in prompts]) + longest * FILLED
    memory = planner.compute.generating(number, context=context)
    seconds = planner.compute.decoding(number, longest, context=context)
    planner.add(name, seconds=seconds, memory=memory, work=f"{number} answers, compared")


def _expected(prompts: Sequence[Prompt], answers: int, longest: int, name: str) -> Dataset:
    """Judgements as many and as long as there may be, for the plan of what learns from them."""
    told = [(prompt, f"{number} ".ljust(round(longest * FILLED * CHARACTERS_PER_TOKEN), "x"))
            for prompt in prompts for number in range(answers)]  # fmt: skip
    labels = tuple(SafetyLabel(prompt=prompt, response=text, safe=True) for prompt, text in told)
    return Dataset(name=name, prompts=tuple(prompts), labels=labels)


def annotators_named(run: Run, text: str, material: Material, *, seed: int = 0) -> tuple[Annotator, ...]:
    """Who is asked in rounds: `rule`, `person` or `person:0.2` (a simulated one), or a file of what people said.

    A simulated person is a score model of its own, which learned what the data say of the prompts held out for rounds,
    which nothing else learns from; a stated share of its verdicts is turned around, on both criteria.
    """
    if text == "rule":
        return ANNOTATORS
    if (rate := flip_rate_of(text)) is None:
        judged = replace(load(text), name=text) if Path(text).exists() else Dataset(name=text)
        run.record_reading("annotator", {"file": text, **judged.provenance})  # it grows from round to round
        return RecordedAnnotator(judged, "helpful"), RecordedAnnotator(judged, "safe")
    own, spec = with_cut_responses(merge(material.held_for_rounds, name="person")), material.signal_spec
    spec = replace(spec, depth=_PERSON_DEPTH, seed=spec.seed + 2000, calibrated=0.0, channels=(REWARD, COST))

    def measure(model: Any) -> Mapping[str, Estimate]:
        return unseen_accuracy(model, material.splits["test"])

    person = fit_scores(run, material.backbone, own, spec, measure=measure, name=PERSON, cache=material.cache).model
    return tuple(
        ErringAnnotator(ScoreAnnotator(person, criterion), flip_rate=rate, seed=seed)
        for criterion in ("helpful", "safe")
    )


def require_annotator(text: str, *, rounds: int) -> None:
    """Raise ConfigError unless `annotators_named` knows who that is, and there are rounds to ask them in."""
    is_file = Path(text).exists() or text.endswith(_FILES)
    if text != "rule" and flip_rate_of(text) is None and not is_file:
        raise ConfigError(
            f"annotator is {text!r}: give rule, {PERSON} (who errs in {FLIP_RATE:.0%} of verdicts), {PERSON}:0.2, or "
            "the path of a file of what people say (.jsonl), which may not be there yet"
        )
    if text != "rule" and rounds < 2:
        raise ConfigError(f"annotator is {text!r}, but nobody is asked in one round: give --rounds 2 or more")


def flip_rate_of(text: str) -> float | None:
    """How often a simulated person errs; None where the text names none.

    >>> flip_rate_of("person"), flip_rate_of("person:0.25"), flip_rate_of("rule")
    (0.1, 0.25, None)
    """
    name, colon, rate = text.partition(":")
    if name != PERSON:
        return None
    try:
        found = float(rate) if colon else FLIP_RATE
    except ValueError:
        found = -1.0
    if not 0 <= found < 0.5:
        raise ConfigError(f"annotator is {text!r}: the share of verdicts that are wrong lies from 0 to below 0.5")
    return found


def _gathered(
    run: Run,
    policy: Policy,
    material: Material,
    asked: Sequence[Prompt],
    annotators: Sequence[Annotator],
    sampling: Sampling,
    name: str,
) -> Dataset:
    """What is said of the policy's answers to new prompts, none of which stands on the sides of judge and test."""
    if not asked:
        return Dataset(name=name)
    outside = {prompt.id for side in ("judge", "test") for prompt in material.outside(side)}
    if mixed := [prompt.id for prompt in asked if prompt.id in outside]:
        raise DataError(
            f"{name}: {len(mixed)} of {len(asked)} prompts to be asked about are prompts of the judge or of the test, "
            f"such as {mixed[0]}: what measures a policy must not teach it. Leave them out"
        )
    return collect_comparisons(run, policy, asked, annotators, sampling=sampling, name=name, answers=ANSWERS)


def _on_answers(signal: TrainedScoreModel, found: Dataset) -> dict[str, Estimate]:
    """How often the signal agrees with the annotators on answers that it has not learned from."""
    if current_planner() is not None or not (found.comparisons or found.labels):
        return {}
    channels = {name for channel in signal.model.channels for name in channel.criteria}
    known = [row for row in found.comparisons if row.criterion in channels]
    reads = any(channel.higher_is_worse for channel in signal.model.channels)
    return evaluate_scores(signal.model, known, found.labels if reads else ()) if known else {}


def _pairs(texts: Sequence[str]) -> list[list[str]]:
    """Different responses two by two, each in one pair."""
    distinct = [text for text in dict.fromkeys(texts) if text]
    return [list(pair) for pair in zip(distinct[::2], distinct[1::2], strict=False)]


def _decoupled(verdicts: Sequence[Comparison]) -> tuple[list[Comparison], list[SafetyLabel]]:
    """Comparisons without flags, and the flags as labels of single responses."""
    labels = [
        SafetyLabel(prompt=row.prompt, response=text, safe=flag, categories=categories, origin=row.origin)
        for row in verdicts
        if row.safe is not None
        for text, flag, categories in zip(row.responses, row.safe, row.categories or ((),) * len(row.safe), strict=True)
    ]
    return [replace(row, safe=None, categories=()) for row in verdicts], labels
