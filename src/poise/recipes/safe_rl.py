"""A policy under limits of your own, by scorers of your own: any reward, any costs, any algorithm.

    prompts -> answers before -> reward under limits -> answers after, on prompts that training never saw

--reward and --cost name scorers: score models of poise, classifiers of transformers (hf:...), Python functions
(py:mine.py:f), servers, rules. Without --cost and --limit it is plain GRPO or RLOO on your reward. Held-out prompts
are measured by the very scorers that the policy was trained on: that is the training signal, not a judge of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from poise.data import first_prompts, held_out
from poise.experiment import Claim, MethodCard, Study, Trial, recipe
from poise.experiment.results import Results
from poise.experiment.scored import SIGNAL, MeasuredAnswers, metrics_of
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.models.runs import MODEL_FOLDER
from poise.pipeline import align, safety, start_model
from poise.pipeline.model import DType
from poise.pipeline.own_signal import OwnSignal
from poise.pipeline.settings import check
from poise.run import Run
from poise.train.algorithms import algorithm_named
from poise.train.limit_text import require_groups
from poise.train.on_policy import OptimizerSettings
from poise.types import Sampling

CARD = MethodCard(
    title="A policy under limits, by scorers of your own", paper="after arXiv:2310.12773, with any scorers",
    feedback="any scorer", form="scores", signal="the scorers themselves", optimiser="RLOO, GRPO, or any record",
    regulariser="KL to the start", constraint="any limits, or none", model="any causal language model",
    data="prompts",
)  # fmt: skip
QUICK = {"model": "random:llama?layers=3", "reward": ("rule:refusal",), "steps": 2, "samples_per_step": 8,
         "response_tokens": 8, "held_out_prompts": 12, "seeds": 1}  # fmt: skip


@recipe(CARD, quick=QUICK, seeds=1, workers=1)
def safe_rl(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    dtype: DType = "auto",
    data: str = "starter",
    columns: str = "",
    reward: tuple[str, ...] = (),
    cost: tuple[str, ...] = (),
    scorer: tuple[str, ...] = (),
    limit: float | tuple[str, ...] = (),
    algorithm: str = "rloo",
    steps: int = 60,
    samples_per_step: int = 64,
    response_tokens: int = 128,
    temperature: float = 1.0,
    rank: int = 16,
    alpha: float = 32.0,
    lr: float = 3e-4,
    kl_coef: float = 0.03,
    multiplier: float = 2.0,
    engine: str = "native",
    answers: int = 2,
    held_out_prompts: int = 200,
) -> Study:
    """Train a policy on your reward, under your limits, and measure both on held-out prompts before and after.

    Args:
        model: hub id, folder (of an adapter too), run of another recipe, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        dtype: what the frozen weights are computed in; auto takes what is faster here.
        data: names or paths of prompts, joined by +; of other rows the prompts are taken.
        columns: names of the columns of your files, as prompt=question; ignore=score leaves one out.
        reward: what is maximised: names of scorers, joined by ' + ' or given again; several are summed.
        cost: what --limit 'cost <= 0' speaks of, named alike; higher is worse.
        scorer: further channels for limits, as length=py:mine.py:words.
        limit: an upper bound, as 'cost <= 0', 'rate(cost) <= 2 %' or 'refusal@benign <= 0.05'; give it again for more.
        algorithm: rloo, grpo, ppo, or any record that `poise run contract` compares.
        steps: policy updates.
        samples_per_step: responses sampled for each update.
        response_tokens: longest response, in tokens.
        temperature: of sampling, in training and evaluation.
        rank: rank of the LoRA adapter; 0 trains all weights.
        alpha: its scale is alpha / rank.
        lr: learning rate of the policy.
        kl_coef: weight of the KL penalty to the start, per nat.
        multiplier: of every limit, in the first update.
        engine: who samples: native, ray:4 or the http://HOST:PORT of a vLLM server.
        answers: to each held-out prompt.
        held_out_prompts: how many of the held-out prompts are asked at most.
    """
    check(
        locals(),
        at_least_one=("steps", "samples_per_step", "response_tokens", "answers", "held_out_prompts"),
        above_zero=("temperature", "lr", "alpha"),
        not_negative=("kl_coef", "rank", "multiplier"),
    )
    signal = OwnSignal.read(reward=reward, cost=cost, others=scorer, limits=limit)
    record = algorithm_named(algorithm, safety.ALGORITHMS)
    return Study(
        arms={"policy": None},
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=metrics_of(signal),
        claims=[Claim(text="the reward rises on held-out prompts", metric="reward", higher="policy", lower="policy",
                      lower_metric="reward_before", source="ours")]
        + [Claim(text=f"{each.text} on held-out prompts", metric=each.text, higher=each.at_most, lower="policy",
                 source="ours") for each in signal.limits],
        notes=SIGNAL,
        threads=None,
        report=partial(report, model=model, data=data),
    )  # fmt: skip


def trial(given: SimpleNamespace, arm: None, seed: int, part: Run) -> Trial:
    """One policy from one seed: what is held out, what is sampled and a new adapter follow from it."""
    splits = held_out(safety.read_feedback(part, given.data, columns=given.columns), seed=seed)
    prompts = sorted(splits["train"].prompts, key=lambda prompt: prompt.id)
    require_groups(given.signal.limits, prompts)
    asked = tuple(first_prompts(splits["test"], given.held_out_prompts).prompts)
    backbone = start_model(part, given.model, seed=seed, chat_template=given.chat_template, dtype=given.dtype)
    scorers = given.signal.scorers(backbone)
    policy = Policy(backbone, Lora(rank=given.rank, alpha=given.alpha) if given.rank else None, seed=seed)
    sampling = Sampling(max_tokens=given.response_tokens, temperature=given.temperature)
    measured = MeasuredAnswers(
        run=part, policy=policy, signal=given.signal, scorers=scorers, prompts=asked, engine=given.engine,
        sampling=replace(sampling, samples=given.answers, seed=90_001 + seed),
    )  # fmt: skip
    before = measured.trial(before=True)
    align(
        part, policy, scorers, prompts, objective=given.signal.objective(multiplier=given.multiplier),
        algorithm=replace(given.record, kl_coef=given.kl_coef), samples_per_step=given.samples_per_step,
        sampling=sampling, optimisation=OptimizerSettings(lr=given.lr, steps=given.steps), engine=given.engine,
        seed=seed,
    )  # fmt: skip
    after = measured.trial()
    return replace(
        after, by_prompt={**before.by_prompt, **after.by_prompt}, facts={**after.facts, **before.facts},
        paths={"model": f"{part.path.name}/policy/model"},
    )  # fmt: skip


def report(run: Run, results: Results, **facts: Any) -> Mapping[str, Any]:
    """The summary: every figure, and where the model of the first seed lies."""
    place = {MODEL_FOLDER: results.trials["policy"][0].paths["model"]}
    return {**results.estimates()["policy"], **place, "measured by": SIGNAL, **facts}
