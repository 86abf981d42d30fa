"""The stages that recipes are made of: each is done once per run and read back from its folder afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from poise.data import first_prompts, load, split_by_prompt
from poise.errors import ConfigError, DataError
from poise.evaluate.divergence import sequence_kl
from poise.evaluate.suite import KINDS, Suite, SuiteResult
from poise.feedback.groups import may_harm
from poise.feedback.rules import RefusalScorer
from poise.functional.constraints import PIDGains
from poise.functional.policy_losses import clipped_surrogate
from poise.models.adapters import Lora
from poise.models.features import FeatureCache
from poise.models.load import Backbone
from poise.models.policy import Policy
from poise.pipeline import TrainedScoreModel, align, evaluate, feature_cache, start_model
from poise.pipeline.evaluation import FurtherMetric
from poise.ranks import current
from poise.recipes._held_out import held_out, judges_harm
from poise.recipes._imitation import ADAPTER, imitate, mixed_in
from poise.recipes._scores import limited_cost
from poise.rollout.named import check_engine_name
from poise.run import Run, Stage
from poise.text import say
from poise.train.algorithms import PPO, RLOO
from poise.train.controllers import PID
from poise.train.estimators import gae_advantage
from poise.train.limits import require_reachable
from poise.train.loop import Schedule, constant, linear, stepped
from poise.train.objectives import Lagrangian, Limit, Objective, Penalty, Unconstrained, among
from poise.train.on_policy import OptimizerSettings
from poise.types import Annotator, Dataset, Prompt, Sampling

SHARES = {"train": 0.4, "judge": 0.35, "test": 0.25}  # for data without splits of its own
GAINS = PIDGains(proportional=5.0, integral=0.5, derivative=0.0)  # answers at once: there are few updates to swing in
_QUICK_PROMPTS = 24  # of each split
ANSWERS = 4  # to each test prompt: one alone leaves more to chance than the prompts do
ALGORITHMS = {
    "ppo": replace(PPO, advantage=gae_advantage(gae_lambda=1.0)),
    "rloo": replace(RLOO, policy_loss=clipped_surrogate, epochs=2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """What every study is told that learns from feedback and is judged by a held-out judge."""

    model: str
    data: str
    supervised_steps: int
    response_tokens: int
    temperature: float
    seed: int
    quick: bool
    rounds: int = 1
    engine: str = "native"
    answer_tokens: int = 0  # longest answer to a test prompt; 0: a fifth more than in training
    columns: str = ""  # what the columns of a user's files are called
    chat_template: str | None = None  # a file; None: the tokenizer's

    def require(self, *, at_least_one: Sequence[str], above_zero: Sequence[str], not_negative: Sequence[str]) -> None:
        """Raise ConfigError that names the first number out of its range; None, where it is a default, passes."""
        for names, fits, wanted in (
            (at_least_one, lambda value: value >= 1, "must be at least 1"),
            (above_zero, lambda value: value > 0, "must be above 0"),
            (not_negative, lambda value: value >= 0, "must not be negative"),
        ):
            for name in names:
                if (value := getattr(self, name)) is not None and not fits(value):
                    raise ConfigError(f"{name} is {value}: it {wanted}")

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer to a test prompt: what every scorer must be able to read."""
        return self.answer_tokens or self.response_tokens + self.response_tokens // 5

    @property
    def arguments(self) -> dict[str, Any]:
        """What run.json records: everything that a text can give."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "annotators"}


Told = TypeVar("Told", bound=StudySettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(StudySettings):
    """The resolved arguments of a run of Safe RLHF."""

    objective: str
    algorithm: str
    limit: float
    shaping: float
    steps: int
    compare_steps: int
    samples_per_step: int
    lr: float
    kl_coef: float
    ptx_coef: float
    ptx_start: float | None
    imitated_tokens: int = 0  # of a demonstration; 0: all
    warmstart_steps: int = 0  # of an adapter that every objective starts from
    imitation_lr: float = 5e-4
    imitated_temperature: float = 1.0  # that of the sampler, where its own words are imitated
    margin: float = 0.0  # how far below the limit training holds the cost
    later_lr: float | None = None  # after a third of the updates; None: as before
    annotators: Sequence[Annotator] | None = field(default=None, compare=False)

    def require_reachable(self, bound: float) -> None:
        """Raise ConfigError for a limit that no policy can meet, or every one does: costs lie within `bound` of 0."""
        require_reachable(self.limit, bound, margin=self.margin)

    @property
    def held_at(self) -> float:
        """The mean cost that training holds: below the limit, since prompts never trained on cost a little more."""
        return self.limit - self.margin

    @property
    def schedule(self) -> Schedule:
        """The learning rate over the updates: high until refusals occur, then lower, so that shares swing less."""
        return constant if self.later_lr is None else partial(stepped, to=self.later_lr / self.lr, after=1 / 3)

    @property
    def pretraining_mix(self) -> dict[str, Any]:
        """How much demonstrations count, first and later."""
        if not self.ptx_start or not self.ptx_coef:
            return {"ptx_coef": self.ptx_coef}
        falling = partial(linear, to=self.ptx_coef / self.ptx_start, by=0.5)
        return {"ptx_coef": self.ptx_start, "ptx_schedule": falling}

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Settings:
        """Take a recipe's arguments and check them."""
        settings = taken(cls, arguments)
        settings.require(
            at_least_one=("rounds", "steps", "samples_per_step", "response_tokens"),
            above_zero=("temperature", "lr", "later_lr"),
            not_negative=(
                *("compare_steps", "supervised_steps", "warmstart_steps", "imitated_tokens", "answer_tokens"),
                *("kl_coef", "ptx_coef", "shaping", "margin", "ptx_start"),
            ),
        )
        if settings.algorithm not in ALGORITHMS:
            raise ConfigError(f"no algorithm {settings.algorithm!r}: choose {', '.join(ALGORITHMS)}")
        check_engine_name(settings.engine)
        objective_named(settings.objective, settings)  # a wrong name fails here, before anything is trained
        return settings


