"""Feedback as preference losses read it: pairs of responses, or responses judged one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from poise.errors import DataError, FeedbackError
from poise.feedback.asking import ask, name_of
from poise.functional.preference_losses import PreferenceLoss, ResponseLoss
from poise.models.policy import Policy
from poise.train.responses import Responses, ranked_pairs
from poise.types import Comparison, Completion, PairBatch, ResponseBatch, SafetyLabel, Scorer, Verdict

Item = TypeVar("Item")


class Feedback(Protocol):
    """What the trainer needs of feedback: items in groups that share a prompt, and items as a batch of tensors."""

    responses: Responses  # as texts, by number
    rows: list[Any]  # encoded responses by number
    groups: list[list[Any]]  # items by prompt
    dropped: float  # share of the items that were left out, because a scorer has no value for a response

    @property
    def beyond_window(self) -> float:
        """The share of pairs that were left out, because they are the same in all that is read of them."""
        ...

    def numbers(self, items: Sequence[Any]) -> list[int]:
        """The responses that the items speak of, each once."""
        ...

    def mismatched(self, items: Sequence[Any]) -> list[int]:
        """The responses to other prompts that the items are measured against; none for pairs."""
        ...

    def batch(self, items: Sequence[Any], logprobs: Tensor, ref_logprobs: Tensor, baseline: Tensor) -> Any:
        """Items as a batch, from log-probabilities [N] of all responses by number."""
        ...

    def metrics(self, batch: Any, result: Any) -> dict[str, Tensor]:
        """Values [n] whose mean is reported, one per item that has one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two numbered responses to a prompt, the first of which won."""

    chosen: int
    rejected: int
    probability: float = 1.0  # that `chosen` is the better one, at least 1/2
    margin: float = 0.0


class _Encoded:
    """Numbered responses and their tokens."""

    dropped = 0.0

    def __init__(self, policy: Policy, max_tokens: int | None):
        self.responses = Responses()
        self._ranked, self._alike = 0, 0
        self.device = policy.backbone.device
        # prompts are cut where every other role cuts them, responses by default too
        self._renderer = policy.backbone.renderer(max_response_tokens=max_tokens)

    @property
    def beyond_window(self) -> float:
        """The share of pairs that were left out, because they are the same in all that is read of them."""
        return self._alike / max(1, self._ranked)

    def ranked(self, comparison: Comparison) -> Iterator[tuple[int, int, float]]:
        """`ranked_pairs` whose responses differ in what is read of them: others have no gradient."""
        for best, other, probability in ranked_pairs(comparison):
            first, second = (self._renderer.response_ids(comparison.responses[i])[0] for i in (best, other))
            self._ranked += 1
            if first != second:
                yield best, other, probability
            else:
                self._alike += 1

    def nothing_left(self, what: str) -> DataError:
        """The error where there is nothing to learn from."""
        window = self._renderer.max_response_tokens
        alike = (
            f"; {self._alike} pairs are the same in the first {window} tokens, and no more is read: give a larger "
            "max_tokens"
        )
        return DataError(what + (alike if self._alike else ""))

    def encode(self) -> None:
        """Turn the responses numbered so far into tokens."""
        pairs = zip(self.responses.prompts, self.responses.texts, strict=True)
        self.rows = [self._renderer.encode(prompt, text) for prompt, text in pairs]
        self.tokens = torch.tensor([len(r.ids) - r.prompt_length for r in self.rows], device=self.device)

    def indices(self, numbers: Sequence[int]) -> Tensor:
        """Numbers as an index."""
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


class PairFeedback(_Encoded):
    """Comparisons as pairs: the winner against each of the others. A scorer adds what it says of each response.

    Pairs with a response that the scorer has no value for are left out; `dropped` is their share.
    """

    def __init__(
        self,
        policy: Policy,
        comparisons: Sequence[Comparison],
        labels: Sequence[SafetyLabel] = (),  # say nothing about pairs
        verdicts: Sequence[Verdict] = (),  # nor do these
        *,
        scorer: Scorer | None = None,
        max_tokens: int | None = None,
    ):
        super().__init__(policy, max_tokens)
        self.scores: dict[str, Tensor] = {}
        pairs = [pair for comparison in comparisons for pair in self._pairs(comparison)]
        if not pairs:
            raise self.nothing_left("no pairs to learn from: give comparisons of different responses")
        self.encode()
        if scorer is not None:
            pairs = self._score(scorer, pairs)
        self.groups = self.responses.by_prompt(pairs, lambda pair: pair.chosen)

    def _pairs(self, comparison: Comparison) -> list[Pair]:
        numbers = [self.responses.number(comparison.prompt, response) for response in comparison.responses]
        found = []
        for best, other, probability in self.ranked(comparison):
            order = (best, other) if probability >= 0.5 else (other, best)
            chosen, rejected = (numbers[i] for i in order)
            sure = max(probability, 1 - probability)
            found.append(Pair(chosen=chosen, rejected=rejected, probability=sure, margin=comparison.margin))
        return found

    def _score(self, scorer: Scorer, pairs: list[Pair]) -> list[Pair]:
        """Keep the values [N] of each channel by response, and return the pairs both of whose responses have them."""
        prompts, texts = self.responses.prompts, self.responses.texts
        completions = [Completion(prompt_id=p.id, text=text) for p, text in zip(prompts, texts, strict=True)]
        scores = ask(scorer, prompts, completions)
        channels = {name for each in scores for name in each.values}
        known = [bool(channels) and each.values.keys() == channels for each in scores]
        kept = [pair for pair in pairs if known[pair.chosen] and known[pair.rejected]]
        if not kept:
            reason = next((each.unscorable for each in scores if each.unscorable), "no reason given")
            raise FeedbackError(
                f"scorer {name_of(scorer)!r} has a value for both responses of none of {len(pairs)} pairs; the first "
                f"that is missing: {reason}"
            )
        self.dropped = 1 - len(kept) / len(pairs)
        self.scores = {
            name: torch.tensor([each.values.get(name, 0.0) for each in scores], device=self.device)
            for name in sorted(channels)
        }
        return kept

    def numbers(self, items: Sequence[Pair]) -> list[int]:
        """Both responses of each pair."""
        return sorted({number for pair in items for number in (pair.chosen, pair.rejected)})

    def mismatched(self, items: Sequence[Pair]) -> list[int]:
        """None: a pair is its own measure."""
        return []

    def batch(self, items: Sequence[Pair], logprobs: Tensor, ref_logprobs: Tensor, baseline: Tensor) -> PairBatch:
        """The pairs with all that is known about them."""
        chosen = self.indices([pair.chosen for pair in items])
        rejected = self.indices([pair.rejected for pair in items])
        return PairBatch(
            chosen=logprobs[chosen],
            rejected=logprobs[rejected],
            ref_chosen=ref_logprobs[chosen],
            ref_rejected=ref_logprobs[rejected],
            chosen_tokens=self.tokens[chosen],
            rejected_tokens=self.tokens[rejected],
            probability=torch.tensor([pair.probability for pair in items], device=self.device),
            margin=torch.tensor([pair.margin for pair in items], device=self.device),
            score_differences={name: values[chosen] - values[rejected] for name, values in self.scores.items()},
        )

    def metrics(self, batch: PairBatch, result: PreferenceLoss) -> dict[str, Tensor]:
        """Rewards, who wins by them, and how far each side has moved from where it began.

        reward_accuracy, reward_margin     of pairs that have a winner: it has the higher reward (ties are wrong)
        chosen_reward, rejected_reward     as the loss implies them
        chosen_drift, rejected_drift       nats per response against the reference; both may fall
        chosen_logprob, rejected_logprob   nats per token
        """
        decided = batch.probability != 0.5
        sign = torch.where(batch.probability > 0.5, 1.0, -1.0)
        margin = (sign * (result.chosen_rewards - result.rejected_rewards))[decided]
        return {
            "loss": result.losses.detach(),
            "reward_accuracy": (margin > 0).float(),
            "reward_margin": margin,
            "chosen_reward": result.chosen_rewards,
            "rejected_reward": result.rejected_rewards,
            "chosen_drift": (batch.chosen - batch.ref_chosen).detach(),
            "rejected_drift": (batch.rejected - batch.ref_rejected).detach(),
            "chosen_logprob": (batch.chosen / batch.chosen_tokens).detach(),
            "rejected_logprob": (batch.rejected / batch.rejected_tokens).detach(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedResponse:
    """A numbered response that is desirable or not, and the number of another prompt's response read as an answer."""

    response: int
    desirable: bool
    mismatched: int


