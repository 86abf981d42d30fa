"""The nouns: frozen records that flow between the parts, and the three protocols at the edges.

Letters in shape comments: B sequences, L tokens of prompt and response, T response positions.
Signs, fixed once: reward is better when higher; cost is worse when higher and > 0 means unsafe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from poise.errors import DataError
from poise.estimates import PER_CENT as PER_CENT
from poise.estimates import Estimate as Estimate
from poise.messages import Message as Message
from poise.messages import RolloutTurn as RolloutTurn
from poise.messages import prompt_id as prompt_id
from poise.messages import text_of as text_of

if TYPE_CHECKING:
    from torch import Tensor

Tags = Mapping[str, Any]
Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that awaits the assistant's turn.

    >>> Prompt.of("How do I kill a Python process?", kind="look_alike").messages[0]["role"]
    'user'
    """

    id: str
    messages: tuple[Message, ...]
    tags: Tags = field(default_factory=dict)  # source, split, kind (harmful/benign/look_alike), categories, line
    tools: tuple[Mapping[str, Any], ...] = ()  # that may be called, as JSON schemas of functions

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1]["role"] == "assistant":
            raise DataError(f"prompt {self.id}: the last message must be the user's, got {self.messages!r:.120}")

    @classmethod
    def of(cls, text: str | Sequence[Message], /, **tags: Any) -> Prompt:
        """Build a prompt from one user text or from messages; the id follows from the content, and any name can tag."""
        messages: tuple[Message, ...] = ({"role": "user", "content": text},) if isinstance(text, str) else tuple(text)
        return cls(id=prompt_id(messages), messages=messages, tags=tags)

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> Prompt:
        """The same conversation with tools that may be called, which is another prompt with an id of its own."""
        return replace(self, id=prompt_id(self.messages, tools), tools=tuple(tools))

    @property
    def text(self) -> str:
        """The last user turn."""
        asked = (message for message in reversed(self.messages) if message["role"] == "user")
        return text_of(next(asked, self.messages[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an engine draws completions."""

    max_tokens: int = 64
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    samples: int = 1  # completions per prompt, adjacent in the result
    seed: int = 0  # every (seed, prompt id, sample) has its own random stream; a prompt listed again has further ones
    stop: tuple[str, ...] = ()  # texts that end a completion; the text itself is cut off
    choices: tuple[str, ...] = ()  # answer with one of these; `choice_logprobs` of all are returned


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One response of an engine; one of several turns says in text and tokens all that the policy said in them."""

    prompt_id: str
    text: str
    sample: int = 0
    token_ids: tuple[int, ...] = ()  # T ids, the end-of-turn token included when finish is "stop"
    token_logprobs: tuple[float, ...] = ()  # T, nats, under the distribution that was sampled from
    turns: tuple[RolloutTurn, ...] = ()  # where others speak between: every turn in its order; () for one of one turn
    finish: Finish = "stop"
    policy_version: int = 0
    choice_logprobs: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def unfit(self) -> str:
        """Why there is nothing to score: the engine failed, or the text is empty; "" where there is something."""
        if self.finish == "error":
            return f"the engine failed: {self.error or 'no reason given'}"
        return "" if self.text.strip() else "the response is empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who gave a judgement, and what they were shown."""

    kind: Literal["human", "judge", "rule", "dataset", "model"] = "dataset"
    name: str = ""
    principle: str = ""
    order: tuple[int, ...] = ()  # the order in which the responses were shown
    location: str = ""  # file:line for data sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt with the response to imitate."""

    prompt: Prompt
    response: str
    weight: float = 1.0
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # that the response makes
    passed_over: tuple[int, ...] = ()  # messages of the prompt that are the assistant's and not to be imitated


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A ranking of responses to one prompt under one criterion.

    `winner` is an index into `responses`; a soft verdict gives `probability`, the probability that
    responses[0] is preferred over responses[1]. A full `ranking` has all indices, the best first, and its first is the
    winner. `safe` has one flag per response where known.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    criterion: str = "helpful"  # helpful | safe | ...
    winner: int | None = None
    probability: float | None = None
    margin: float = 0.0
    safe: tuple[bool, ...] | None = None
    categories: tuple[tuple[str, ...], ...] = ()  # harm categories per response
    origin: Origin = field(default_factory=Origin)
    ranking: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.ranking:
            best, indices = self.ranking[0], list(range(len(self.responses)))
            if sorted(self.ranking) != indices or self.winner not in (None, best):
                raise DataError(
                    f"comparison on prompt {self.prompt.id}: ranking {self.ranking} of {len(indices)} responses, "
                    f"winner {self.winner}; give every index once, the winner first"
                )
            object.__setattr__(self, "winner", best)
        if len(self.responses) < 2:
            raise DataError(
                f"comparison on prompt {self.prompt.id}: needs at least 2 responses, got {len(self.responses)}"
            )
        if self.winner is None and self.probability is None:
            raise DataError(f"comparison on prompt {self.prompt.id}: give a winner or a probability")
        if self.winner is not None and not 0 <= self.winner < len(self.responses):
            raise DataError(
                f"comparison on prompt {self.prompt.id}: winner {self.winner} of {len(self.responses)} responses"
            )
        if self.safe is not None and len(self.safe) != len(self.responses):
            raise DataError(
                f"comparison on prompt {self.prompt.id}: {len(self.safe)} flags for {len(self.responses)} responses"
            )

    @property
    def contradicts_its_flags(self) -> bool:
        """True if the response ranked safer is flagged unsafe while another is flagged safe."""
        if self.criterion != "safe" or self.safe is None or self.winner is None:
            return False
        return not self.safe[self.winner] and any(self.safe)


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyLabel:
    """The safety of one response on its own: stage one of decoupled annotation."""

    prompt: Prompt
    response: str
    safe: bool
    categories: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """A grade of one response under one criterion, in the unit that the scores of its channel shall have."""

    prompt: Prompt
    response: str
    value: float
    criterion: str = "helpful"
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise DataError(f"rating on prompt {self.prompt.id}: the value is {self.value}, give a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether one response on its own is what people want: unpaired preference, as KTO reads it."""

    prompt: Prompt
    response: str
    desirable: bool
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a response and what it is worth: the characters from `begin` to before `end`."""

    begin: int
    end: int
    value: float

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end:
            raise DataError(f"span from {self.begin} to {self.end}: give characters with 0 <= begin < end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a scorer says of one completion, by channel ("reward", "cost", ...).

    A channel may speak of the whole response (`values`), of spans of its text or of each of its tokens. Without a value
    of its own such a channel has the sum of its parts; what a value says beyond that sum belongs to the last token.

    What is unscorable has no values, whatever was given: a number that means nothing must not be trained on.

    >>> Scores(values={}, spans={"facts": (Span(begin=0, end=4, value=1.0), Span(begin=5, end=9, value=-0.5))}).values
    {'facts': 0.5}

    >>> Scores(values={"reward": 0.3}, unscorable="the response is empty").values
    {}
    """

    values: Mapping[str, float]
    source: str = ""
    explanation: str = ""
    unscorable: str = ""  # why there is no value; empty when there is one
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)  # channel -> parts of the text
    token_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # channel -> one for each token id

    def __post_init__(self) -> None:
        if self.unscorable:
            for name in ("values", "spans", "token_values"):
                object.__setattr__(self, name, {})
        parts = {name: sum(span.value for span in spans) for name, spans in self.spans.items()}
        for name, numbers in self.token_values.items():
            parts[name] = parts.get(name, 0.0) + sum(numbers)
        if parts and parts.keys() - self.values.keys():
            object.__setattr__(self, "values", parts | dict(self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A completion with its scores: one line of samples.jsonl, enough to re-score or re-train."""

    prompt: Prompt
    completion: Completion
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """Sampled responses and all that is known about them before the update.

    Rows are right-padded: prompt tokens, then response tokens, then padding; positions count real tokens.
    """

    token_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] bool
    prompt_lengths: Tensor  # [B] tokens before the response
    response_mask: Tensor  # [B, T] bool
    group: Tensor  # [B] index of the prompt, equal for samples of one prompt
    old_logprobs: Tensor  # [B, T] nats
    ref_logprobs: Tensor  # [B, T] nats
    scores: Mapping[str, Tensor]  # channel -> [B]
    groups: Mapping[str, Tensor] = field(default_factory=dict)  # name of a group of prompts -> [B] bool
    values: Mapping[str, Tensor] = field(default_factory=dict)  # channel -> [B, T]
    token_scores: Mapping[str, Tensor] = field(default_factory=dict)  # channel -> [B, T] of parts, where there are any
    greedy_scores: Mapping[str, Tensor] = field(default_factory=dict)  # channel -> [B] of the prompt's greedy answer
    entropies: Tensor | None = None  # [B, T] nats, of the policy that sampled
    sampled_logprobs: Tensor | None = None  # [B, T] nats, as the engine said them, where these are not `old_logprobs`
    shared_rows: Any = None  # the rows as the policy reads them, with what it need not compute again
    critic_features: Tensor | None = None  # [B, T, F] what the critics see before each token
    extra_inputs: Mapping[str, Any] = field(default_factory=dict)  # further inputs of the policy, such as images


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Pairs of responses as preference losses read them; log-probabilities are sums over the tokens of a response."""

    chosen: Tensor  # [B] nats, under the policy
    rejected: Tensor  # [B]
    ref_chosen: Tensor  # [B] nats, under the reference
    ref_rejected: Tensor  # [B]
    chosen_tokens: Tensor  # [B] tokens of the response
    rejected_tokens: Tensor  # [B]
    probability: Tensor  # [B] that `chosen` is the better one
    margin: Tensor  # [B] by how much it is better, in the unit of whoever judged
    score_differences: Mapping[str, Tensor] = field(default_factory=dict)  # channel -> [B], chosen minus rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseBatch:
    """Responses judged one by one, as unpaired losses read them; log-probabilities are sums over tokens."""

    logprobs: Tensor  # [B] nats, under the policy
    ref_logprobs: Tensor  # [B] nats, under the reference
    tokens: Tensor  # [B] tokens of the response
    desirable: Tensor  # [B] bool
    baseline: Tensor  # [] nats: what a response to another prompt gains on average


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A loss and its metrics as (sum, count) pairs, so that ranks and micro-batches add exactly."""

    loss: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a suite found about one model."""

    suite: str
    model: str
    metrics: Mapping[str, Estimate]
    rollouts_path: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that could not be read: where it stands, what it holds and what was wrong."""

    path: str
    line: int
    reason: str
    row: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All that a source holds, as nouns; loaders fill the fields they can."""

    name: str
    prompts: tuple[Prompt, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    labels: tuple[SafetyLabel, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    ratings: tuple[Rating, ...] = ()
    bad_rows: tuple[BadRow, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)  # files, sha256, licence, revision


@runtime_checkable
class Engine(Protocol):
    """Edge 1: prompts to completions. Results are prompt-major: `samples` adjacent completions per prompt."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Answer every prompt `sampling.samples` times."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Edge 2: completions to scores, one per completion and in their order."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Score each completion as an answer to the prompt beside it."""
        ...


@runtime_checkable
class Annotator(Protocol):
    """Edge 3: responses to one prompt to a comparison."""

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        """Rank two or more responses to one prompt."""
        ...
