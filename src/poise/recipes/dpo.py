"""Preference optimisation without sampling: DPO and its family on decoupled comparisons, judged by a held-out judge.

    [supervised fine-tuning] -> preference loss on pairs -> reward accuracy, harm rate and win rate on unseen prompts

Rafael Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023,
arXiv:2305.18290. The family by --loss: conservative and robust DPO, IPO, SimPO, ORPO, KTO, three f-divergences, MMPO
and DPO with an offset (margins from a reward model), and constrained DPO (Liu et al., arXiv:2403.02475), which judges
pairs by reward less the price of cost and moves the price until the mean cost is at the limit. The comparisons for
help ignore harm and those for harm ignore help: on harmful prompts they contradict one another, and --criterion says
which are learned from. Plain preferences, and verdicts on single responses (--loss kto), are learned from alike; where
nothing says which prompts are harmful there is no judge, and what is held out is all that is measured.
"""

from __future__ import annotations

from typing import Literal

from poise.recipes._quick import ALIGNED, briefly
from poise.run import Run

PAPER = "arXiv:2305.18290"
SHAPE = "prompts + decoupled comparisons -> policy adapter, report"
COST = "no sampling during training (constrained: eight looks at 16 answers); evaluation as in safe-rlhf"
EXPECTED = None  # no full run with several seeds has been measured yet

LossName = Literal[
    "dpo",
    "cdpo",
    "rdpo",
    "ipo",
    "simpo",
    "orpo",
    "kto",
    "forward-kl",
    "jensen-shannon",
    "alpha",
    "mmpo",
    "odpo",
    "constrained",
]


@briefly(**ALIGNED)
def dpo(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    data: str = "starter",
    columns: str = "",
    loss: LossName = "dpo",
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
    seed: int = 0,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Run a preference loss from comparisons to report.

    Args:
        model: hub id, folder, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        data: names or paths of feedback, joined by +.
        columns: what the columns of your files are called, as prompt=question,chosen=better, and which to leave out, as
            ignore=score.
        loss: the preference loss; constrained learns from reward and cost models of both criteria.
        criterion: which comparisons are learned from.
        beta: strength of the pull to the start model; by default what the loss needs (2 for simpo, 0.1 for the others).
        supervised_weight: weight of the supervised loss on preferred responses, per pair.
        limit: largest mean cost for constrained, in spreads of the cost model and between -1 and 1; 0 is its border
            between safe and unsafe.
        steps: policy updates.
        supervised_steps: updates of supervised fine-tuning on preferred responses before all else; 0 leaves it out.
        prompts_per_step: prompts whose pairs are learned from in one update.
        response_tokens: longest response of the evaluation, less a fifth.
        temperature: sampling temperature of the evaluation.
        lr: learning rate of the policy adapter.
        seed: seed of everything random.
        page: a Markdown file to write the results to as well.
        folder: run folder; an unfinished run in it is continued.
        quick: a tiny random model and few steps: a smoke test, not a result.
    """
    from poise.recipes import _preferences as preferences
    from poise.recipes import _stages as stages
    from poise.recipes._imitation import start_from_preferred
    from poise.recipes._scores import learn_scores
    from poise.recipes._unjudged import report_unjudged

    settings = preferences.PreferenceSettings.of(locals())
    with Run.open(folder, recipe="dpo", arguments=settings.arguments) as run:
        study = stages.prepare(run, settings, needs_judge=False)
        preferences.require_scorable(settings, study.splits["train"])
        start_from_preferred(run, study)
        judge = learn_scores(run, study, "judge", split="judge") if study.is_judged else None
        before = stages.assess(run, study, judge, "start") if judge else None
        is_scored = preferences.LOSSES[settings.loss].is_scored
        scorer = learn_scores(run, study, "scores", split="train") if is_scored else None
        policy = preferences.learn_preferences(run, study, scorer)
        pairs = preferences.measure_pairs(run, study, policy, scorer)
        if judge is None or before is None:
            report_unjudged(run, study, scorer, pairs, target=page)
        else:
            after = stages.assess(run, study, judge, "final", policy=policy, scorer=scorer)
            preferences.report(run, study, judge, scorer, before, after, pairs, target=page)
    return run
