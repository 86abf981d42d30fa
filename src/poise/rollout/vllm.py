r"""Generation by `vllm serve`: every new version of the policy's adapter is loaded into the running server.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16 \
        --logprobs-mode processed_logprobs --generation-config vllm

The adapter is saved as a folder that the server reads, loaded under the name of its version through
/v1/load_lora_adapter, and unloaded through /v1/unload_lora_adapter when the next one comes. Prompts go to
/v1/completions as token ids, so that server and trainer cannot differ in how they render them. Both are as vLLM
documents them (docs.vllm.ai: "LoRA Adapters", "OpenAI-Compatible Server"); tested against an imitation, not vLLM.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.data.chat import ChatRenderer
from poise.errors import ConfigError, EngineError
from poise.http_client import Request, RequestFailed, request_json
from poise.models.policy import Policy
from poise.rollout.engine import weights_digest
from poise.rollout.server import ServerEngine, completion_of, only_choice, token_id
from poise.types import Completion, Prompt, Sampling

_START = (
    "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank {rank} "
    "--logprobs-mode processed_logprobs"
)


class VLLMEngine(ServerEngine):
    """Completions of a policy's current weights, computed by a vLLM server that has the same base model.

    folder              where adapters are written; the server must be able to read it
    served_folder       the path of that folder on the server, if it differs
    model               the name of the base model on the server; by default the only model that it serves
    reference           answer as the base model, without any adapter
    processed_logprobs  whether the server was started with --logprobs-mode processed_logprobs. Without it, vLLM returns
                        log-probabilities before temperature and nucleus, and completions have them only if neither
                        changes anything

    Further arguments are those of ServerEngine. Raises ConfigError for a policy without an adapter, and EngineError if
    the server cannot load an adapter.
    """

    def __init__(
        self,
        url: str,
        policy: Policy,
        *,
        folder: str | Path,
        served_folder: str | None = None,
        model: str | None = None,
        reference: bool = False,
        processed_logprobs: bool = False,
        max_prompt_tokens: int | None = None,
        **settings: Any,
    ):
        if policy.lora is None and not reference:
            raise ConfigError(
                "a fully trained policy cannot be sent to a vLLM server: use an adapter, "
                "Policy(backbone, Lora(...)), or generate with NativeEngine or RayEngine"
            )
        super().__init__(url, model or "", logprobs=processed_logprobs, **settings)
        self.policy, self.reference = policy, reference
        self.folder = Path(folder).absolute()
        self.served_folder = (served_folder or str(self.folder)).rstrip("/")
        self.base, self.loaded = model, ""
        self._known: dict[str, list[int]] = {}  # token ids by prompt
        self.vocabulary = int(policy.backbone.model.get_input_embeddings().weight.shape[0])
        self.family = f"poise-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}-"  # adapters of this run
        self.renderer: ChatRenderer = policy.backbone.renderer(max_prompt_tokens=max_prompt_tokens)

    def generate(self, prompts: Any, sampling: Sampling) -> list[Completion]:
        """Completions of the policy as it is now; its weights are sent first if the server has others."""
        self.publish()
        return super().generate(prompts, sampling)

    def generate_rows(
        self, prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[Completion]:
        """Completions of prompts whose token ids are known, such as those that go on with what was drawn before."""
        self._known = {prompt.id: list(ids) for prompt, ids in zip(prompts, encoded, strict=True)}
        try:
            return self.generate(prompts, sampling)
        finally:
            self._known = {}

    @property
    def context(self) -> int:
        """How many tokens the model reads at most."""
        return self.policy.backbone.context

    def publish(self) -> str:
        """Make the server answer with the policy's weights; returns the name under which it does."""
        self.base = self.base or self._only_base()
        if self.reference:
            self.model = self.base
            return self.base
        name = f"{self.family}v{self.policy.version}-{weights_digest(self.policy.parameters())}"
        if name != self.loaded:
            served = self.models()
            for old in served:
                if old.startswith(self.family) and old != name:
                    self._unload(old)
            if name not in served:
                self._load(name)
            self.loaded = name
        self.model, self.policy_version = name, self.policy.version
        return name

    def close(self) -> None:
        """Unload the adapter and delete its folder."""
        if self.loaded:
            self._unload(self.loaded)
            self.loaded = ""

    def _only_base(self) -> str:
        bases = [name for name in self.models() if not name.startswith("poise-")]
        if len(bases) != 1:
            raise EngineError(
                f"{self.endpoint.url} serves {', '.join(bases) or 'no model'}: name the policy's base model, "
                "VLLMEngine(..., model=...)"
            )
        return bases[0]

    def _load(self, name: str) -> None:
        self.policy.save_pretrained(self.folder / name)
        body = {"lora_name": name, "lora_path": f"{self.served_folder}/{name}"}
        try:
            request_json(self.endpoint, Request(path="/load_lora_adapter", body=body))
        except RequestFailed as failure:
            if "already been loaded" in str(failure):  # an attempt whose answer was lost
                return
            rank = self.policy.lora.rank if self.policy.lora else 0
            if "No adapter found" in str(failure):
                advice = "Give a folder that the server can access, and served_folder=... if its path differs there"
            else:
                advice = f"If it does not accept adapters at run time, or none of this rank, {_START.format(rank=rank)}"
            raise EngineError(
                f"{self.endpoint.url} did not load version {self.policy.version} of the policy: {failure}. {advice}"
            ) from failure

    def _unload(self, name: str) -> None:
        """Take an adapter off the server, unless the server itself has dropped it already."""
        try:
            request_json(self.endpoint, Request(path="/unload_lora_adapter", body={"lora_name": name}))
        except RequestFailed as failure:
            if failure.status not in (404, 500):
                raise self._refused(failure) from failure
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _request(self, prompt: Prompt, sample: int, sampling: Sampling) -> Request:
        if sampling.choices:
            return super()._request(prompt, sample, sampling)
        ids = self._known.get(prompt.id) or self.renderer.prompt_ids(prompt.messages, prompt.tools)[0]
        body = {
            "prompt": ids,
            "logprobs": 1,
            "return_token_ids": True,
            "stop_token_ids": sorted(self.renderer.stop_ids),
        }
        body |= self._drawing(prompt, sample, sampling)
        return Request(path="/completions", body=self._with_fields(body))

    def _read(self, answer: Any, *, sampling: Sampling) -> Completion:
        if sampling.choices:
            return super()._read(answer, sampling=sampling)
        choice: Mapping[str, Any] = only_choice(answer)
        ids = choice.get("token_ids")
        if ids is None:
            raise EngineError(
                f"{self.endpoint.url} returns no token ids, which training needs: use vLLM 0.10.2 or newer, which "
                "supports return_token_ids"
            )
        usable = self.logprobs or (sampling.temperature == 1 and sampling.top_p == 1)
        logprobs = choice["logprobs"]["token_logprobs"] if usable else ()
        if usable and len(logprobs) != len(ids):
            raise ValueError(f"{len(logprobs)} log-probabilities for {len(ids)} token ids: expected one each")
        ids = [token_id(value, self.vocabulary) for value in ids]
        text = self.renderer.decode(ids)  # without the space that the template puts around an answer
        return completion_of(text, choice.get("finish_reason"), ids, logprobs, sampling)
