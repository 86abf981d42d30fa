"""What studies report of answers to held-out prompts that the scorers of training score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poise.evaluate.suite import Suite, channel_means, form
from poise.experiment.study import Metric, Trial
from poise.models.policy import Policy
from poise.pipeline.evaluation import evaluate
from poise.pipeline.own_signal import OwnSignal
from poise.ranks import current
from poise.run import Run
from poise.text import say
from poise.types import Engine, Prompt, Sampling, Scorer

SIGNAL = "Held-out prompts are measured by the scorers of training: the training signal, and not a judge of it."


def metrics_of(signal: OwnSignal) -> list[Metric]:
    """Each channel after, before and its change; what each limit comes to; and what could not be scored."""
    found = [
        Metric(name=f"{name}{when}", label=f"{name}{label}", over="prompts", change=change)
        for name in signal.channels
        for when, label, change in (
            ("", "", None), ("_before", ", before", None), ("_change", ", change", (name, f"{name}_before")),
        )
    ]  # fmt: skip
    limited = [(f"{each.text}{when}", each.unit) for each in signal.limits for when in ("", ", before")]
    found += [Metric(name=name, label=name, unit="share" if unit == "share" else "", over="facts", summary="largest",
                     table="What the limits come to on held-out prompts") for name, unit in limited]  # fmt: skip
    return [*found, Metric(name="unscorable", label="answers not scored", unit="share", over="prompts")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredAnswers:
    """What a policy answers to held-out prompts, before and after it is trained, and who scores it."""

    run: Run
    policy: Policy
    signal: OwnSignal
    scorers: Sequence[Scorer]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    engine: str | Engine = "native"

    def trial(self, *, before: bool = False) -> Trial:
        """The figures by prompt and what each limit comes to; nothing where nothing is held out."""
        if not self.prompts:
            if before and current().is_main:
                say("no prompt is held out, so nothing is measured on unseen prompts: give more", error=True)
            return Trial()
        suite = Suite(name="held-out", prompts=self.prompts, metrics=(form, channel_means))
        found = evaluate(
            self.run,
            self.policy,
            suite,
            {str(number): scorer for number, scorer in enumerate(self.scorers)},
            sampling=self.sampling,
            engine=self.engine,
            reference=before,
            name="evaluate-before" if before else "evaluate",
        )
        rows, limits = self.signal.measured(found)
        one, two = ("_before", ", before") if before else ("", "")
        return Trial(
            by_prompt={f"{name}{one}": values for name, values in rows.items()},
            facts={f"{text}{two}": value for text, value in limits.items()},
        )
