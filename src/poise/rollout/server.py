"""Generation behind any OpenAI-compatible endpoint: chat completions, many at a time, each asked for once.

`transformers serve`, `vllm serve`, llama.cpp, Ollama and hosted services speak this protocol. The endpoint renders the
messages with a chat template of its own and draws with a generator of its own: what a seed means is its affair.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from poise.data.rollouts import read_completion
from poise.errors import EngineError
from poise.files import append_line, json_line, read_jsonl_tolerant, to_jsonable, truncate_partial_line
from poise.http_client import Endpoint, Request, RequestFailed, request_json, request_many
from poise.rollout.engine import check_completions, check_sampling, sample_numbers
from poise.rollout.sampling import stop_position
from poise.types import Completion, Finish, Message, Prompt, Sampling, prompt_id

_LISTED = 20  # likeliest first tokens that an endpoint is asked to list: as many as the protocol allows
_LEAST, _ROUNDED = 1e6, 1e-6  # nats: below -_LEAST is nonsense, and up to _ROUNDED above 0 an engine may round
_FINISH: Mapping[str | None, Finish] = {"length": "length", "content_filter": "error"}


class ServerEngine:
    """Completions of the model `model` from an OpenAI-compatible endpoint, such as http://localhost:8000/v1.

    token        bearer token of the endpoint, if it needs one
    answers      a JSONL file to which every finished completion is appended; completions in it with the same model,
                 messages and settings are not requested again
    logprobs     request token log-probabilities, in nats; completions have them if the endpoint also returns token ids
    fields       further fields of every request, such as {"top_k": 50}
    progress     called with the number of finished completions and the total
    concurrency  simultaneous requests
    attempts     tries per request, `seconds` each; the wait between two starts at `backoff_s` seconds and doubles

    A request that fails for good gives a completion with finish="error" and the reason. The weights behind the
    endpoint are fixed; for a policy in training see `poise.rollout.vllm` and `poise.rollout.ray`.

    Raises EngineError if no request can be answered: nothing listens, or token, address or model is wrong. If the
    server disappears later, it raises only if `answers` keeps the finished completions; otherwise the rest are errors.
    """

    policy_version = 0

    def __init__(
        self,
        url: str,
        model: str,
        *,
        token: str = "",
        answers: str | Path | None = None,
        logprobs: bool = False,
        fields: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
        concurrency: int = 16,
        attempts: int = 5,
        seconds: float = 300.0,
        backoff_s: float = 0.5,
    ):
        self.endpoint = Endpoint(
            url=with_version(url),
            token=token,
            concurrency=concurrency,
            attempts=attempts,
            seconds=seconds,
            backoff_s=backoff_s,
        )
        self.model, self.logprobs, self.fields, self.progress = model, logprobs, dict(fields or {}), progress
        self.answers = None if answers is None else Path(answers)
        self.finished = {} if self.answers is None else _read_answers(self.answers)

    def models(self) -> list[str]:
        """The names of the models that the endpoint serves."""

        def read(answer: Any) -> list[str]:
            return [str(row["id"]) for row in answer["data"]]

        try:
            return list(request_json(self.endpoint, Request(path="/models"), read=read))
        except RequestFailed as failure:
            raise self._refused(failure) from failure

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Completions, `sampling.samples` adjacent ones per prompt.

        With `choices` the endpoint lists its likeliest first tokens, and each choice gets the log-probability that an
        answer begins as it does and as no other choice does; one that is not among them gets the smallest that is
        listed, which is above its own. Raises EngineError if the endpoint lists none.
        """
        check_sampling(sampling)
        numbers = sample_numbers(prompts, sampling.samples)
        owners = [(prompt, draw) for prompt, _, draw in numbers]
        keys = [self._key(prompt, 0 if sampling.choices else draw, sampling) for prompt, draw in owners]
        found = {key: self.finished[key] for key in keys if key in self.finished}
        self._ask_all(
            {key: owner for key, owner in zip(keys, owners, strict=True) if key not in found}, sampling, found
        )
        completions = [
            replace(found[key], prompt_id=prompt.id, sample=sample)
            for key, (prompt, sample, _) in zip(keys, numbers, strict=True)
        ]
        return check_completions(prompts, completions, sampling)

    def _ask_all(
        self, missing: Mapping[str, tuple[Prompt, int]], sampling: Sampling, found: dict[str, Completion]
    ) -> None:
        """Ask for the missing completions by key, and put each into `found` and the file of answers as it comes."""
        keys, known, version = list(missing), len(found), self.policy_version
        if missing and self.answers is not None:
            self.answers.parent.mkdir(parents=True, exist_ok=True)
            truncate_partial_line(self.answers)

        def receive(index: int, answer: Any) -> None:
            if isinstance(answer, RequestFailed):
                if answer.is_fatal or (answer.unreachable and self.answers is not None):
                    raise self._refused(answer, done=len(found) - known) from answer
                answer = Completion(prompt_id="", text="", finish="error", error=str(answer))
            elif self.answers is not None:
                self.finished[keys[index]] = replace(answer, policy_version=version)
                append_line(self.answers, json_line({"key": keys[index]} | to_jsonable(self.finished[keys[index]])))
            found[keys[index]] = replace(answer, policy_version=version)
            if self.progress is not None:
                self.progress(len(found), known + len(keys))

        requests = [self._request(prompt, sample, sampling) for prompt, sample in missing.values()]
        request_many(self.endpoint, requests, receive, read=partial(self._read, sampling=sampling))

    def _key(self, prompt: Prompt, sample: int, sampling: Sampling) -> str:
        """What a completion answers: by this it is found again in the file of answers."""
        settings = to_jsonable(replace(sampling, samples=1))
        said = prompt_id(prompt.messages, prompt.tools)
        asked = [self.model, self.policy_version, prompt.id, said, sample, settings]
        asked += [self.fields, self.logprobs]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:24]

    def _request(self, prompt: Prompt, sample: int, sampling: Sampling) -> Request:
        body: dict[str, Any] = {"messages": [_sent(message) for message in prompt.messages]}
        body |= {"tools": list(prompt.tools)} if prompt.tools else {}
        if sampling.choices:
            body |= {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": _LISTED}
        else:
            body |= self._drawing(prompt, sample, sampling) | ({"logprobs": True} if self.logprobs else {})
        return Request(path="/chat/completions", body=self._with_fields(body))

    def _drawing(self, prompt: Prompt, sample: int, sampling: Sampling) -> dict[str, Any]:
        """How one completion is drawn, in the words of the protocol."""
        body: dict[str, Any] = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request_seed(sampling.seed, prompt.id, sample),
        }
        return body | ({"stop": list(sampling.stop)} if sampling.stop else {})

    def _with_fields(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request with the fields of the user, of which None takes one of ours away."""
        every = {"model": self.model, **body, **self.fields}
        return {name: value for name, value in every.items() if value is not None}

    def _read(self, answer: Any, *, sampling: Sampling) -> Completion:
        choice = only_choice(answer)
        listed = (choice.get("logprobs") or {}).get("content") or []
        if sampling.choices:
            return self._chosen(listed[0].get("top_logprobs") if listed else None, sampling.choices)
        text = choice["message"].get("content")
        text = choice["message"].get("refusal") if text is None else text
        names = [str(entry["token"]) for entry in listed]
        ids = choice.get("token_ids") or [int(n[9:]) for n in names if n.startswith("token_id:")]
        logprobs = [entry["logprob"] for entry in listed] if ids else ()  # of which tokens, nobody knows otherwise
        return completion_of(text, choice.get("finish_reason"), ids, logprobs, sampling)

    def _chosen(self, listed: Sequence[Mapping[str, Any]] | None, choices: Sequence[str]) -> Completion:
        """The likeliest of the choices, told from the likeliest first tokens."""
        if not listed:
            raise EngineError(
                f"{self.endpoint.url} returns no log-probabilities of tokens, so it cannot compare the choices "
                f"{', '.join(choices)}: let it answer freely and read the text, or use an endpoint that supports "
                "logprobs with top_logprobs, or NativeEngine"
            )
        found: dict[str, float] = {}
        for entry in listed:
            token = str(entry["token"]).strip()
            fits = [choice for choice in choices if token and choice.strip().startswith(token)]
            if len(fits) == 1:
                found[fits[0]] = _log_add(found.get(fits[0], -math.inf), log_probability(entry["logprob"]))
        if not found:
            tokens = ", ".join(repr(str(entry["token"])) for entry in listed[:5])
            reason = f"no answer is likely to begin as one of {', '.join(choices)}; likeliest first tokens: {tokens}"
            return Completion(prompt_id="", text="", finish="error", error=reason)
        smallest = min(log_probability(entry["logprob"]) for entry in listed)
        weights = {choice: min(0.0, found.get(choice, smallest)) for choice in choices}
        return Completion(prompt_id="", text=max(found, key=found.__getitem__), choice_logprobs=weights)

    def _refused(self, failure: RequestFailed, *, done: int = 0) -> EngineError:
        """What to do about a request that tells that all others will fail too."""
        if failure.error is not None:
            return EngineError(str(failure.error))
        if failure.unreachable:
            advice = "Start the server, or correct the address"
        elif failure.status in (401, 403):
            advice = "Give the token that the server expects"
        else:
            advice = f"Check the address, which usually ends in /v1, and the model name {self.model!r}"
        kept = f". {done} finished completions are kept in {self.answers}" if self.answers and done else ""
        return EngineError(f"{self.endpoint.url}: {failure}. {advice}, and repeat the command{kept}")


def _sent(message: Message) -> dict[str, Any]:
    """A message as the protocol has it: parts as they are, the arguments of calls as JSON text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_text(call["function"].get("arguments", {}))}}
        for call in message.get("tool_calls", ())
    ]
    return dict(message) | ({"tool_calls": calls} if calls else {})


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def only_choice(answer: Any) -> Mapping[str, Any]:
    """The choice that was asked for; ValueError where there are others, or it says to be another."""
    choices = answer["choices"]
    if len(choices) != 1 or choices[0].get("index", 0) != 0:
        indexes = [choice.get("index") for choice in choices[:3]]
        raise ValueError(f"{len(choices)} choices with the indexes {indexes}, expected one with index 0")
    return dict(choices[0])


