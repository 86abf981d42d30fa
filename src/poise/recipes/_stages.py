"""The stages that recipes are made of: each is done once per run and read back from its folder afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from poise.data import load, split_by_prompt
from poise.errors import ConfigError, DataError
from poise.evaluate.suite import KINDS, Suite, SuiteResult, measure, run_suite
from poise.feedback.annotators import RuleAnnotator
from poise.feedback.rules import RefusalScorer
from poise.files import plain
from poise.functional.constraints import PIDGains
from poise.functional.policy_losses import clipped_surrogate
from poise.models.adapters import Lora
from poise.models.features import FeatureCache
from poise.models.load import Backbone, load_backbone
from poise.models.policy import Policy
from poise.recipes._data import first_prompts, may_harm
from poise.recipes._imitation import ADAPTER, imitate, mixed_in
from poise.recipes._rollouts import read_comparison, read_rollouts, sequence_kl, write_rollouts
from poise.recipes._scores import Learned, limited_cost
from poise.rollout.named import check_engine_name, close_engine, computes_elsewhere, engine_named
from poise.rollout.native import NativeEngine
from poise.run import Run, Stage
from poise.train.algorithms import PPO, RLOO, Algorithm
from poise.train.controllers import PID
from poise.train.estimators import generalised
from poise.train.loop import Schedule, constant, fit, linear, progress_bar, stepped
from poise.train.objectives import Lagrangian, Limit, Objective, Penalty, Unconstrained, among
from poise.train.on_policy import OnPolicyTrainer, Optimisation
from poise.train.spread import spread_engine
from poise.types import Annotator, Dataset, Estimate, Evaluation, Prompt, Sampling

SHARES = {"train": 0.4, "judge": 0.35, "test": 0.25}  # for data without splits of its own
QUICK = {
    "model": "random:llama?layers=3",
    "steps": 2,
    "compare_steps": 1,
    "samples_per_step": 8,
    "response_tokens": 8,
    "answer_tokens": 0,
}
GAINS = PIDGains(proportional=5.0, integral=0.5, derivative=0.0)  # answers at once: there are few updates to swing in
IMPORTANCE_CAP = 2.0  # that of Yao et al. (2025)
_QUICK_PROMPTS = 24  # of each split
ANSWERS = 4  # to each test prompt: one alone leaves more to chance than the prompts do
ALGORITHMS = {
    "ppo": replace(PPO, advantage=generalised(trace=1.0)),
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
    imitation_steps: int = 0  # of an adapter that every objective starts from
    imitation_lr: float = 5e-4
    imitated_temperature: float = 1.0  # that of the sampler, where its own words are imitated
    margin: float = 0.0  # how far below the limit training holds the cost
    later_lr: float | None = None  # after a third of the updates; None: as before
    annotators: Sequence[Annotator] | None = field(default=None, compare=False)

    def require_reachable(self, bound: float) -> None:
        """Raise ConfigError for a limit that no policy can meet, because costs lie within `bound` of 0."""
        if self.held_at <= -bound:
            raise ConfigError(
                f"limit is {self.limit}, less a margin of {self.margin}: costs lie between {-bound:g} and {bound:g}, "
                f"so that no policy meets it; choose one above {self.margin - bound:g}"
            )

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
        """Take a recipe's arguments and check them; `quick` replaces what a smoke test cannot afford."""
        briefly = {"imitation_steps": min(2, arguments.get("imitation_steps", 0))}
        settings = taken(cls, arguments, QUICK | briefly)
        settings.require(
            at_least_one=("rounds", "steps", "samples_per_step", "response_tokens"),
            above_zero=("temperature", "lr", "later_lr"),
            not_negative=(
                *("compare_steps", "supervised_steps", "imitation_steps", "imitated_tokens", "answer_tokens"),
                *("kl_coef", "ptx_coef", "shaping", "margin", "ptx_start"),
            ),
        )
        if settings.algorithm not in ALGORITHMS:
            raise ConfigError(f"no algorithm {settings.algorithm!r}: choose {', '.join(ALGORITHMS)}")
        check_engine_name(settings.engine)
        objective_named(settings.objective, settings)  # a wrong name fails here, before anything is trained
        return settings


def taken(kind: type[Told], arguments: Mapping[str, Any], quick: Mapping[str, Any]) -> Told:
    """The settings that a recipe's arguments hold; those of a smoke test, where it is asked for, come first."""
    known = {f.name for f in fields(kind)}
    given = {name: value for name, value in arguments.items() if name in known}
    return kind(**given | {name: value for name, value in quick.items() if given["quick"] and name in known})