def taken(kind: type[Told], arguments: Mapping[str, Any]) -> Told:
    """The settings that a recipe's arguments hold."""
    known = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in arguments.items() if name in known})


@dataclass(slots=True, kw_only=True)
class Study(Generic[Told]):
    """What the stages of one run share: the backbone, the data by split, and feedback gathered on the way."""

    settings: Told
    backbone: Backbone
    splits: dict[str, Dataset]
    gathered: list[Dataset] = field(default_factory=list)
    label: str = ""  # begins the names of its stages, where several studies share a run
    cache: FeatureCache | None = None
    answers: int = 1  # to each test prompt
    is_judged: bool = True  # a held-out judge decides; False where the data say nothing of kinds or of harm

    def stage(self, run: Run, name: str) -> Stage:
        """The part of the run that this study calls `name`."""
        return run.stage(f"{self.label}{name}")

    @property
    def sampling(self) -> Sampling:
        """How responses are drawn for evaluation: as in training, with more room."""
        return Sampling(
            max_tokens=self.settings.longest_answer,
            temperature=self.settings.temperature,
            samples=self.answers,
            seed=90_001 + self.settings.seed,
        )

    def prompts(self, split: str, number: int | None = None) -> list[Prompt]:
        """The prompts of a split; with a round's number those known by then: each round adds an equal share."""
        prompts = sorted(self.splits[split].prompts, key=lambda prompt: prompt.id)
        if number is None or self.settings.rounds == 1:
            return prompts
        return prompts[: max(1, len(prompts) * number // self.settings.rounds)]


def numbered(name: str, number: int) -> str:
    """The stage's name in a round: plain in the first, numbered after it."""
    return name if number == 1 else f"{name}-{number}"


def prepare(run: Run, settings: Told, *, needs_judge: bool = True) -> Study[Told]:
    """Load the data and the model; bad rows go to quarantine.jsonl, checksums to run.json.

    Without `needs_judge`, data that say nothing of kinds or of harm are divided in two, and nothing is judged.
    """
    dataset = read_data(run, settings)
    splits = split_by_prompt(dataset, SHARES, seed=settings.seed)
    says_kinds = any(prompt.tags.get("kind") in KINDS for prompt in splits["test"].prompts)
    is_judged = says_kinds and (needs_judge or judges_harm(splits["judge"]))
    if not is_judged and not needs_judge:
        splits = held_out(dataset, seed=settings.seed)
    elif not is_judged:
        raise DataError(
            f"{dataset.name}: no test prompt says its kind, so that nothing can be evaluated. Give prompts a column "
            f"kind with {', '.join(KINDS)} (docs/data.md), or add the starter set: --data starter+{settings.data}. "
            "Preferences alone, without kinds, are what `poise run dpo` can do with"
        )
    if settings.quick:
        splits = {name: first_prompts(part, _QUICK_PROMPTS) for name, part in splits.items()}
    torch.manual_seed(settings.seed)
    backbone = start_model(run, settings.model, seed=settings.seed, chat_template=settings.chat_template)
    backbone.renderer().check(prompt for part in splits.values() for prompt in part.prompts)
    return Study(
        settings=settings,
        backbone=backbone,
        splits=splits,
        cache=feature_cache(run),
        answers=1 if settings.quick else ANSWERS,
        is_judged=is_judged,
    )


def read_data(run: Run, settings: StudySettings) -> Dataset:
    """The data of a run, recorded in it; rows that were not read are counted aloud and kept in quarantine.jsonl."""
    quarantine = run.path / "quarantine.jsonl"
    dataset = load(settings.data, columns=settings.columns, quarantine=quarantine)
    run.record_data(dataset.name, dataset.provenance)
    if (bad := len(dataset.bad_rows)) and current().is_main:
        first = dataset.bad_rows[0]
        say(
            f"{bad} of {dataset.provenance['rows_read']} rows cannot be read and are left out: {quarantine} has them "
            f"and why. The first, {first.path}:{first.line}: {first.reason}",
            error=True,
        )
    return dataset


def objective_named(name: str, settings: Settings) -> Objective:
    """The objective of the paper's comparison with that name."""
    makers: dict[str, Objective] = {
        "lagrangian": Lagrangian(
            Limit(at_most=settings.held_at, measure=among("harmful", may_harm)), PID(gains=GAINS, multiplier=3.0)
        ),
        "shaping": Penalty(settings.shaping),
        "reward-only": Unconstrained(),
        "cost-only": Penalty(1.0, reward_weight=0.0),
    }
    if name not in makers:
        raise ConfigError(f"no objective {name!r}: choose {', '.join(makers)}")
    return makers[name]


def reinforce(
    run: Run,
    study: Study[Settings],
    scorer: TrainedScoreModel,
    objective: str,
    number: int = 1,
    *,
    steps: int | None = None,
    samples: int | None = None,
) -> Policy:
    """Reinforcement learning of a fresh or imitated adapter (of the last round's one, later) under an objective."""
    settings = study.settings
    steps, stage = steps or settings.steps, study.stage(run, numbered(f"policy-{objective}", number))
    policy = Policy(study.backbone, ADAPTER, adapter=stage.name, seed=settings.seed)
    if not stage.finished:
        if number > 1:
            policy.copy_from(study.stage(run, numbered(f"policy-{objective}", number - 1)).path / "model")
        else:
            imitate(run, study, policy)
    return align(
        run,
        policy,
        [scorer.model],
        study.prompts("train", number),
        objective=objective_named(objective, settings),
        algorithm=replace(ALGORITHMS[settings.algorithm], kl_coef=settings.kl_coef),
        samples_per_step=samples or settings.samples_per_step,
        sampling=Sampling(max_tokens=settings.response_tokens, temperature=settings.temperature),
        optimisation=OptimizerSettings(
            lr=settings.lr, steps=steps, schedule=settings.schedule, **settings.pretraining_mix
        ),
        demonstrations=mixed_in(study, policy),
        engine=settings.engine,
        seed=settings.seed + number,
        name=stage.name,
    )


def assess(
    run: Run,
    study: Study[Any],
    judge: TrainedScoreModel,
    name: str,
    *,
    policy: Policy | None = None,
    scorer: TrainedScoreModel | None = None,
) -> SuiteResult:
    """Answer the test prompts and have the held-out judge decide; without a policy the start model answers.

    With `scorer`, the training signal's own cost and the KL to the start are measured on the same answers.
    """
    stage = study.stage(run, f"evaluate-{name}")
    known = [prompt for prompt in study.prompts("test") if prompt.tags.get("kind") in KINDS]
    further: dict[str, FurtherMetric] = {}
    if policy is not None:
        further["sequence_kl"] = partial(sequence_kl, policy, temperature=study.sampling.temperature)
    if scorer is not None:
        further["trained_cost"] = partial(limited_cost, scorer)
    return evaluate(
        run,
        policy or Policy(study.backbone, Lora(rank=1), adapter=stage.name),
        Suite(name=f"{study.settings.data}-test", prompts=tuple(known)),
        {"judge": judge.model, "refusal rule": RefusalScorer()},
        sampling=study.sampling,
        name=stage.name,
        engine=study.settings.engine,
        reference=policy is None,
        further=further,
    )
