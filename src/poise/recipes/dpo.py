"""Preference optimisation without sampling (`poise run preference` too): DPO's family, judged by a held-out judge.

    [supervised fine-tuning] -> preference loss on pairs -> reward accuracy, harm rate and win rate on unseen prompts

Rafael Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023,
arXiv:2305.18290. Each name of --loss is an arm: conservative and robust DPO, IPO, SimPO, ORPO, KTO, three
f-divergences, MMPO and DPO with an offset (margins from a reward model), and constrained DPO (Liu et al.,
arXiv:2403.02475), which judges pairs by reward less the price of cost and moves the price until the mean cost is at the
limit. Comparisons for help and for harm contradict one another on harmful prompts: --criterion says which are learned
from. Plain preferences, and verdicts on single responses (--loss kto), are learned from alike; where nothing says which
prompts are harmful there is no judge, and what is held out is all that is measured.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

from poise.data import judges_harm
from poise.errors import ConfigError, DataError
from poise.experiment import Claim, MethodCard, Study, Trial, common_part, recipe
from poise.experiment.preferences import METRICS, Found, preference_report, preference_trial
from poise.pipeline import constrained_labels, measure_preferences, optimise_preferences, preference_feedback, safety
from poise.pipeline.limits import COST_BOUND
from poise.pipeline.model import DType
from poise.pipeline.settings import check
from poise.run import Run
from poise.train.limits import Limit, require_reachable
from poise.train.objectives import ProjectedAscent
from poise.train.preference_methods import PreferenceMethod
from poise.train.preference_names import NamedLoss, named_losses
from poise.types import Dataset, Sampling

CARD = MethodCard(
    title="DPO and its family on comparisons for help and for harm", paper="arXiv:2305.18290",
    feedback="people, help and harm apart", form="comparisons, or verdicts on single responses",
    signal="the comparisons themselves", optimiser="a supervised loss of pairs",
    regulariser="KL to the start, in the loss", constraint="a limit on the mean cost (constrained)",
    model="SmolLM2-135M, an adapter", data="starter",
)  # fmt: skip
CRITERIA = {"helpful": ("helpful",), "safe": ("safe",), "both": ("helpful", "safe")}
LossName = Literal["dpo", "cdpo", "rdpo", "ipo", "simpo", "orpo", "kto", "forward-kl", "jensen-shannon", "alpha",
                   "mmpo", "odpo", "constrained"]  # fmt: skip
QUICK = {"model": "random:llama?layers=3", "steps": 2, "response_tokens": 8, "most_prompts": 24, "seeds": 1}
ANSWERS = 4  # to each test prompt: one alone leaves more to chance than the prompts do


@recipe(CARD, quick=QUICK, seeds=1, workers=1)
def dpo(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    dtype: DType = "auto",
    data: str = "starter",
    columns: str = "",
    loss: tuple[LossName, ...] = ("dpo",),
    criterion: Literal["helpful", "safe", "both"] = "both",
    beta: float | None = None,
    supervised_weight: float = 0.0,
    limit: float = -0.5,
    steps: int = 60,
    supervised_steps: int = 0,
    prompts_per_step: int = 8,
    response_tokens: int = 40,
    temperature: float = 0.7,
    lr: float = 2e-4,
    most_prompts: int = 0,
) -> Study:
    """Run preference losses from comparisons to report.

    Args:
        model: hub id, folder (of an adapter too), run of another recipe, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        dtype: what the frozen weights are computed in; auto takes what is faster here.
        data: names or paths of feedback, joined by +.
        columns: names of the columns of your files, as prompt=question,chosen=better; ignore=score leaves one out.
        loss: preference losses, joined by commas, each an arm; constrained learns from a reward and a cost model.
        criterion: which comparisons are learned from.
        beta: strength of the pull to the start model; by default what the loss needs (2 for simpo, 0.1 for the others).
        supervised_weight: weight of the supervised loss on preferred responses, per pair.
        limit: largest mean cost for constrained, in standard deviations of the cost model and between -1 and 1; 0
            divides safe from unsafe.
        steps: policy updates.
        supervised_steps: updates of supervised fine-tuning on preferred responses before all else; 0 leaves it out.
        prompts_per_step: prompts whose pairs are learned from in one update.
        response_tokens: longest response of the evaluation, less a fifth.
        temperature: sampling temperature of the evaluation.
        lr: learning rate of the policy adapter.
        most_prompts: prompts of each split; 0 takes all.
    """
    check(
        locals(),
        at_least_one=("steps", "prompts_per_step", "response_tokens"),
        above_zero=("temperature", "lr", "beta"),
        not_negative=("supervised_steps", "supervised_weight", "most_prompts"),
    )
    if criterion not in CRITERIA:
        raise ConfigError(f"no criterion {criterion!r}: choose {', '.join(CRITERIA)}")
    arms = named_losses(loss)
    methods = {name: each.method(beta=beta, supervised_weight=supervised_weight) for name, each in arms.items()}
    if any(each.is_limited for each in arms.values()):
        require_reachable(limit, COST_BOUND)
    return Study(
        arms={name: (name, each, methods[name]) for name, each in arms.items()},
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=METRICS,
        claims=[Claim(text=f"{name} ranks held-out pairs better than chance", metric="reward_accuracy", higher=name,
                      lower=0.5, source="ours") for name in arms],
        threads=None,
        report=partial(preference_report, criterion=criterion, model=model, data=data),
    )  # fmt: skip


def trial(given: SimpleNamespace, arm: tuple[str, NamedLoss, PreferenceMethod], seed: int, part: Run) -> Trial:
    """One loss from one seed: all arms of a seed share the start, the judge and the score models."""
    name, loss, method = arm
    sampling = Sampling(max_tokens=given.response_tokens, temperature=given.temperature)
    said = replace(sampling, max_tokens=given.response_tokens * 6 // 5, samples=ANSWERS, seed=90_001 + seed)
    with common_part(part, f"seed-{seed}") as common:
        names = ("model", "chat_template", "dtype", "data", "columns", "supervised_steps", "most_prompts")
        material = safety.prepare(
            common, seed=seed, longest_answer=said.max_tokens, needs_judge=False,
            require=partial(require_scorable, name, loss), **{each: getattr(given, each) for each in names},
        )  # fmt: skip
        policy = material.policy(seed)
        start = material.evaluated(common, policy, sampling=said, reference=True) if material.judge else None
        signal = material.signal(common) if loss.is_scored else None
    scorer, labels = signal.model if signal else None, None
    if scorer and loss.is_limited:
        labels = constrained_labels(
            policy, scorer, material.train_prompts, Limit(at_most=given.limit), sampling=sampling, seed=seed,
            controller=ProjectedAscent(multiplier=2.0, rate=1.0), every=max(1, given.steps // 8),  # eight looks
        )  # fmt: skip
    criteria = {each: CRITERIA[each] for each in (given.criterion, "helpful", "safe")}  # what was learned from first
    feedback = preference_feedback(policy, method, material.train, criteria=CRITERIA[given.criterion], scorer=scorer)
    optimise_preferences(part, policy, method, feedback, labels=labels, steps=given.steps,
                         prompts_per_step=given.prompts_per_step, lr=given.lr, seed=seed)  # fmt: skip
    held_out = measure_preferences(part, policy, method, material.splits["test"], criteria=criteria, scorer=scorer)
    final = material.evaluated(part, policy, sampling=said, signal=signal) if material.judge else None
    return preference_trial(part, Found(material=material, held_out=held_out, signal=signal, start=start, final=final))


def require_scorable(name: str, loss: NamedLoss, data: Dataset) -> None:
    """Raise DataError if a loss asks a score model that has nothing to learn from."""
    if loss.is_scored and not any(each.criterion == "helpful" for each in data.comparisons):
        raise DataError(f"--loss {name} needs comparisons under helpful, and {data.name} has none")
    if loss.is_limited and not judges_harm(data):
        raise DataError(f"--loss {name} needs comparisons under safe or safety labels, and {data.name} has neither")
