"""Generative guards as scorers: the probability of the word by which they call an answer unsafe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import Tensor

from poise.errors import ConfigError, ModelError
from poise.feedback.classifiers import dtype_named
from poise.feedback.guard_layouts import GuardLayout
from poise.feedback.score_rows import RowReader, batches_of, padded, usable_device, window_of
from poise.models.locate import locate
from poise.models.usable import loading, require_whole
from poise.text import say
from poise.types import Completion, Prompt, Scores

_LITTLE = 0.5  # of the probability: where verdicts have less on average, the model was hardly asked what it knows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What a guard says of a row: the probability of unsafe among both verdicts, and of both among all tokens."""

    unsafe: float
    share: float


class GuardScorer:
    """A causal language model that was trained to judge answers, on the output `unsafe`, from 0 to 1.

        P(unsafe) = sum of p over the tokens of "unsafe" / sum of p over those and the tokens of "safe"

    at the first place where the two verdicts differ. The explanation of each score says how much of all probability
    both verdicts have together; where that is little, layout and model do not belong together, which is also said once
    on the screen.
    """

    bounds: ClassVar = {"unsafe": (0.0, 1.0)}

    def __init__(self, name: str, model: Any, reader: RowReader, layout: GuardLayout, *, batch_size: int = 16):
        self.name, self.model, self.reader, self.layout, self.batch_size = name, model, reader, layout, batch_size
        self.verdicts = verdict_tokens(reader, layout)
        self._has_warned = False

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """P(unsafe) of every completion; one that is empty, failed or too long has none, with the reason."""
        said = [""] * len(completions)
        found: list[_Verdict | str] = []
        for question in self.layout.questions:
            said = [text + question for text in said]
            found = self._verdicts(prompts, completions, said)
            said = [text + self._word(verdict) for text, verdict in zip(said, found, strict=True)]
        self._warn([verdict.share for verdict in found if isinstance(verdict, _Verdict)])
        return [self._scores(verdict) for verdict in found]

    def _word(self, verdict: _Verdict | str) -> str:
        is_unsafe = isinstance(verdict, _Verdict) and verdict.unsafe > 0.5
        return (self.layout.unsafe if is_unsafe else self.layout.safe)[0]

    def _scores(self, verdict: _Verdict | str) -> Scores:
        if isinstance(verdict, str):
            return Scores(values={}, source=self.name, unscorable=verdict)
        said = f"both verdicts have {verdict.share:.1%} of the probability"
        return Scores(values={"unsafe": verdict.unsafe}, source=self.name, explanation=said)

    def _verdicts(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], said: Sequence[str]
    ) -> list[_Verdict | str]:
        """The verdicts behind what the guard has said so far, or why there are none."""
        rows = [
            self.reader.read(prompt, completion, then=text)
            for prompt, completion, text in zip(prompts, completions, said, strict=True)
        ]
        places = [i for i, row in enumerate(rows) if not isinstance(row, str)]
        read = [{"input_ids": [*row["input_ids"], *self.verdicts.shared]} for row in rows if not isinstance(row, str)]
        found: list[_Verdict | str] = [row if isinstance(row, str) else "" for row in rows]
        for batch in batches_of(read, self.batch_size):
            logprobs = self._next_logprobs([read[i] for i in batch])
            unsafe, safe = (logprobs[:, ids].logsumexp(-1) for ids in (self.verdicts.unsafe, self.verdicts.safe))
            both = torch.logaddexp(unsafe, safe)
            for i, probability, share in zip(batch, (unsafe - both).exp().tolist(), both.exp().tolist(), strict=True):
                found[places[i]] = _Verdict(unsafe=probability, share=share)
        return found

    @torch.no_grad()
    def _next_logprobs(self, rows: Sequence[Mapping[str, list[int]]]) -> Tensor:
        """Log-probabilities [B, V] of the token behind each row."""
        inputs = {key: value.to(self.model.device) for key, value in padded(rows, 0, left=True).items()}
        places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits: Tensor = self.model(**inputs, position_ids=places, logits_to_keep=1).logits
        return logits[:, -1].float().log_softmax(-1)

    def _warn(self, shares: Sequence[float]) -> None:
        if shares and not self._has_warned and sum(shares) / len(shares) < _LITTLE:
            self._has_warned = True
            words = f"{self.layout.safe[0].strip()!r} and {self.layout.unsafe[0].strip()!r}"
            say(
                f"{self.name}: at the place of the verdict {words} have {sum(shares) / len(shares):.1%} of the "
                f"probability: this model was not trained to answer the layout {self.layout.name}. Check ?layout=",
                error=True,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictTokens:
    """The tokens that both verdicts begin with, and those that tell them apart behind them."""

    shared: list[int]
    unsafe: list[int]
    safe: list[int]


def verdict_tokens(reader: RowReader, layout: GuardLayout) -> VerdictTokens:
    """Where the verdicts of a layout differ in the tokens of a model.

    The further words of a verdict count where they differ from all of the other's in their first token.

    Raises ModelError where the tokenizer does not tell the verdicts apart.
    """
    question = layout.questions[-1]
    before = _ids(reader, question)

    def behind(word: str) -> list[int]:
        ids = _ids(reader, question + word)
        return ids[len(before) :] if ids[: len(before)] == before else []

    unsafe, safe = ([behind(word) for word in words] for words in (layout.unsafe, layout.safe))
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(unsafe[0], safe[0], strict=False))]
    size = len(shared)
    if len(unsafe[0]) <= size or len(safe[0]) <= size:
        raise ModelError(
            f"{reader.name}: its tokenizer does not tell {layout.unsafe[0]!r} from {layout.safe[0]!r} behind a row, so "
            f"it gives no verdict of the layout {layout.name}. Check that the model is of this family (?layout=)"
        )
    if shared:
        return VerdictTokens(shared=shared, unsafe=[unsafe[0][size]], safe=[safe[0][size]])
    first = [{ids[0] for ids in words if ids} for words in (unsafe, safe)]
    return VerdictTokens(shared=[], unsafe=sorted(first[0] - first[1]), safe=sorted(first[1] - first[0]))