class ResponseFeedback(_Encoded):
    """Responses judged one by one: as verdicts say; safe ones of labels and winners of comparisons are desirable.

    Each is paired with a response to the next prompt, which measures what any text gains (see `kto_baseline`).
    """

    def __init__(
        self,
        policy: Policy,
        comparisons: Sequence[Comparison],
        labels: Sequence[SafetyLabel] = (),
        verdicts: Sequence[Verdict] = (),
        *,
        scorer: Scorer | None = None,  # says nothing that unpaired losses read
        max_tokens: int | None = None,
    ):
        super().__init__(policy, max_tokens)
        found = [(self.responses.number(label.prompt, label.response), label.safe) for label in labels]
        found += [(self.responses.number(each.prompt, each.response), each.desirable) for each in verdicts]
        found += [row for comparison in comparisons for row in self._sides(comparison)]
        judged = self.responses.by_prompt(found, lambda row: row[0])
        if len(judged) < 2:
            what = f"{len(judged)} prompts with judged responses: at least two are needed"
            raise self.nothing_left(what)
        self.groups = [self._with_mismatched(group, judged[i - 1]) for i, group in enumerate(judged)]
        self.encode()

    def _sides(self, comparison: Comparison) -> list[tuple[int, bool]]:
        found = []
        for best, other, probability in self.ranked(comparison):
            if probability != 0.5:
                won = probability > 0.5
                numbers = [self.responses.number(comparison.prompt, comparison.responses[i]) for i in (best, other)]
                found += [(numbers[0], won), (numbers[1], not won)]
        return found

    def _with_mismatched(self, group: list[tuple[int, bool]], other: list[tuple[int, bool]]) -> list[JudgedResponse]:
        prompt = self.responses.prompts[group[0][0]]
        texts = [self.responses.texts[number] for number, _ in other]
        return [
            JudgedResponse(
                response=number,
                desirable=desirable,
                mismatched=self.responses.number(prompt, texts[i % len(texts)]),
            )
            for i, (number, desirable) in enumerate(group)
        ]

    def numbers(self, items: Sequence[JudgedResponse]) -> list[int]:
        """The judged responses."""
        return sorted({item.response for item in items})

    def mismatched(self, items: Sequence[JudgedResponse]) -> list[int]:
        """A response to another prompt for each item."""
        return [item.mismatched for item in items]

    def batch(
        self, items: Sequence[JudgedResponse], logprobs: Tensor, ref_logprobs: Tensor, baseline: Tensor
    ) -> ResponseBatch:
        """The responses with their verdicts."""
        numbers = self.indices([item.response for item in items])
        return ResponseBatch(
            logprobs=logprobs[numbers],
            ref_logprobs=ref_logprobs[numbers],
            tokens=self.tokens[numbers],
            desirable=torch.tensor([item.desirable for item in items], device=self.device),
            baseline=baseline,
        )

    def metrics(self, batch: ResponseBatch, result: ResponseLoss) -> dict[str, Tensor]:
        """As for pairs, with desirable responses as chosen; accurate is a reward on the right side of the baseline."""
        good, drift = batch.desirable, (batch.logprobs - batch.ref_logprobs).detach()
        above = drift > batch.baseline
        per_token = (batch.logprobs / batch.tokens).detach()
        return {
            "loss": result.losses.detach(),
            "reward_accuracy": torch.where(good, above, drift < batch.baseline).float(),
            "chosen_reward": result.rewards[good],
            "rejected_reward": result.rewards[~good],
            "chosen_drift": drift[good],
            "rejected_drift": drift[~good],
            "chosen_logprob": per_token[good],
            "rejected_logprob": per_token[~good],
            "baseline": batch.baseline.expand(len(good)),
        }
