"""Sequence classifiers of transformers as scorers: reward models, toxicity classifiers, and the score models of PKU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.errors import ConfigError, ModelError
from poise.feedback.beaver import BEAVER, is_beaver, load_beaver, ways_of_beaver
from poise.feedback.classifier_adapters import load_adapted
from poise.feedback.score_rows import PAIR, RESPONSE, RowReader, batches_of, padded, usable_device, window_of
from poise.files import expanded
from poise.models.load import read_template
from poise.models.locate import locate
from poise.models.merged import adapter_in
from poise.models.usable import loading, require_whole
from poise.types import Completion, Prompt, Scores

VALUES = ("logit", "probability")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierOptions:
    """How a classifier is loaded and read."""

    device: str | None = None  # None: the first GPU, or the CPU
    dtype: str = "auto"  # auto: as its weights are stored
    batch_size: int = 16
    max_tokens: int | None = None  # of prompt and answer together; None: what model and tokenizer can read
    template: str = ""  # chat, pair, response or a file; "": its own, or a pair where its tokenizer separates two texts
    value: str = ""  # logit or probability; "": the logit of one output, else what transformers' pipeline gives


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceClassifier:
    """A sequence classifier as a scorer: its outputs by their labels.

    One output has its logit. Several are, as in transformers' pipeline, probabilities: softmax over the labels, sigmoid
    where its configuration says `multi_label_classification`; and the numbers themselves where it says `regression`.
    A row has the value that it has alone: it does not depend on what else is in the batch.
    """

    name: str
    model: Any  # what gives logits [B, C] for input_ids and attention_mask
    reader: RowReader
    outputs: tuple[str, ...]
    ways: Mapping[str, bool | None]  # whether higher is worse, by output; None where nothing says so
    batch_size: int = 16
    activation: str = "none"  # softmax, sigmoid or none

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Between what each output lies, where it is a probability."""
        return {} if self.activation == "none" else dict.fromkeys(self.outputs, (0.0, 1.0))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """All outputs of every completion; one that is empty, failed or too long has none, with the reason."""
        read = [self.reader.read(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        values = iter(self._values([row for row in read if not isinstance(row, str)]).tolist())
        return [
            Scores(values={}, source=self.name, unscorable=row)
            if isinstance(row, str)
            else Scores(values=dict(zip(self.outputs, next(values), strict=True)), source=self.name)
            for row in read
        ]

    @torch.no_grad()
    def _values(self, rows: Sequence[Mapping[str, list[int]]]) -> Tensor:
        """Values [N, C] of rows, in their order."""
        found = torch.zeros(len(rows), len(self.outputs))
        for batch in batches_of(rows, self.batch_size):
            found[batch] = self._logits([rows[i] for i in batch]).float().cpu()
        if self.activation == "softmax":
            return found.softmax(-1)
        return found.sigmoid() if self.activation == "sigmoid" else found

    def _logits(self, rows: Sequence[Mapping[str, list[int]]]) -> Tensor:
        text_config = self.model.config.get_text_config()
        own = text_config.pad_token_id
        # the model finds the end of a row by its padding: without one, any token will do that no row has
        fill = _unused(rows) if own is None else own
        try:
            text_config.pad_token_id = fill
            inputs = {key: value.to(self.model.device) for key, value in padded(rows, fill).items()}
            logits: Tensor = self.model(**inputs).logits
        finally:
            text_config.pad_token_id = own
        return logits


def _unused(rows: Sequence[Mapping[str, list[int]]]) -> int:
    used = {token for row in rows for token in row["input_ids"]}
    return next(token for token in range(len(used) + 1) if token not in used)


def load_classifier(name: str, options: ClassifierOptions | None = None) -> SequenceClassifier:
    """A sequence classifier by folder or hub id.

    Raises:
        ModelError: it cannot be found or loaded, or is no sequence classifier.
        ConfigError: an option that it cannot have, such as a chat template where its tokenizer has none.
    """
    from transformers import AutoConfig, AutoTokenizer

    how, source = options or ClassifierOptions(), locate(name)
    dtype = dtype_named(how.dtype, f"hf:{name}")
    device = usable_device(how.device, f"hf:{name}")
    adapted = load_adapted(source, name, dtype)
    with loading(source, name):
        config = AutoConfig.from_pretrained(source) if adapted is None else adapted.config
        tokenizer = AutoTokenizer.from_pretrained(_with_tokenizer(source))
    beaver = adapted is None and is_beaver(config)
    load = load_beaver if beaver else _classifier
    model = load(source, name, config, dtype) if adapted is None else adapted
    model = model.eval().requires_grad_(False).to(device)
    ways = ways_of_beaver(config) if beaver else _ways(config)
    return SequenceClassifier(
        name=f"hf:{name}",
        model=model,
        reader=_reader(name, tokenizer, config, how, is_beaver=beaver),
        outputs=tuple(ways),
        ways=ways,
        batch_size=how.batch_size,
        activation=_activation(how.value, config, len(ways)),
    )


def _with_tokenizer(source: str) -> str:
    """The folder or id with the tokenizer: that of its base, for an adapter saved without one."""
    card = adapter_in(source)
    if card is None or (card.parent / "tokenizer_config.json").is_file():
        return source
    return locate(str(json.loads(card.read_text("utf-8"))["base_model_name_or_path"]))


def _classifier(source: str, name: str, config: Any, dtype: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    made = getattr(config, "architectures", None) or []
    if made and not any(kind.endswith("ForSequenceClassification") for kind in made):
        raise ModelError(
            f"model {name!r} is a {', '.join(made)}, not a sequence classifier of transformers: its head would be "
            "random. Give a reward model or classifier; guard:ID reads a generative guard"
        )
    with loading(source, name):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
    require_whole(name, report)
    return model


def dtype_named(given: str, name: str) -> Any:
    """A type of torch, or "auto" as it is. Raises ConfigError for another word."""
    if given != "auto" and given not in DTYPES:
        raise ConfigError(f"{name}: dtype={given}: choose auto, {', '.join(DTYPES)}")
    return DTYPES.get(given, given)


def _ways(config: Any) -> dict[str, bool | None]:
    """Labels in the order of the outputs, with whether higher is worse where config.json says.

    It does so in `higher_is_worse`, for all or by label, or in the channels of a score model that poise exported.
    """
    labels = [str(config.id2label[place]) for place in range(config.num_labels)]
    said = getattr(config, "higher_is_worse", None)
    if (channels := _exported(config)) is not None:
        said = {channel["name"]: channel["higher_is_worse"] for channel in channels}
    by_label = said if isinstance(said, Mapping) else dict.fromkeys(labels, said)
    return {label: by_label.get(label) for label in labels}


def _exported(config: Any) -> Any:
    """The channels of a score model that poise exported as a classifier; None for another's."""
    return getattr(config, "poise_channels", None)


def _activation(value: str, config: Any, outputs: int) -> str:
    if value == "logit" or (not value and outputs == 1):
        return "none"
    if config.problem_type == "regression":
        return "sigmoid" if value else "none"
    return "softmax" if outputs > 1 and config.problem_type != "multi_label_classification" else "sigmoid"


def _reader(name: str, tokenizer: Any, config: Any, how: ClassifierOptions, *, is_beaver: bool) -> RowReader:
    window = window_of(tokenizer, config.get_text_config(), how.max_tokens, f"hf:{name}")
    common = {"tokenizer": tokenizer, "name": f"hf:{name}", "max_tokens": window}
    if is_beaver and not how.template:
        first = list(tokenizer("")["input_ids"][:1])
        begins = tuple(first) if first == [tokenizer.bos_token_id] else ()
        return RowReader(template=BEAVER, begins=begins, **common)
    is_ours = _exported(config) is not None and how.template in ("", "chat")
    return RowReader(template=_template(name, tokenizer, how.template), continues=is_ours, **common)


def _template(name: str, tokenizer: Any, asked: str) -> str:
    """The chat template that is meant, or PAIR or RESPONSE. Raises ConfigError where there is none."""
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, Mapping) else own
    if asked in (PAIR, RESPONSE):
        return asked
    if asked not in ("", "chat"):
        if not expanded(asked).is_file():
            raise ConfigError(
                f"hf:{name}: template={asked}: choose chat, pair, response or a file with a Jinja template"
            )
        return read_template(Path(asked))
    if isinstance(own, str):
        return own
    if not asked and tokenizer.sep_token is not None:
        return PAIR
    raise ConfigError(
        f"hf:{name}: its tokenizer has no chat template, so nothing says how it was shown prompt and answer. Say "
        "?template=FILE.jinja, ?template=pair (the two texts as the tokenizer joins them) or ?template=response"
    )
