"""Whether `LagrangianReward` holds a limit in TRL's GRPO that plain GRPO misses: a tiny random model, three seeds.

    pip install -c constraints.txt -e '.[bench]' && python benchmarks/limits_in_trl.py

The model says 8 byte tokens. Reward is the share of tokens below 128, cost the share below 64, limit 0.1: the tokens
from 64 to 127 are worth as much and cost nothing, but without a limit nothing says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from poise.models.tiny import tiny_model, tiny_tokenizer
from poise.train.controllers import PID
from poise.train.lagrangian_reward import LagrangianReward
from poise.train.limits import Limit
from poise.train.objectives import Lagrangian
from poise.types import Completion, Prompt, Scores

LIMIT, STEPS, LAST = 0.1, 80, 10


class Shares:
    """Reward and cost of a completion by its token ids; what it has given is kept."""

    def __init__(self) -> None:
        self.given: list[list[Scores]] = []

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """The shares of tokens below 128 and below 64."""
        shares = [
            [sum(i < end for i in c.token_ids) / max(1, len(c.token_ids)) for end in (128, 64)] for c in completions
        ]
        self.given.append([Scores(values={"reward": reward, "cost": cost}) for reward, cost in shares])
        return self.given[-1]

    def last(self, channel: str) -> float:
        """The mean over the last steps."""
        values = [scores.values[channel] for step in self.given[-LAST:] for scores in step]
        return sum(values) / len(values)


def trained(seed: int, *, limited: bool) -> tuple[float, float, float]:
    """Reward and cost of the last steps of a run, and its multiplier at the end."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder, shares = tempfile.mkdtemp(), Shares()
    tiny_model("random:llama?layers=1&hidden=32", seed=seed + 1).save_pretrained(f"{folder}/model")
    tiny_tokenizer("random:llama").save_pretrained(f"{folder}/model")
    price = PID() if limited else PID(maximum=0.0)  # a price that stays 0 is plain GRPO
    reward = LagrangianReward([shares], Lagrangian(Limit("cost", LIMIT, scale=4.0), price))
    settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    config = GRPOConfig(
        output_dir=folder,
        seed=seed,
        max_steps=STEPS,
        learning_rate=1e-2,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=8,
        save_strategy="no",
        logging_strategy="no",
        beta=0.0,
        **settings,
    )
    trainer = GRPOTrainer(
        model=f"{folder}/model",
        reward_funcs=[reward],
        callbacks=[reward.callback],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": word} for word in ("Say", "Tell", "Give", "Show")]),
    )
    trainer.train()
    return shares.last("reward"), shares.last("cost"), reward.objective.multipliers["cost"]


def main() -> None:
    """Print the table of both, by seed."""
    print(f"| GRPO of TRL | seed | reward | cost (limit {LIMIT}) | multiplier at the end |")
    print("| --- | --- | --- | --- | --- |")
    for name, limited in (("plain", False), ("with LagrangianReward", True)):
        for seed in range(3):
            reward, cost, multiplier = trained(seed, limited=limited)
            print(f"| {name} | {seed} | {reward:.2f} | {cost:.2f} | {multiplier:.2f} |", flush=True)


if __name__ == "__main__":
    main()
