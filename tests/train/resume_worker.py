"""Trains one of the loops on a tiny model in a run folder: the process that the resume tests kill.

Run as a script it reads lines `<loop> <folder> <save every> <pause>` and forks one child for each, so that the heavy
imports are paid once. For each line it prints the child's process id, then its exit code (-9 for a killed one).
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from conftest import PROMPTS, LetterScorer, tiny_policy
from poise.models.adapters import Lora
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train import checkpoint
from poise.train.algorithms import PPO
from poise.train.averaging import AverageRule, MeanOfLast
from poise.train.loop import cosine, fit
from poise.train.objectives import PID, Lagrangian, Limit
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.train.preference import PreferenceTrainer
from poise.train.preference_feedback import PairFeedback
from poise.train.preference_methods import ConstrainedLabels, dpo
from poise.train.score_model import FeedbackTable, ScoreTrainer
from poise.train.supervised import DemonstrationBatches, SupervisedTrainer
from poise.train.validation import Validation
from poise.types import Comparison, Demonstration, Prompt, Sampling

STEPS = 12
TEXTS = ("Good day.", "No", "A rather long answer it is")


def supervised() -> SupervisedTrainer:
    policy = tiny_policy()
    demonstrations = [Demonstration(prompt=p, response=r) for p in PROMPTS for r in TEXTS]
    batches = DemonstrationBatches(demonstrations, policy, per_step=3)
    return SupervisedTrainer(policy=policy, batches=batches, lr=1e-3, steps=STEPS)


def scores() -> ScoreTrainer:
    model = ScoreModel(load_backbone("random:llama"), hidden=8, lora=Lora(rank=2))
    comparisons = [
        Comparison(prompt=p, responses=TEXTS[:2], winner=i % 2, criterion=c, safe=(True, False))
        for i, p in enumerate(PROMPTS)
        for c in ("helpful", "safe")
    ]
    torch.manual_seed(0)  # of the dropout
    return ScoreTrainer(model=model, table=FeedbackTable(model, comparisons), prompts_per_step=3, steps=STEPS)


def on_policy(average: AverageRule | float) -> OnPolicyTrainer:
    policy = tiny_policy()
    trainer = OnPolicyTrainer(
        policy=policy,
        engine=NativeEngine(policy),
        scorers=[LetterScorer()],
        algorithm=PPO,
        objective=Lagrangian(Limit(at_most=-0.5, window=6), PID()),
        prompts=PROMPTS,
        prompts_per_step=3,
        sampling=Sampling(max_tokens=6),
        optimisation=OptimizerSettings(schedule=cosine, steps=STEPS, ptx_coef=0.5, average=average),
        demonstrations=DemonstrationBatches([Demonstration(prompt=PROMPTS[0], response=TEXTS[0])], policy),
    )
    trainer.validate_on(Validation(prompts=[Prompt.of("Unseen"), Prompt.of("Unknown")], every=2))
    return trainer


def preference() -> PreferenceTrainer:
    policy = tiny_policy()
    comparisons = [Comparison(prompt=p, responses=TEXTS, winner=i % 3) for i, p in enumerate(PROMPTS)]
    engine, scorer, sampling = NativeEngine(policy), LetterScorer(), Sampling(max_tokens=6)

    def mean_cost(index: int) -> float:
        completions = engine.generate(PROMPTS, replace(sampling, seed=index))
        return sum(s.values["cost"] for s in scorer.score(PROMPTS, completions)) / len(PROMPTS)

    return PreferenceTrainer(
        policy=policy,
        method=dpo(),
        feedback=PairFeedback(policy, comparisons, scorer=scorer),
        labels=ConstrainedLabels(Limit(at_most=-0.5), PID(), mean_cost, every=2),
        prompts_per_step=3,
        lr=1e-3,
        steps=STEPS,
    )


LOOPS = {
    "supervised": supervised,
    "scores": scores,
    "decayed_average": partial(on_policy, 0.8),
    "mean_of_last": partial(on_policy, MeanOfLast(4)),
    "preference": preference,
}


def train(loop: str, folder: Path, save_every: int, pause: float) -> None:
    """Train to the end, from wherever the folder is; `pause` seconds pass in the middle of each checkpoint."""
    write = checkpoint.write_tensors

    def slowly(*arguments: Any) -> None:
        time.sleep(pause / 2)
        write(*arguments)
        time.sleep(pause / 2)

    checkpoint.write_tensors = slowly if pause else write
    with Run.open(folder, recipe="resume", arguments={}) as run:
        fit(LOOPS[loop](), run=run, stage="train", steps=STEPS, save_every=save_every)


def main() -> None:
    """Serve the lines of standard input."""
    for make in LOOPS.values():  # imports what the loops import late, once for all children
        make()
    for line in sys.stdin:
        loop, folder, save_every, pause = line.split()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(loop, Path(folder), int(save_every), float(pause))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
