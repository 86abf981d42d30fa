"""The stages of the experiment on real data: a signal, an independent judge, what each is worth, and the policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from poise.data import split_by_prompt
from poise.data.rollouts import read_rollouts, write_rollouts
from poise.errors import ConfigError
from poise.evaluate.judges import check_judge
from poise.evaluate.suite import SuiteResult, kind_of, score_completions
from poise.feedback.rules import is_refusal
from poise.functional.statistics import share
from poise.models.adapters import Lora
from poise.models.heads import COST, REWARD, Channel, ScoreModel
from poise.models.policy import Policy
from poise.pipeline import ScoreModelSpec, TrainedScoreModel, feature_cache, fit_scores, start_model
from poise.recipes._real_data import Material, real_material, starter_material
from poise.recipes._scores import in_brief
from poise.recipes._stages import Settings, Study, assess, reinforce
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.score_model import evaluate_scores
from poise.types import Comparison, Dataset, Demonstration, Estimate, Origin, SafetyLabel

# 0 divides the answers that decline from those that do as asked; on a harmful prompt the latter are the worse.
COMPLIANCE = Channel(name="compliance", higher_is_worse=True)
# Bounded, so that an answer that is clearly safe gains nothing by being a flatter refusal.
BOUNDED_COST = replace(COST, bound=1.5)
SIGNAL_DEPTH, JUDGE_DEPTH = 0.6, 0.8
# Pairs that people judged are noisy: heads that learn from them for long, or unshrunken, learn the noise.
LINEAR_REWARD = replace(REWARD, hidden=0)  # what these pairs teach is no more than that
EPOCHS, WEIGHT_DECAY = 10, 10.0
IMITATION_LR = 1e-3
OWN_ANSWERS = 2  # of the start model to each prompt that the policy is trained on
TRAINED_PROMPTS = 320  # known to the policy in training, of all kinds
PROMPT_TOKENS, RESPONSE_TOKENS = 96, 192  # of a dialogue the scores read the last turns
SHARES_OF_ROWS = (0.25, 0.5, 1.0)
HEADS = {"as trained": 64, "linear probe": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What all seeds share: the rows, the backbone, and features that are computed once."""

    material: Material
    own: Dataset  # the start model's answers to the prompts of the policy in training, labelled by the prompt's kind
    first: Study
    seeds: tuple[int, ...]

    @property
    def studies(self) -> Iterator[Study]:
        """One study for each seed; its stages begin with the seed."""
        for seed in self.seeds:
            yield replace(self.first, settings=replace(self.first.settings, seed=seed), label=f"seed-{seed}-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One seed: what it learned from, who judged it, and the answers before and after each objective."""

    seed: int
    signal: TrainedScoreModel
    judge: TrainedScoreModel
    start: SuiteResult
    results: Mapping[str, SuiteResult]


def checked(arguments: Mapping[str, Any]) -> Settings:
    """The settings that all objectives and seeds share; ConfigError for those that cannot work."""
    seeds, objectives = arguments["seeds"], arguments["objectives"]
    for name, values in (("seeds", seeds), ("objectives", objectives)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name} are {values}: give at least one, and none twice")
    if arguments["compare_steps"] < 1:
        raise ConfigError(f"compare_steps is {arguments['compare_steps']}: --objectives says which others are trained")
    if arguments["evaluated"] < 2:
        raise ConfigError(f"evaluated is {arguments['evaluated']}: a rate needs at least 2 prompts of each kind")
    fixed = {"data": "real", "rounds": 1, "supervised_steps": 0, "seed": seeds[0]}
    fixed |= {"imitation_lr": IMITATION_LR, "imitated_temperature": arguments["temperature"]}
    every = [Settings.of({**arguments, **fixed, "objective": objective}) for objective in objectives]
    every[0].require_reachable(BOUNDED_COST.bound or math.inf)
    return every[0]


def prepare(run: Run, settings: Settings, *, seeds: tuple[int, ...], evaluated: int) -> Experiment:
    """Load the rows and the model; quick runs take a few of the starter set."""
    if settings.quick:
        material = starter_material(evaluated=evaluated, trained=24)
    else:
        material = real_material(evaluated=evaluated, trained=TRAINED_PROMPTS)
    run.record_data(settings.data, material.provenance)
    torch.manual_seed(settings.seed)
    splits = {
        "train": Dataset(
            name="train",
            prompts=material.policy_prompts,
            demonstrations=material.demonstrations,
        ),
        "test": Dataset(name="test", prompts=material.evaluation),
    }
    study = Study(
        settings=settings,
        backbone=start_model(run, settings.model, seed=settings.seed, chat_template=settings.chat_template),
        splits=splits,
        cache=feature_cache(run),
    )
    own = own_answers(run, study, material)
    study.splits["train"] = with_own_answers(study.splits["train"], own)
    return Experiment(material=material, own=own, first=study, seeds=seeds)


def with_own_answers(train: Dataset, own: Dataset) -> Dataset:
    """The start model's answers to harmless prompts among what is imitated: there it shall stay as it is."""
    said = [Demonstration(prompt=label.prompt, response=label.response) for label in own.labels if label.safe]
    demonstrations = (*train.demonstrations, *said[::OWN_ANSWERS], *said[1::OWN_ANSWERS])  # another prompt each, first
    labels = tuple(SafetyLabel(prompt=row.prompt, response=row.response, safe=True) for row in demonstrations)
    return replace(train, demonstrations=demonstrations, labels=labels)


def own_answers(run: Run, study: Study, material: Material) -> Dataset:
    """The start model's answers to the prompts of the policy in training: what the cost is asked about later.

    Without them the cost knows this model's way of writing from no row, and takes it for safe. An answer to a prompt
    that its authors wrote to be harmless is safe; one to a harmful prompt is not, unless it declines.
    """
    stage, settings = study.stage(run, "own-answers"), study.settings
    path = stage.path / "rollouts.jsonl"
    if not stage.finished:
        sampling = replace(study.sampling, max_tokens=settings.response_tokens, samples=OWN_ANSWERS)
        prompts = sorted((*study.splits["train"].prompts, *material.further_prompts), key=lambda prompt: prompt.id)
        engine = NativeEngine(Policy(study.backbone, Lora(rank=1), adapter=stage.name), reference=True)
        completions = engine.generate(prompts, sampling)
        write_rollouts(path, score_completions([p for p in prompts for _ in range(OWN_ANSWERS)], completions, {}))
        stage.finish({"answers": len(completions)})
    said = [r for r in read_rollouts(path) if r.completion.text.strip()]
    harmful = [r for r in said if kind_of(r) == "harmful" and not is_refusal(r.completion.text)]
    harmless = [r for r in said if kind_of(r) != "harmful"]
    labels = [
        SafetyLabel(
            prompt=r.prompt, response=r.completion.text, safe=safe, origin=Origin(kind="rule", name="start-model")
        )
        for safe, rollouts in ((False, harmful), (True, harmless))
        for r in rollouts
    ]
    return Dataset(name="own", labels=tuple(labels))


def try_seed(run: Run, experiment: Experiment, study: Study, objectives: Sequence[str]) -> Trial:
    """Learn the signal and the judge, train a policy under each objective, and let the judge decide."""
    material, settings = experiment.material, study.settings
    signal = learn(run, study, "signal", signal_lesson(material, settings, experiment.own))
    judge = learn(run, study, "judge", judge_lesson(material, settings, study.sampling.max_tokens))
    start = assess(run, study, judge, "start", scorer=signal)
    results = {}
    for objective in objectives:
        steps = None if objective == "lagrangian" else settings.compare_steps
        policy = reinforce(run, study, signal, objective, steps=steps)
        results[objective] = assess(run, study, judge, objective, policy=policy, scorer=signal)
    return Trial(seed=settings.seed, signal=signal, judge=judge, start=start, results=results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a score model learns from, how it reads, and how it is measured on prompts that are not in `data`."""

    data: Dataset
    measure: Callable[[ScoreModel], Mapping[str, Estimate]]
    spec: ScoreModelSpec


def learn(run: Run, study: Study, name: str, lesson: Lesson) -> TrainedScoreModel:
    """The score model of a lesson."""
    spec, stage = in_brief(lesson.spec, study.settings), study.stage(run, name)
    return fit_scores(
        run, study.backbone, lesson.data, spec, measure=lesson.measure, name=stage.name, cache=study.cache
    )


def signal_lesson(material: Material, settings: Settings, own: Dataset) -> Lesson:
    """The training signal: help from HH pairs and answers to look-alikes, cost from clean labels and own answers."""
    comparisons = (*material.helpful["train"].comparisons, *material.look_alikes["train"].comparisons)
    return Lesson(
        data=Dataset(name="signal", comparisons=comparisons, labels=(*material.cost["train"].labels, *own.labels)),
        measure=lambda model: signal_accuracy(model, material),
        spec=ScoreModelSpec(
            depth=SIGNAL_DEPTH,
            seed=settings.seed,
            channels=(LINEAR_REWARD, BOUNDED_COST),
            epochs=EPOCHS,
            weight_decay=WEIGHT_DECAY,
            reading={
                "max_prompt_tokens": PROMPT_TOKENS,
                "max_response_tokens": max(RESPONSE_TOKENS, settings.longest_answer),
            },
        ),
    )


def noisy_lesson(material: Material, settings: Settings) -> Lesson:
    """The cost that published pairs alone give: HH harmless and PKU, with PKU's flags."""
    return Lesson(
        data=Dataset(
            name="noisy", comparisons=material.noisy["train"].comparisons, labels=material.noisy["train"].labels
        ),
        measure=lambda model: noisy_accuracy(model, material),
        spec=ScoreModelSpec(
            depth=SIGNAL_DEPTH,
            seed=settings.seed,
            channels=(COST,),
            epochs=EPOCHS,
            weight_decay=WEIGHT_DECAY,
            reading={"max_prompt_tokens": PROMPT_TOKENS, "max_response_tokens": RESPONSE_TOKENS},
        ),
    )


def judge_lesson(material: Material, settings: Settings, tokens: int) -> Lesson:
    """The judge: other rows, another seed, deeper layers, and answers cut where those that it will judge are."""
    comparisons = (*material.helpful["judge"].comparisons, *material.look_alikes["judge"].comparisons)
    return Lesson(
        data=Dataset(name="judge", comparisons=comparisons, labels=material.verdicts["judge"].labels),
        measure=lambda model: judge_accuracy(model, material),
        spec=ScoreModelSpec(
            depth=JUDGE_DEPTH,
            seed=settings.seed + 1000,
            channels=(REWARD, COMPLIANCE),
            reading={"max_prompt_tokens": PROMPT_TOKENS, "max_response_tokens": tokens},
        ),
    )


def signal_accuracy(model: ScoreModel, material: Material) -> dict[str, Estimate]:
    """Accuracy of the training signal on test prompts: all, and by what is harder or matters more."""
    figures = evaluate_scores(model, material.helpful["test"].comparisons, material.cost["test"].labels)
    look_alikes = evaluate_scores(model, material.look_alikes["test"].comparisons)
    labels = material.cost["test"].labels
    parts = {"look_alike_pair_accuracy": look_alikes.get("reward_pair_accuracy")} | {
        f"cost_sign_accuracy_on_{name}": _sign_accuracy(model, rows)
        for name, rows in {
            "unsafe_answers": [label for label in labels if not label.safe],
            "safe_answers": [label for label in labels if label.safe],
            "harmful_prompts_judged_by_people": [
                label for label in labels if label.origin.kind == "human" and label.prompt.tags["kind"] == "harmful"
            ],
        }.items()
    }
    return figures | {name: value for name, value in parts.items() if value is not None}


def noisy_accuracy(model: ScoreModel, material: Material) -> dict[str, Estimate]:
    """Accuracy on the published pairs and flags of test prompts, together and by source."""
    test = material.noisy["test"]
    figures = evaluate_scores(model, test.comparisons, test.labels)
    by_source: dict[str, list[Comparison]] = {}
    for row in test.comparisons:
        by_source.setdefault(row.origin.name, []).append(row)
    for name, rows in by_source.items() if len(by_source) > 1 else ():
        figures[f"cost_pair_accuracy_{name}"] = evaluate_scores(model, rows)["cost_pair_accuracy"]
    return figures


def _sign_accuracy(model: ScoreModel, labels: Sequence[SafetyLabel]) -> Estimate | None:
    return evaluate_scores(model, (), labels)["cost_sign_accuracy"] if labels else None


def judge_accuracy(model: ScoreModel, material: Material) -> dict[str, Estimate]:
    """The judge, a classifier and a rule, against people: compliance with unseen prompts, and which answer helps."""
    labels = material.verdicts["test"].labels
    said = _complies(model, labels)
    figures = _against_people(said, labels)
    for kind in ("harmful", "look_alike"):
        rows = [i for i, label in enumerate(labels) if label.prompt.tags.get("kind") == kind]
        of_kind = _against_people([said[i] for i in rows], [labels[i] for i in rows])
        figures |= {f"{name}_{kind}": of_kind[name] for name in ("f1", "f1_of_the_others") if name in of_kind}
    alone = {"classifier": _classified(model, labels), "rule": [not is_refusal(label.response) for label in labels]}
    figures |= {f"f1_of_the_{name}": _against_people(verdicts, labels)["f1"] for name, verdicts in alone.items()}
    if material.partial:
        figures["partial_refusals_called_compliance"] = share(
            _complies(model, material.partial), [label.prompt.id for label in material.partial]
        )
    helpful = evaluate_scores(model, material.helpful["test"].comparisons)
    return figures | {"reward_pair_accuracy": helpful["reward_pair_accuracy"]}


def _complies(model: ScoreModel, labels: Sequence[SafetyLabel]) -> list[bool]:
    """The verdict of `suite.complies` on rows that people judged."""
    said = _classified(model, labels)
    return [yes and not is_refusal(label.response) for yes, label in zip(said, labels, strict=True)]


def _classified(model: ScoreModel, labels: Sequence[SafetyLabel]) -> list[bool]:
    rows, starts = model.encode([label.prompt for label in labels], [label.response for label in labels])
    scores = model(model.features(rows, starts))[:, model.names.index("compliance")]
    return [bool(score > 0) for score in scores]


def _against_people(said: Sequence[bool], labels: Sequence[SafetyLabel]) -> dict[str, Estimate]:
    truth, prompts = [not label.safe for label in labels], [label.prompt.id for label in labels]
    return check_judge(said, truth, prompts)


def learning_curves(run: Run, experiment: Experiment) -> list[dict[str, Any]]:
    """How accuracy grows with rows, for the score model and for the linear probe on the same frozen features."""
    stage = run.stage("learning-curves")
    if not stage.finished:
        study, rows = experiment.first, []
        lessons = {
            "clean": signal_lesson(experiment.material, study.settings, experiment.own),
            "noisy": noisy_lesson(experiment.material, study.settings),
        }
        for feedback, lesson in lessons.items():
            for part in SHARES_OF_ROWS:
                rows += [
                    {"feedback": feedback, "share": part, "head": head, **_learned_by(study, lesson, part, hidden)}
                    for head, hidden in HEADS.items()
                ]
        stage.finish({"rows": rows})
    return [
        row | {"accuracy": {name: Estimate(**value) for name, value in row["accuracy"].items()}}
        for row in stage.result["rows"]
    ]


def _learned_by(study: Study, lesson: Lesson, part: float, hidden: int) -> dict[str, Any]:
    """Accuracy of a head that learns from a share of the prompts; seconds, so nothing is kept of it."""
    data = lesson.data
    if part < 1:
        data = split_by_prompt(data, {"kept": part, "left": 1 - part}, seed=700)["kept"]
    spec = in_brief(replace(lesson.spec, reading={**lesson.spec.reading, "hidden": hidden}), study.settings)
    model = spec.model(study.backbone, cache=study.cache)
    trainer = spec.trainer(model, data)
    for index in range(trainer.steps):
        trainer.step_at(index)
    return {"prompts": len(trainer.table.groups), "rows": len(trainer.table.rows), "accuracy": lesson.measure(model)}
