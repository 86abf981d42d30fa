"""What the stages of each recipe will do, as counts of tokens: the part of `poise plan` that knows recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from poise.data import load, split_by_prompt
from poise.errors import ConfigError
from poise.plan.costs import Costs
from poise.recipes._imitation import IMITATED_PER_STEP
from poise.recipes._stages import ALGORITHMS, ANSWERS, SHARES, Settings, StudySettings
from poise.types import Dataset

FILLED = 0.85  # of the longest response: what sampled responses had in the demo
_CHARACTERS_PER_TOKEN = 4.2  # where the tokenizer is not at hand
_SAMPLED_ROWS = 64  # whose tokens are counted
_START = 12.0  # seconds until the data are read and a model is asked for
_ROW = 0.003  # seconds to render a row and to turn it into tokens, each time that it is asked for
_HEAD_STEP = 0.006  # seconds of a step of the score heads on known features
_TEST_TOKENS = 1.2  # evaluation allows a fifth more than training


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """An estimate of one stage."""

    name: str
    seconds: float
    memory: float  # bytes of one process at the peak
    work: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of feedback and their tokens."""

    prompts: int
    responses: int
    prompt_tokens: float
    response_tokens: float

    @property
    def tokens(self) -> float:
        """Tokens of all rows, each prompt once."""
        return self.prompts * self.prompt_tokens + self.responses * self.response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How many tokens texts have; told from characters where the tokenizer is not at hand."""

    of: Callable[[str], float] = lambda text: len(text) / _CHARACTERS_PER_TOKEN
    template: float = 20.0  # around a prompt


def plan(recipe: str, arguments: Mapping[str, Any], costs: Costs, tokens: Tokens) -> list[StagePlan]:
    """The stages of a run of the recipe with these arguments.

    Raises ConfigError for a recipe whose work is not known.
    """
    if recipe not in PLANS:
        raise ConfigError(f"the work of recipe {recipe!r} is not known: poise plan knows {', '.join(PLANS)}")
    return PLANS[recipe](arguments, costs, tokens)


def arguments_of(recipe: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a recipe: its defaults, and those given."""
    parameters = inspect.signature(recipe).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty} | dict(given)


