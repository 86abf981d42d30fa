"""The peers of TRL: its trainers on the same texts, one step at every word from the parent."""

from __future__ import annotations

import os
import random
import tempfile
from typing import Any

from _models import peer_model, prompts, response
from harness import Size, Turn, ready, wait_for_turn

GROUP = 8  # completions per prompt of GRPO
MICRO_BATCH = 16  # rows that the trainers of TRL run at once


def settings(size: Size) -> dict[str, Any]:
    """What all trainers are told: bf16 weights, AdamW, nothing saved, reported or recomputed."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 1e-6,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "max_steps": 10_000,
        "dataloader_drop_last": True,
    }


def lora(size: Size, task: str = "CAUSAL_LM") -> Any:
    """LoRA of rank 16 on all linear layers, as ours."""
    if not size.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)


def serve(trainer: Any) -> None:
    """Train a step at every word from the parent; the process ends with the last one."""
    from transformers import TrainerCallback

    def wait(turns: list[Turn]) -> None:
        if not wait_for_turn():
            ready()
            os._exit(0)
        turns.append(Turn())

    class Steps(TrainerCallback):
        def __init__(self) -> None:
            self.turns: list[Turn] = []

        def on_step_begin(self, *rest: Any, **more: Any) -> None:
            if not self.turns:
                wait(self.turns)

        def on_step_end(self, *rest: Any, **more: Any) -> None:
            self.turns[-1].end()
            wait(self.turns)

    trainer.add_callback(Steps())
    ready()
    trainer.train()


def grpo(size: Size) -> None:
    """GRPO, KL coefficient 0, one update per batch."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = peer_model(size)
    group = min(GROUP, size.rows // 2)
    rows = [{"prompt": list(prompt.messages)} for prompt in prompts(size, 8 * size.rows)]
    micro = min(MICRO_BATCH, size.rows)
    config = GRPOConfig(
        **settings(size),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=size.rows // micro,
        num_generations=group,
        max_completion_length=size.response,
        generation_kwargs={"min_new_tokens": size.response},
        beta=0.0,
        temperature=1.0,
    )

    def reward(completions: Any, **more: Any) -> list[float]:
        return [float(len(str(each)) % 7) for each in completions]

    serve(
        GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora(size),
        )
    )


def pairs(size: Size) -> list[dict[str, Any]]:
    """Comparisons as conversations."""
    draw, rows = random.Random(1), []
    for prompt in prompts(size, 4 * size.rows):
        answers = [[{"role": "assistant", "content": response(size, draw)}] for _ in range(2)]
        rows.append({"prompt": list(prompt.messages), "chosen": answers[0], "rejected": answers[1]})
    return rows


def dpo(size: Size) -> None:
    """DPO with the reference's log-probabilities computed beforehand, as ours."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = peer_model(size)
    micro = min(MICRO_BATCH, size.rows)
    config = DPOConfig(
        **settings(size),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=size.rows // micro,
        precompute_ref_log_probs=True,
        max_length=None,
    )
    data = Dataset.from_list(pairs(size))
    serve(DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora(size)))


def reward(size: Size) -> None:
    """A reward model on pairs."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    causal, tokenizer = peer_model(size)
    if size.model.startswith("random:"):
        causal.config.num_labels = 1
        model = LlamaForSequenceClassification(causal.config).to(torch.bfloat16)
    else:
        folder = causal.config.name_or_path
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.bfloat16)
    model.config.pad_token_id = tokenizer.pad_token_id
    config = RewardConfig(**settings(size), per_device_train_batch_size=size.rows, max_length=None)
    data = Dataset.from_list(pairs(size))
    adapter = lora(size, "SEQ_CLS")
    serve(RewardTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter))


def sft(size: Size, rows: list[tuple[Any, str]], **more: Any) -> None:
    """Supervised fine-tuning on the completions."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = peer_model(size)
    data = [
        {"prompt": list(prompt.messages), "completion": [{"role": "assistant", "content": text}]}
        for prompt, text in rows
    ]
    config = SFTConfig(
        **settings(size), per_device_train_batch_size=more.pop("micro_batch", size.rows), max_length=1024, **more
    )
    serve(
        SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            peft_config=lora(size),
        )
    )
