"""Trains every loop on tiny models, alone and in two processes, and continues each where the other stopped.

Run as a script with a folder. The heavy imports are paid once: a child is forked for each process. Each loop leaves
its metrics (in its run) and its weights, whole, in `<folder>/<what>/<loop>`.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from conftest import PROMPTS, LetterScorer, tiny_policy
from poise.models.adapters import Lora
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.ranks import current
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.algorithms import GROUP_INVARIANT, PPO, RLOO
from poise.train.checkpoint import write_tensors
from poise.train.distributed import process_group
from poise.train.limits import cvar
from poise.train.loop import fit
from poise.train.objectives import PID, Lagrangian, Limit
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.train.preference import PreferenceTrainer
from poise.train.preference_feedback import PairFeedback, ResponseFeedback
from poise.train.preference_methods import dpo, kto
from poise.train.score_model import FeedbackTable, ScoreTrainer
from poise.train.selection import worst_share
from poise.train.supervised import DemonstrationBatches, SupervisedTrainer
from poise.types import Comparison, Demonstration, Sampling

STEPS, STOP = 4, 2
TEXTS = ("Good day.", "No", "A rather long answer it is")
HALF, WHOLE = Lora(rank=2, top=0.5), Lora(rank=2)


def supervised(lora: Lora | None, *, recompute: bool = False) -> SupervisedTrainer:
    first = tiny_policy(lora=HALF)
    first.merge()  # so that the backbone is not as it was loaded
    policy = Policy(first.backbone, lora, adapter="second")
    policy.recompute = recompute
    demonstrations = [Demonstration(prompt=p, response=r) for p in PROMPTS for r in TEXTS]
    batches = DemonstrationBatches(demonstrations, policy, per_step=5, tokens_per_micro_batch=128)
    return SupervisedTrainer(policy=policy, batches=batches, lr=1e-3, steps=STEPS)


def scores(lora: Lora | None, hidden: int) -> ScoreTrainer:
    model = ScoreModel(load_backbone("random:llama"), hidden=hidden, lora=lora)
    comparisons = [
        Comparison(prompt=p, responses=TEXTS[:2], winner=i % 2, criterion=c, safe=(True, False))
        for i, p in enumerate(PROMPTS)
        for c in ("helpful", "safe")
    ]
    torch.manual_seed(0)  # of the dropout
    return ScoreTrainer(model=model, table=FeedbackTable(model, comparisons), prompts_per_step=3, steps=STEPS)


def preferences(lora: Lora | None, method: Any, feedback: Any) -> PreferenceTrainer:
    policy = tiny_policy(lora=lora)
    comparisons = [
        Comparison(prompt=p, responses=(TEXTS[i % 3], TEXTS[(i + 1) % 3]), winner=i % 2) for i, p in enumerate(PROMPTS)
    ]
    return PreferenceTrainer(
        policy=policy, method=method, feedback=feedback(policy, comparisons), prompts_per_step=3, lr=1e-3, steps=STEPS
    )


def on_policy(lora: Lora | None, algorithm: Any) -> OnPolicyTrainer:
    policy = tiny_policy(lora=lora)
    return OnPolicyTrainer(
        policy=policy,
        engine=NativeEngine(policy),
        scorers=[LetterScorer()],
        algorithm=algorithm,
        objective=Lagrangian(Limit("cost", -1.0, measure=cvar(0.5), window=8), PID()),
        prompts=PROMPTS,
        prompts_per_step=3,
        sampling=Sampling(max_tokens=6),
        optimisation=OptimizerSettings(lr=1e-3, tokens_per_micro_batch=96, average=0.5),
    )


LOOPS: dict[str, Callable[[], Any]] = {
    "supervised, adapter": lambda: supervised(HALF),
    "supervised, all weights": lambda: supervised(None),
    "supervised, recomputed": lambda: supervised(None, recompute=True),
    "scores, frozen backbone": lambda: scores(None, hidden=8),
    "scores, adapter": lambda: scores(WHOLE, hidden=0),
    "preferences, adapter": lambda: preferences(HALF, dpo(), PairFeedback),
    "preferences, all weights": lambda: preferences(None, dpo(), PairFeedback),
    "responses, adapter": lambda: preferences(WHOLE, kto(), ResponseFeedback),
    "ppo, adapter": lambda: on_policy(HALF, replace(PPO, epochs=2, samples_per_prompt=2)),
    "ppo, all weights": lambda: on_policy(None, replace(PPO, samples_per_prompt=2)),
    "worst episodes": lambda: on_policy(HALF, replace(RLOO, selection=worst_share(0.5))),
    "inferred groups": lambda: on_policy(WHOLE, replace(GROUP_INVARIANT, samples_per_prompt=2)),
}


def optimizers_of(trainer: Any) -> list[torch.optim.Optimizer]:
    return [found for name in ("optimizer", "critic_optimizer") if (found := getattr(trainer, name, None)) is not None]


def train(folder: Path, name: str, steps: int) -> None:
    trainer = LOOPS[name]()
    for optimizer in optimizers_of(trainer):
        for group in optimizer.param_groups:
            group["eps"] = 1e-3  # a step in proportion to the gradient, also where that is rounding
    with Run.open(folder / slug(name), recipe="ranks", arguments={}) as run:
        fit(trainer, run=run, stage="stage", steps=steps, save_every=STOP)
    if isinstance(trainer, SupervisedTrainer):
        trainer.policy.save_pretrained(folder / slug(name) / "model", merge=True)
    weights: Mapping[str, torch.Tensor] = dict(trainer.parameters)
    if isinstance(trainer, OnPolicyTrainer):
        weights |= {f"critics.{key}": value for key, value in trainer.critics.state_dict().items()}
        assert trainer.average is not None
        weights |= {f"average.{key}": value for key, value in trainer.average.mean.items()}
    whole = {key: current().whole(value) for key, value in weights.items()}
    if current().is_main:
        write_tensors(folder / slug(name) / "weights.safetensors", whole)


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def in_processes(size: int, work: Callable[[], None]) -> None:
    """Do the work in so many forked processes; raises if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                with process_group():
                    work()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"{size} processes ended with {codes}")


def main(folder: Path) -> None:
    def all_loops(place: str) -> Callable[[], None]:
        return lambda: [train(folder / place, name, STEPS) for name in LOOPS] and None

    load_backbone("random:llama")  # imports what is imported late, once for all children
    in_processes(1, all_loops("alone"))
    in_processes(2, all_loops("two"))
    for begun, continued in (("alone", "alone-then-two"), ("two", "two-then-alone")):
        shutil.copytree(folder / begun, folder / continued)
        for newest in (folder / continued).glob(f"*/stage/checkpoints/step-{STEPS:06d}"):
            shutil.rmtree(newest)
    in_processes(2, all_loops("alone-then-two"))
    in_processes(1, all_loops("two-then-alone"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