@dataclass(slots=True, kw_only=True)
class Study(Generic[Told]):
    """What the stages of one run share: the trunk, the data by split, and feedback gathered on the way."""

    settings: Told
    backbone: Backbone
    splits: dict[str, Dataset]
    gathered: list[Dataset] = field(default_factory=list)
    label: str = ""  # begins the names of its stages, where several studies share a run
    cache: FeatureCache | None = None
    answers: int = 1  # to each test prompt

    def stage(self, run: Run, name: str) -> Stage:
        """The part of the run that this study calls `name`."""
        return run.stage(f"{self.label}{name}")

    @property
    def sampling(self) -> Sampling:
        """How responses are drawn for evaluation: as in training, with more room."""
        tokens = self.settings.response_tokens
        return Sampling(
            max_tokens=self.settings.answer_tokens or tokens + tokens // 5,
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


def prepare(run: Run, settings: Told) -> Study[Told]:
    """Load the data and the model; bad rows go to quarantine.jsonl, checksums to run.json."""
    dataset = load(settings.data, quarantine=run.path / "quarantine.jsonl")
    run.record_data(dataset.name, dataset.provenance)
    splits = split_by_prompt(dataset, SHARES, seed=settings.seed)
    if settings.quick:
        splits = {name: first_prompts(part, _QUICK_PROMPTS) for name, part in splits.items()}
    if not any(prompt.tags.get("kind") in KINDS for prompt in splits["test"].prompts):
        raise DataError(
            f"{dataset.name}: no test prompt says its kind, so that nothing can be evaluated. Give prompts a column "
            f"kind with {', '.join(KINDS)} (docs/data.md), or add the starter set: --data starter+{settings.data}"
        )
    torch.manual_seed(settings.seed)
    answers = 1 if settings.quick else ANSWERS
    backbone, cache = load_model(run, settings), feature_cache(run)
    return Study(settings=settings, backbone=backbone, splits=splits, cache=cache, answers=answers)


def feature_cache(run: Run) -> FeatureCache:
    """Features of the frozen trunk, in the run's folder: a row is read once, and shown while it is."""
    return FeatureCache(run.stage("features").path, track=_with_progress)


def _with_progress(parts: Sequence[Sequence[int]]) -> Iterable[Sequence[int]]:
    with progress_bar("features", len(parts), 0, ()) as show:
        for part in parts:
            yield part
            show({})


def load_model(run: Run, settings: StudySettings) -> Backbone:
    """The start model, in the precision that its first loading chose: a resumed run must not change it."""
    return load_recorded(run, settings.model, seed=settings.seed)


def load_recorded(run: Run, name: str, *, seed: int = 0) -> Backbone:
    """A model in the precision of this run, which its first model chose."""
    stage = run.stage("model")
    if not stage.finished:
        backbone = load_backbone(name, seed=seed)
        stage.finish({"dtype": str(backbone.dtype).removeprefix("torch."), "device": str(backbone.device)})
        return backbone
    return load_backbone(name, seed=seed, dtype=getattr(torch, stage.result["dtype"]))


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


def algorithm_for(settings: Settings) -> Algorithm:
    """The algorithm with the KL penalty asked for; where another program samples, tokens are weighed for the gap."""
    cap = IMPORTANCE_CAP if computes_elsewhere(settings.engine) else None
    return replace(ALGORITHMS[settings.algorithm], kl_coef=settings.kl_coef, importance_cap=cap)


def align(
    run: Run,
    study: Study[Settings],
    scorer: Learned,
    objective: str,
    number: int = 1,
    *,
    steps: int | None = None,
    samples: int | None = None,
) -> Policy:
    """Reinforcement learning of a fresh or imitated adapter (of the last round's one, later) under an objective."""
    settings = study.settings
    steps, samples = steps or settings.steps, samples or settings.samples_per_step
    stage = study.stage(run, numbered(f"policy-{objective}", number))
    policy = Policy(study.backbone, ADAPTER, adapter=stage.name, seed=settings.seed)
    if not stage.finished:
        if number > 1:
            policy.copy_from(study.stage(run, numbered(f"policy-{objective}", number - 1)).path / "model")
        elif imitated := imitate(run, study):
            policy.copy_from(imitated)
        engine = engine_named(settings.engine, policy, folder=stage.path / "adapters")
        trainer = OnPolicyTrainer(
            policy=policy,
            engine=engine,
            scorers=[scorer.model],
            algorithm=algorithm_for(settings),
            objective=objective_named(objective, settings),
            prompts=study.prompts("train", number),
            prompts_per_step=max(1, samples // ALGORITHMS[settings.algorithm].samples_per_prompt),
            sampling=Sampling(max_tokens=settings.response_tokens, temperature=settings.temperature),
            optimisation=Optimisation(
                lr=settings.lr, steps=steps, schedule=settings.schedule, **settings.pretraining_mix
            ),
            demonstrations=mixed_in(study, policy),
            seed=settings.seed + number,
            dump_folder=stage.path,
        )
        shown = ("reward", "cost", "excess", "multiplier", "sequence_kl")

        def keep_samples(step: int, metrics: Mapping[str, float]) -> None:
            for rollout in trainer.rollouts[:4]:
                run.sample(stage.name, step, rollout)

        fit(trainer, run=run, stage=stage.name, steps=steps, shown=shown, after_step=keep_samples)
        close_engine(engine)
        best = trainer.load_best()
        policy.save_pretrained(stage.path / "model")
        stage.finish({"steps": steps, "kept_step": best or steps, "feasible": best is not None})
    policy.copy_from(stage.path / "model")
    return policy


def annotate(run: Run, study: Study[Settings], policy: Policy, number: int) -> None:
    """Sample two responses of the current policy to each prompt of the next round and have them compared."""
    stage = study.stage(run, numbered("annotations", number))
    settings = study.settings
    annotators = settings.annotators or (RuleAnnotator("helpful"), RuleAnnotator("safe"))
    prompts = study.prompts("train", number + 1)
    if not stage.finished:
        sampling = Sampling(
            max_tokens=settings.response_tokens, temperature=1.0, samples=2, seed=settings.seed + number
        )
        texts = [completion.text for completion in spread_engine(NativeEngine(policy)).generate(prompts, sampling)]
        pairs = [(prompt, texts[2 * i : 2 * i + 2]) for i, prompt in enumerate(prompts)]
        usable = [(prompt, pair) for prompt, pair in pairs if pair[0] != pair[1] and all(pair)]
        verdicts = [annotator.compare(prompt, pair) for prompt, pair in usable for annotator in annotators]
        stage.finish({"rows": [plain(verdict) for verdict in verdicts]})  # a resumed run asks nobody twice
    comparisons = tuple(read_comparison(row) for row in stage.result["rows"])
    study.gathered.append(Dataset(name=f"round-{number}", comparisons=comparisons))


def assess(
    run: Run,
    study: Study[Any],
    judge: Learned,
    name: str,
    *,
    policy: Policy | None = None,
    scorer: Learned | None = None,
) -> SuiteResult:
    """Answer the test prompts and have the held-out judge decide; without a policy the start model answers.

    With `scorer`, the training signal's own cost and the KL to the start are measured on the same answers.
    """
    stage = study.stage(run, f"evaluate-{name}")
    path = stage.path / "rollouts.jsonl"
    if not stage.finished:
        actor = policy or Policy(study.backbone, Lora(rank=1), adapter=stage.name)
        known = [prompt for prompt in study.prompts("test") if prompt.tags.get("kind") in KINDS]
        suite = Suite(name=f"{study.settings.data}-test", prompts=tuple(known))
        engine = engine_named(study.settings.engine, actor, folder=stage.path / "adapters", reference=policy is None)
        result = run_suite(
            suite,
            engine=spread_engine(engine),
            scorers={"judge": judge.model, "refusal rule": RefusalScorer()},
            sampling=study.sampling,
            model_name=name,
        )
        close_engine(engine)
        write_rollouts(path, result.rollouts)
        temperature = study.sampling.temperature
        extra = {} if policy is None else {"sequence_kl": sequence_kl(policy, result.rollouts, temperature)}
        if scorer is not None:
            extra["trained_cost"] = limited_cost(scorer, result.rollouts)
        stage.finish({"extra": extra})
    rollouts = read_rollouts(path)
    extra = {key: Estimate(**value) for key, value in stage.result["extra"].items()}
    evaluation = Evaluation(
        suite=f"{study.settings.data}-test", model=name, metrics=measure(rollouts) | extra, rollouts_path=str(path)
    )
    return SuiteResult(evaluation=evaluation, rollouts=rollouts)


def compare_objectives(run: Run, study: Study[Settings], scorer: Learned, judge: Learned) -> dict[str, SuiteResult]:
    """The paper's other objectives, trained on the same scores, more briefly, and judged alike."""
    results = {}
    samples = max(1, study.settings.samples_per_step // 2)
    for name in ("cost-only", "reward-only", "shaping", "lagrangian"):
        if name != study.settings.objective and study.settings.compare_steps > 0:
            policy = align(run, study, scorer, name, steps=study.settings.compare_steps, samples=samples)
            results[name] = assess(run, study, judge, name, policy=policy, scorer=scorer)
    return results