def _ids(reader: RowReader, then: str) -> list[int]:
    read = reader.read(Prompt.of("Hello"), Completion(prompt_id="", text="Hi"), then=then)
    if isinstance(read, str):
        raise ConfigError(f"{reader.name}: the shortest row is {read}. Give more max_tokens")
    return read["input_ids"]


def load_guard(
    name: str,
    layout: GuardLayout,
    *,
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int = 16,
    max_tokens: int | None = None,
) -> GuardScorer:
    """A generative guard by folder or hub id.

    Raises:
        ModelError: it cannot be found or loaded, or does not tell the verdicts of its layout apart.
        ConfigError: its tokenizer has no chat template where the layout needs it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, called = locate(name), f"guard:{name}"
    where = usable_device(device, called)
    with loading(source, name):
        tokenizer = AutoTokenizer.from_pretrained(source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype_named(dtype, called), output_loading_info=True, use_safetensors=True
        )
    model, report = loaded
    require_whole(name, report)
    template = layout.template or tokenizer.chat_template
    if not isinstance(template, str):
        raise ConfigError(
            f"{called}: its tokenizer has no chat template, which the layout {layout.name} needs. Save the model with "
            "the tokenizer that belongs to it"
        )
    reader = RowReader(
        tokenizer=tokenizer,
        name=called,
        template=template,
        max_tokens=window_of(tokenizer, model.config.get_text_config(), max_tokens, called),
        opens=True,
        arguments=layout.arguments,
        leads=layout.leads,
    )
    return GuardScorer(called, model.eval().requires_grad_(False).to(where), reader, layout, batch_size=batch_size)