def log_probability(value: Any) -> float:
    """A number of nats that can be the logarithm of a probability; TypeError or ValueError for any other."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a log-probability is not a number but {value!r:.80}")
    if not -_LEAST <= value <= _ROUNDED:
        raise ValueError(f"a log-probability is {value!r:.80}: it should be finite and at most 0")
    return min(0.0, float(value))


def token_id(value: Any, vocabulary: int = 2**31) -> int:
    """A token id below the size of the vocabulary; TypeError or ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a token id is not an integer but {value!r:.80}")
    if not 0 <= value < vocabulary:
        raise ValueError(f"a token id is {value!r:.80}: it should be at least 0 and below {vocabulary}")
    return value


def completion_of(
    text: Any,
    reason: str | None,
    ids: Sequence[int],
    logprobs: Sequence[float],
    sampling: Sampling,
) -> Completion:
    """A completion from what an endpoint says.

    Raises ValueError or TypeError unless there is a text, at most as many token ids as were asked for, and one
    log-probability for each of them or none.
    """
    if not isinstance(text, str):
        raise TypeError(f"the answer has no text but {text!r:.80}")
    tokens = tuple(token_id(value) for value in ids)
    values = tuple(log_probability(value) for value in logprobs)
    if len(tokens) > sampling.max_tokens:
        raise ValueError(f"{len(tokens)} token ids, but at most {sampling.max_tokens} were requested")
    if values and len(values) != len(tokens):
        raise ValueError(f"{len(values)} log-probabilities for {len(tokens)} token ids: expected one each")
    position = stop_position(text, sampling.stop)
    finish = _FINISH.get(reason, "stop")
    return Completion(
        prompt_id="",
        text=text if position < 0 else text[:position],
        token_ids=tokens,
        token_logprobs=values,
        finish=finish,
        error=f"the endpoint withheld this answer (finish_reason {reason!r})" if finish == "error" else "",
    )


def request_seed(seed: int, name: str, sample: int) -> int:
    """The seed of one request, in 31 bits: the same for the same (seed, prompt id, sample), whatever is around it."""
    digest = hashlib.sha256(f"{seed}/{name}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def with_version(url: str) -> str:
    """The address that the paths of the protocol follow.

    >>> with_version("http://localhost:8000"), with_version("https://host/api/v2/")
    ('http://localhost:8000/v1', 'https://host/api/v2')
    """
    url = url.rstrip("/")
    return url if "/" in url.partition("://")[2] else f"{url}/v1"


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high)) if math.isfinite(high) else high


def _read_answers(path: Path) -> dict[str, Completion]:
    try:
        rows = read_jsonl_tolerant(path)
        return {str(row["key"]): read_completion({n: v for n, v in row.items() if n != "key"}) for row in rows}
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{path} has lines that are not completions ({error!r:.200}). Choose another file") from error