def _safe_rlhf(arguments: Mapping[str, Any], costs: Costs, tokens: Tokens) -> list[StagePlan]:
    settings = Settings.of(arguments)
    rows = _rows_by_split(settings, tokens)
    evaluated = partial(_evaluation, test=rows["test"], response_tokens=settings.response_tokens, costs=costs)
    found = [
        _loading(costs),
        _scores("judge", rows["judge"], rows["test"], 0.7, costs),
        evaluated("evaluate-start", is_trained=False),
    ]
    if settings.supervised_steps:
        found.insert(1, _supervised(settings.supervised_steps, rows["train"], costs))
    for number in range(settings.rounds):
        name = "scores" if number == 0 else f"scores-{number + 1}"
        found.append(_scores(name, rows["train"], rows["test"], 0.5, costs))
        if settings.imitation_steps and number == 0:
            found.append(
                _supervised(settings.imitation_steps, rows["train"], costs, name="imitated", per_step=IMITATED_PER_STEP)
            )
        found.append(_alignment(f"policy-{settings.objective}", settings, settings.samples_per_step, rows, costs))
    found.append(evaluated("evaluate-final"))
    others = [name for name in ("cost-only", "reward-only", "shaping", "lagrangian") if name != settings.objective]
    for name in others if settings.compare_steps else ():
        half = max(1, settings.samples_per_step // 2)
        found.append(_alignment(f"policy-{name}", settings, half, rows, costs, steps=settings.compare_steps))
        found.append(evaluated(f"evaluate-{name}"))
    return found


def _dpo(arguments: Mapping[str, Any], costs: Costs, tokens: Tokens) -> list[StagePlan]:
    from poise.recipes._preferences import LOSSES, PreferenceSettings

    settings = PreferenceSettings.of(arguments)
    rows = _rows_by_split(settings, tokens)
    train, test = rows["train"], rows["test"]
    found = [_loading(costs), _scores("judge", rows["judge"], test, 0.7, costs)]
    found.append(_evaluation("evaluate-start", test, settings.response_tokens, costs, is_trained=False))
    if settings.supervised_steps:
        found.insert(1, _supervised(settings.supervised_steps, train, costs))
    if LOSSES[settings.loss].is_scored:
        found.append(_scores("scores", train, test, 0.5, costs))
    share = min(1.0, settings.prompts_per_step / max(1, train.prompts))
    reference = costs.forward(train.tokens, positions=train.responses * train.response_tokens)
    step = _update_seconds(train.tokens * share, train.responses * train.response_tokens * share, costs)
    found.append(
        StagePlan(
            name="policy",
            seconds=reference + settings.steps * step,
            memory=_training_memory(costs),
            work=f"{settings.steps} updates of {train.tokens * share:,.0f} tokens",
        )
    )
    pairs = 2 * 2 * costs.forward(test.tokens, positions=test.responses * test.response_tokens)
    found.append(StagePlan(name="held-out-pairs", seconds=pairs, memory=_passing_memory(costs), work="test pairs"))
    found.append(_evaluation("evaluate-final", test, settings.response_tokens, costs))
    return found


PLANS = {"safe-rlhf": _safe_rlhf, "dpo": _dpo}


def _rows_by_split(settings: StudySettings, tokens: Tokens) -> dict[str, Rows]:
    parts = split_by_prompt(load(settings.data, columns=settings.columns), SHARES, seed=settings.seed)
    return {name: _rows(part, tokens) for name, part in parts.items()}


def _rows(part: Dataset, tokens: Tokens) -> Rows:
    texts = {(c.prompt.id, text) for c in part.comparisons for text in c.responses}
    texts |= {(label.prompt.id, label.response) for label in part.labels}
    texts |= {(verdict.prompt.id, verdict.response) for verdict in part.verdicts}
    return Rows(
        prompts=len(part.prompts),
        responses=len(texts),
        prompt_tokens=tokens.template + _mean_tokens([p.text for p in part.prompts], tokens),
        response_tokens=_mean_tokens([text for _, text in sorted(texts)], tokens),
    )


def _mean_tokens(texts: Sequence[str], tokens: Tokens) -> float:
    some = texts[:: max(1, len(texts) // _SAMPLED_ROWS)]
    return sum(map(tokens.of, some)) / max(1, len(some))


def _loading(costs: Costs) -> StagePlan:
    size = costs.shape.parameters * costs.machine.element_bytes
    return StagePlan(name="model", seconds=_START + size / 1e9, memory=costs.process() + costs.weights(), work="load")


def _scores(name: str, rows: Rows, test: Rows, depth: float, costs: Costs) -> StagePlan:
    from poise.data.batching import num_steps

    tokens = rows.tokens + test.tokens
    steps = num_steps(round(rows.prompts * 5 / 6), 32, 40)
    return StagePlan(
        name=name,
        seconds=costs.forward(tokens, layers=costs.shape.layers * depth)
        + _HEAD_STEP * steps
        + _ROW * (rows.responses + test.responses),
        memory=_passing_memory(costs),
        work=f"{tokens:,.0f} tokens through {depth:.0%} of the layers, {steps} steps of the heads",
    )


def _evaluation(name: str, test: Rows, response_tokens: int, costs: Costs, *, is_trained: bool = True) -> StagePlan:
    """Answers to the test prompts, judged; of a trained policy also its KL to the start, and the signal's own cost."""
    longest, layers = _TEST_TOKENS * response_tokens, costs.shape.layers
    answers, context = ANSWERS * test.prompts, test.prompt_tokens + longest
    tokens = answers * (test.prompt_tokens + longest * FILLED)
    seconds = costs.forward(test.prompts * test.prompt_tokens) + costs.decoding(answers, longest, context=context)
    seconds += costs.forward(tokens, layers=layers * 0.7)  # the judge
    if is_trained:
        seconds += costs.forward(tokens, positions=answers * longest * FILLED)
        seconds += costs.forward(tokens, layers=layers * 0.5)
    memory = costs.process() + costs.weights() + costs.generating(answers, context=context)
    return StagePlan(name=name, seconds=seconds, memory=memory, work=f"{answers} answers, judged")


def _supervised(steps: int, train: Rows, costs: Costs, *, name: str = "supervised", per_step: int = 16) -> StagePlan:
    tokens, positions = per_step * (train.prompt_tokens + train.response_tokens), per_step * train.response_tokens
    seconds = steps * _update_seconds(tokens, positions, costs)
    return StagePlan(name=name, seconds=seconds, memory=_training_memory(costs), work=f"{steps} updates")


def _alignment(
    name: str, settings: Settings, samples: int, rows: Mapping[str, Rows], costs: Costs, *, steps: int | None = None
) -> StagePlan:
    """Steps of on-policy training: sample, score, reference, update."""
    algorithm, steps = ALGORITHMS[settings.algorithm], steps or settings.steps
    prompts = max(1, samples // algorithm.samples_per_prompt)
    samples = prompts * algorithm.samples_per_prompt
    prompt_tokens, longest = rows["train"].prompt_tokens, settings.response_tokens
    context, positions = prompt_tokens + longest, samples * longest * FILLED
    tokens = prompts * prompt_tokens + positions
    below = costs.shape.layers - costs.trained_layers
    seconds = costs.forward(prompts * prompt_tokens) + costs.decoding(samples, longest, context=context)
    seconds += costs.forward(tokens, layers=costs.shape.layers * 0.5)  # the scores
    seconds += costs.forward(tokens, layers=below)
    seconds += costs.forward(tokens, layers=costs.trained_layers, positions=positions)  # the reference
    seconds += algorithm.epochs * costs.training(tokens, positions=positions)
    if settings.ptx_coef:
        imitated, said = 16, rows["train"].response_tokens
        seconds += algorithm.epochs * _update_seconds(imitated * (prompt_tokens + said), imitated * said, costs)
    memory = max(costs.updating() + costs.states(tokens), costs.generating(samples, context=context))
    return StagePlan(
        name=name,
        seconds=steps * seconds,
        memory=costs.process() + costs.weights() + memory,
        work=f"{steps} updates of {samples} samples, {tokens:,.0f} tokens",
    )


def _update_seconds(tokens: float, positions: float, costs: Costs) -> float:
    below = costs.shape.layers - costs.trained_layers
    return costs.forward(tokens, layers=below) + costs.training(tokens, positions=positions)


def _training_memory(costs: Costs) -> float:
    return costs.process() + costs.weights() + costs.updating()


def _passing_memory(costs: Costs) -> float:
    return costs.process() + costs.weights() + costs.scoring()
