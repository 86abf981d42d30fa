"""A score model as a sequence classifier of transformers: the same scores from a folder that other programs load."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from poise.errors import ModelError
from poise.models.heads import ScoreModel
from poise.models.policy import merged_state
from poise.models.score_heads import CLASSIFIER
from poise.ranks import by_main


def why_no_classifier(model: ScoreModel) -> str:
    """Why a sequence classifier cannot compute what a score model does; "" where it can."""
    if model.pooling != CLASSIFIER:
        return f"its pooling is {model.pooling}, and a sequence classifier reads the last token of all layers"
    if bounded := [channel.name for channel in model.channels if channel.range is not None]:
        return f"{', '.join(bounded)} is bounded, and the scores of a sequence classifier are linear"
    return ""


def as_classifier(model: ScoreModel) -> Any:
    """The sequence classifier of transformers with the scores of a score model, one label per channel, in fp32.

    Its configuration says in `poise_channels` of each channel whether higher is worse, and how its score maps to a
    probability. Raises ModelError for a score model that none can compute, or a family that has none.
    """
    from transformers import AutoModelForSequenceClassification

    if reason := why_no_classifier(model):
        raise ModelError(f"no sequence classifier: {reason}")
    backbone = model.backbone[0]
    config = copy.deepcopy(backbone.model.config)
    config.num_labels = len(model.channels)
    config.id2label, config.problem_type = dict(enumerate(model.names)), "regression"
    config.label2id = {name: number for number, name in config.id2label.items()}
    config.pad_token_id = backbone.tokenizer.pad_token_id
    config.poise_channels = [asdict(channel) for channel in model.channels]
    try:
        found: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    except ValueError as error:
        raise ModelError(f"transformers has no sequence classifier for {config.model_type}") from error
    found = found.float().eval()
    if not isinstance(getattr(found, "score", None), torch.nn.Linear) or found.score.bias is not None:
        raise ModelError(f"the sequence classifier of transformers for {config.model_type} has another head than ours")
    prefix = f"{backbone.model.base_model_prefix}."
    state = merged_state(backbone.model, model.adapter if model.lora else "", torch.float32)
    found.base_model.load_state_dict(
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    )
    scales = torch.tensor([channel.scale for channel in model.channels])
    with torch.no_grad():
        weight = model.head.get_parameter("0.weight").cpu()
        found.score.weight.copy_(weight / model.feature_std.cpu() / scales[:, None])
    return found


@by_main
def save_classifier(model: ScoreModel, folder: Path, *, about: str = "") -> None:
    """Write the classifier with tokenizer and model card, whose further text is `about`. Raises as `as_classifier`."""
    as_classifier(model).save_pretrained(folder)
    model.backbone[0].tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(model, about), encoding="utf-8")


def _card(model: ScoreModel, about: str) -> str:
    rows = [
        f"| {channel.name} | {'worse' if channel.higher_is_worse else 'better'} | "
        + (
            "none"
            if channel.calibration is None
            else f"P(harm) = sigmoid({channel.calibration.slope:.4g} x score + {channel.calibration.offset:.4g})"
        )
        + " |"
        for channel in model.channels
    ]
    table = "\n".join(["| label | a higher score is | calibration |", "| --- | --- | --- |", *rows])
    return f"""---
library_name: transformers
pipeline_tag: text-classification
base_model: {model.backbone[0].name}
---

# Scores of responses

A sequence classifier with one linear score for each label, in units of one standard deviation of held-out responses.

{table}

It reads a conversation whose last turn is left open, as it was trained, without the token that ends a turn:

```python
text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
scores = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0]
```
{about}"""
