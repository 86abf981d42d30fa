"""Our own batched generation: continuous batching over a preallocated cache, shared prompts, its own sampler."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from poise.data.chat import ChatRenderer
from poise.errors import ConfigError, EngineError
from poise.models.decoder import Decoder, pad_rows
from poise.models.fused import fuses
from poise.models.policy import Policy
from poise.rollout.engine import check_completions, check_sampling, sample_numbers
from poise.rollout.generation import Forward, FusedForward, Generation, LayerForward, Row, StaticForward
from poise.rollout.sampling import stop_position, uniform_stream
from poise.rollout.verified import verify_generation
from poise.types import Completion, Prompt, Sampling

_GRAPHS = "POISE_GRAPHS"  # 1: decoding steps on a GPU are captured as CUDA graphs


class NativeEngine:
    """Generation with the policy's own weights, in this process: every completion is from its current version.

    batch_size         rows that are generated at a time
    max_prompt_tokens  where prompts are cut, also by a trainer with this engine; by default the backbone's setting
    reference          generate with the reference

    Raises ConfigError if `batch_size` is below 1.

    >>> from poise.models.policy import load_policy
    >>> engine = NativeEngine(load_policy("random:llama"))
    >>> len(engine.generate([Prompt.of("Hello")], Sampling(max_tokens=4, samples=2)))
    2
    """

    def __init__(
        self,
        policy: Policy,
        *,
        batch_size: int = 64,
        max_prompt_tokens: int | None = None,
        reference: bool = False,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: a batch needs at least 1 row")
        self.policy, self.batch_size, self.reference = policy, batch_size, reference
        self.renderer: ChatRenderer = policy.backbone.renderer(max_prompt_tokens=max_prompt_tokens)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """`sampling.samples` adjacent completions per prompt.

        They depend on seed, prompt and sample number only, up to the rounding of the backbone's dtype: in bf16, the
        batch size can change the last bit of a logit and thereby a token. Raises ConfigError if prompt and completion
        may exceed the model's context, and DataError for a prompt that the chat template cannot render.
        """
        self.renderer.check(prompts)
        rows = [self.renderer.prompt_ids(prompt.messages, prompt.tools)[0] for prompt in prompts]
        return self.generate_rows(prompts, rows, sampling)

    @torch.no_grad()
    def generate_rows(
        self, prompts: Sequence[Prompt], encoded: list[list[int]], sampling: Sampling
    ) -> list[Completion]:
        """Completions of prompts whose token ids are known, such as those that go on with what was drawn before."""
        check_sampling(sampling)
        self._check_context(encoded, sampling)
        verify_generation(self.policy.model, self._forward, adapter=self._adapter)
        version = 0 if self.reference else self.policy.version
        with self.policy.reference() if self.reference else self.policy.policy_mode() as decoder:
            if sampling.choices:
                chosen = [
                    self._choose(decoder, prompt, row, sampling) for prompt, row in zip(prompts, encoded, strict=True)
                ]
                completions = [replace(each, sample=s) for each in chosen for s in range(sampling.samples)]
            else:
                rows = self._rows(decoder, prompts, encoded, sampling)
                owners = [(prompt, s) for prompt in prompts for s in range(sampling.samples)]
                completions = [
                    self._completion(prompt, s, row, sampling) for (prompt, s), row in zip(owners, rows, strict=True)
                ]
        completions = [replace(completion, policy_version=version) for completion in completions]
        return check_completions(prompts, completions, sampling)

    @property
    def context(self) -> int:
        """How many tokens the model reads at most."""
        return self.policy.backbone.context

    def _check_context(self, encoded: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest, context = max(map(len, encoded), default=0), self.policy.backbone.context
        if not sampling.choices and longest + sampling.max_tokens > context:
            raise ConfigError(
                f"a prompt of {longest} tokens and max_tokens={sampling.max_tokens} exceed the model's context of "
                f"{context} tokens: lower max_tokens or the engine's max_prompt_tokens"
            )

    def _rows(
        self, decoder: Decoder, prompts: Sequence[Prompt], encoded: list[list[int]], sampling: Sampling
    ) -> list[Row]:
        """The rows of all prompts, completed."""
        draws = sample_numbers(prompts, sampling.samples)
        owners = [(p, encoded[i // sampling.samples], draw) for i, (p, _, draw) in enumerate(draws)]
        rows = [
            Row(
                number=number,
                prompt_length=len(ids),
                uniforms=uniform_stream(sampling.seed, prompt.id, draw, sampling.max_tokens),
            )
            for number, (prompt, ids, draw) in enumerate(owners)
        ]
        if rows:
            backbone = self.policy.backbone
            longest = max(map(len, encoded)) + sampling.max_tokens
            forward = self._forward(decoder, longest, backbone.dtype)
            fused = isinstance(forward, FusedForward)
            with torch.autocast(backbone.device.type, enabled=False) if fused else nullcontext():
                Generation(
                    forward,
                    encoded,
                    rows,
                    sampling=sampling,
                    ends=lambda row: self._ends(row, sampling),
                    batch_rows=self.batch_size,
                    dtype=backbone.dtype,
                    device=backbone.device,
                ).run()
        return rows

    @property
    def _adapter(self) -> str | None:
        return self.policy.adapter if self.policy.lora and not self.reference else None

    def _forward(self, decoder: Decoder, columns: int, dtype: torch.dtype) -> Forward:
        if not fuses(decoder, columns):
            return LayerForward(decoder)
        captures = self.policy.backbone.device.type == "cuda" and os.environ.get(_GRAPHS) == "1"
        kind = StaticForward if captures else FusedForward
        return kind(decoder, adapter=self._adapter, dtype=dtype, columns=columns)

    def _completion(self, prompt: Prompt, sample: int, row: Row, sampling: Sampling) -> Completion:
        text = self.renderer.decode(row.tokens)
        position = stop_position(text, sampling.stop)
        return Completion(
            prompt_id=prompt.id,
            text=text if position < 0 else text[:position],
            sample=sample,
            token_ids=tuple(row.tokens),
            token_logprobs=tuple(row.logprobs),
            finish=row.finish or "length",
        )

    def _ends(self, row: Row, sampling: Sampling) -> bool:
        """Whether the last token of a row ends it."""
        if row.tokens[-1] in self.renderer.stop_ids:
            return True
        return bool(sampling.stop) and stop_position(self.renderer.decode(row.tokens), sampling.stop) >= 0

    def _choose(self, decoder: Decoder, prompt: Prompt, ids: list[int], sampling: Sampling) -> Completion:
        """Answer with one of the choices: the log-probability of each whole text, and the likeliest."""
        rows = [ids + self.renderer.response_ids(choice, finished=False)[0] for choice in sampling.choices]
        if any(len(row) == len(ids) for row in rows):
            raise EngineError(f"choices {sampling.choices!r}: an empty choice has no tokens to compare")
        batch, lengths = pad_rows(rows, device=self.policy.backbone.device)
        logits = decoder.logits(decoder.run(decoder.embed(batch))[:, len(ids) - 1 : -1]).float().log_softmax(-1)
        picked = logits.gather(-1, batch[:, len(ids) :, None])[..., 0]
        inside = torch.arange(picked.shape[1], device=picked.device)[None] < (lengths - len(ids))[:, None]
        totals = (picked * inside).sum(-1).tolist()
        best = max(range(len(totals)), key=totals.__getitem__)
        return Completion(
            prompt_id=prompt.id,
            text=sampling.choices[best],
            choice_logprobs=dict(zip(sampling.choices, totals, strict=True)),
        )
