"""Supervised fine-tuning: a model learns to answer as your demonstrations do, measured on prompts it never saw.

    demonstrations -> cross-entropy of the assistant's tokens -> loss on held-out answers, before and after

Messages, prompts with completions and instructions are demonstrations; of comparisons the preferred response is one.
The run is a start for the others: `poise run safe-rl --model runs/sft`. The folder that the summary names is an adapter
that peft loads, or with --rank 0 a whole model that transformers loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from poise.data import held_out
from poise.data.batching import num_steps
from poise.errors import DataError
from poise.experiment import Claim, MethodCard, Metric, Study, Trial, recipe
from poise.experiment.results import Results
from poise.feedback.demonstrations import preferred_demonstrations
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.models.runs import MODEL_FOLDER
from poise.pipeline import fine_tune, measure_demonstrations, start_model
from poise.pipeline.model import DType
from poise.pipeline.safety import read_feedback
from poise.pipeline.settings import check
from poise.pipeline.supervised import answer_window
from poise.run import Run

CARD = MethodCard(
    title="Supervised fine-tuning on your demonstrations", paper="none: the cross-entropy of answers",
    feedback="people, or a model that is imitated", form="demonstrations", signal="the demonstrations themselves",
    optimiser="cross-entropy", model="any causal language model: an adapter, or all weights",
    data="messages, prompts with completions, instructions, preferred responses",
)  # fmt: skip
METRICS = (
    Metric(name="nats", label="held-out loss per token", unit="nats", over="prompts", per="tokens"),
    Metric(name="nats_before", label="the same before", unit="nats", over="prompts", per="tokens"),
    Metric(name="loss", label="held-out loss, mean of answers", unit="nats", over="prompts"),
    Metric(name="loss_before", label="the same before", unit="nats", over="prompts"),
    Metric(name="loss_change", label="change", unit="nats", over="prompts", change=("loss", "loss_before")),
)
QUICK = {"model": "random:llama?layers=3", "steps": 2, "response_tokens": 32, "seeds": 1}
ADAPTER_LR, WHOLE_LR = 2e-4, 1e-5


@recipe(CARD, quick=QUICK, seeds=1, workers=1)
def sft(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    dtype: DType = "auto",
    data: str = "starter",
    columns: str = "",
    epochs: float = 3.0,
    steps: int = 0,
    rows_per_step: int = 16,
    response_tokens: int = 512,
    every_turn: bool = False,
    rank: int = 16,
    alpha: float = 32.0,
    lr: float | None = None,
) -> Study:
    """Fine-tune a model on demonstrations, and measure the loss of held-out answers before and after.

    Args:
        model: hub id, folder (of an adapter too), run of another recipe, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        dtype: what the frozen weights are computed in; auto takes what is faster here.
        data: names or paths of demonstrations, joined by +.
        columns: what the columns of your files are called, as prompt=question,completion=answer, and which to leave
            out, as ignore=score.
        epochs: how often each demonstration is learned from.
        steps: updates; 0 takes as many as the epochs need.
        rows_per_step: demonstrations of an update.
        response_tokens: longest answer; longer ones are cut there, and how many is said.
        every_turn: learn all of the assistant's turns of a conversation, not the last one alone.
        rank: rank of the LoRA adapter; 0 trains all weights.
        alpha: its scale is alpha / rank.
        lr: peak learning rate; by default 2e-4 of an adapter, and 1e-5 of all weights.
    """
    check(
        locals(),
        at_least_one=("rows_per_step", "response_tokens"),
        above_zero=("epochs", "lr", "alpha"),
        not_negative=("steps", "rank"),
    )
    return Study(
        arms={"sft": None},
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=METRICS,
        claims=[Claim(text="held-out answers become more likely", metric="loss_before", higher="sft", lower="sft",
                      lower_metric="loss", source="ours")],
        threads=None,
        report=partial(report, model=model, data=data),
    )  # fmt: skip


def trial(given: SimpleNamespace, arm: None, seed: int, part: Run) -> Trial:
    """One model from one seed: what is held out, the order of the rows and a new adapter follow from it."""
    splits = held_out(read_feedback(part, given.data, columns=given.columns), seed=seed)
    shown = preferred_demonstrations(splits["train"])
    backbone = start_model(part, given.model, seed=seed, chat_template=given.chat_template, dtype=given.dtype)
    policy = Policy(backbone, Lora(rank=given.rank, alpha=given.alpha) if given.rank else None, seed=seed)
    reading = {"every_turn": given.every_turn, "max_response_tokens": answer_window(policy, given.response_tokens)}
    try:
        unseen = preferred_demonstrations(splits["test"])
    except DataError:  # all that is held out is prompts alone
        unseen = []
    steps = given.steps or num_steps(len(shown), given.rows_per_step, given.epochs)
    lr = given.lr or (ADAPTER_LR if given.rank else WHOLE_LR)
    before = measure_demonstrations(part, policy, unseen, name="held-out-before", **reading)
    fine_tune(part, policy, shown, steps=steps, lr=lr, name="policy", per_step=given.rows_per_step, seed=seed,
              **reading)  # fmt: skip
    after = measure_demonstrations(part, policy, unseen, **reading)
    return Trial(
        by_prompt={**after, **{f"{name}_before": values for name, values in before.items()}},
        paths={"model": f"{part.path.name}/policy/model"},
    )


def report(run: Run, results: Results, **facts: Any) -> Mapping[str, Any]:
    """The summary: the losses, and where the model of the first seed lies."""
    there = {metric.name: metric for metric in METRICS if results.has("sft", metric.name)}
    found = {name: results.estimate("sft", metric) for name, metric in there.items()}
    return {**found, MODEL_FOLDER: results.trials["sft"][0].paths["model"], **facts}
