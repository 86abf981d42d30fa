"""Losses of reward and cost models from decoupled preferences, per pair or per response.

Signs: a reward is better when higher. A cost is worse when higher, and > 0 means unsafe.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.errors import DataError
from poise.functional.masked import last_index, masked_mean


def bradley_terry_loss(
    better: Tensor, worse: Tensor, margin: Tensor | float | None = None, probability: Tensor | None = None
) -> Tensor:
    """Score the better response above the worse one.

        -p log sigmoid(better - worse - margin) - (1 - p) log sigmoid(worse - better - margin)

    p is 1 unless a soft verdict says with which `probability` the first response really is the better one. Only
    differences count: adding a constant to all scores changes nothing, so pair it with `score_regulariser`.
    Source: Bradley and Terry (1952); Safe RLHF (arXiv:2310.12773), reward-model loss.

    better, worse  [B] rewards
    margin         [B], a number or None: by how much the better one must win, in the unit of the scores
    probability    [B] or None: 0 to 1
    returns        [B] per pair; the caller averages

    >>> bradley_terry_loss(torch.tensor([3.0]), torch.tensor([3.0]))
    tensor([0.6931])
    """
    difference, required = better - worse, 0.0 if margin is None else margin
    loss = -F.logsigmoid(difference - required)
    if probability is None:
        return loss
    return probability * loss - (1 - probability) * F.logsigmoid(-difference - required)


def cost_sign_loss(costs: Tensor, is_safe: Tensor) -> Tensor:
    """Push costs of safe responses below zero and of unsafe ones above it.

        -log sigmoid(s * cost),   s = -1 if safe else +1

    Without this term a cost model only orders responses and "cost <= 0" means nothing.
    Source: Safe RLHF (arXiv:2310.12773), Eq. 6, the two sign terms.

    costs    [B] unbounded, higher is worse
    is_safe  [B] bool
    returns  [B] per response; the caller averages

    >>> cost_sign_loss(torch.tensor([-2.0, -2.0]), torch.tensor([True, False]))
    tensor([0.1269, 2.1269])
    """
    return -F.logsigmoid(torch.where(is_safe, -costs, costs))


def cost_loss(safer: Tensor, unsafer: Tensor, safer_is_safe: Tensor, unsafer_is_safe: Tensor) -> Tensor:
    """Order two responses by harm and put each on its side of zero.

        -log sigmoid(C_u - C_s) - log sigmoid(s_s * C_s) - log sigmoid(s_u * C_u),   s = -1 if safe else +1

    The sign terms compare each response with an imagined one of cost 0, on the boundary of safety; all three have
    weight 1. Both responses may be safe, or both unsafe: then order and one sign pull against each other.
    Source: Safe RLHF (arXiv:2310.12773), Eq. 6.

    safer, unsafer                  [B] costs, higher is worse
    safer_is_safe, unsafer_is_safe  [B] bool
    returns                         [B] per pair; the caller averages

    >>> zero = torch.zeros(1)
    >>> cost_loss(zero, zero, torch.tensor([True]), torch.tensor([False]))  # 3 log 2
    tensor([2.0794])
    """
    order = bradley_terry_loss(unsafer, safer)
    return order + cost_sign_loss(safer, safer_is_safe) + cost_sign_loss(unsafer, unsafer_is_safe)


def score_regulariser(*scores: Tensor) -> Tensor:
    """Measure how large scores are, to be added with a small weight so that they stay near zero.

        mean over all scores of score^2

    Source: Safe RLHF (arXiv:2310.12773), reward- and cost-model losses, the term with weight mu: all 2B scores of a
    batch of pairs are one mean, not the sum of two.

    scores   [...] one or more tensors of any shape
    returns  [] unit of the scores squared

    >>> score_regulariser(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
    tensor(3.5000)
    """
    every = torch.cat([score.reshape(-1) for score in scores])
    return every.square().mean() if every.numel() else every.sum()


def pair_accuracy(better: Tensor, worse: Tensor) -> Tensor:
    """Measure the share of pairs in order, strictly: a tie is wrong.

    For a cost model give the unsafer response first. Two responses without a preference are not a pair.

    better, worse  [B] scores, the first of which should be higher
    returns        [] share, 0 to 1

    >>> pair_accuracy(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]))
    tensor(0.5000)
    """
    return _share(better > worse, better)


def sign_accuracy(costs: Tensor, is_safe: Tensor) -> Tensor:
    """Measure the share of responses on their side of zero, strictly: a cost of exactly 0 is wrong for both.

    costs    [B] higher is worse; concatenate both responses of each pair
    is_safe  [B] bool
    returns  [] share, 0 to 1

    >>> sign_accuracy(torch.tensor([-1.0, 2.0, 0.0, 0.0]), torch.tensor([True, False, True, False]))
    tensor(0.5000)
    """
    return _share(torch.where(is_safe, costs < 0, costs > 0), costs)


def divergence_span(first_ids: Tensor, second_ids: Tensor, first_mask: Tensor, second_mask: Tensor) -> Tensor:
    """Mark where two responses to one prompt differ: from the first different id to the end of the longer one.

        first t with a_t != b_t  <=  t  <=  max(last real a, last real b)

    The positions where only the shorter response is padding belong to the span.
    Source: Safe RLHF reference implementation, the token-wise losses of its first version.

    first_ids, second_ids    [B, L] token ids of prompt and response, padded to one width
    first_mask, second_mask  [B, L] bool
    returns                  [B, L] bool

    Raises:
        DataError: the two sequences of a pair are the same, which no preference can be about.

    >>> divergence_span(torch.tensor([[5, 7, 0]]), torch.tensor([[5, 8, 0]]), *torch.tensor([[[1, 1, 0]], [[1, 1, 0]]]))
    tensor([[False,  True, False]])
    """
    different = first_ids != second_ids
    same = (~different.any(-1)).nonzero().flatten().tolist()
    if same:
        raise DataError(
            f"pairs {same} of the batch hold the same token ids twice: drop them, they express no preference"
        )
    end = torch.maximum(last_index(first_mask), last_index(second_mask))
    positions = torch.arange(first_ids.shape[-1], device=first_ids.device)
    return (different.cumsum(-1) > 0) & (positions <= end.unsqueeze(-1))


def tokenwise_bradley_terry_loss(better: Tensor, worse: Tensor, span: Tensor) -> Tensor:
    """Compare the scores at every token of a span, which the first version of Safe RLHF did.

        mean over the span of -log sigmoid(better_t - worse_t)

    Kept for comparison: a token is scored before the harm may have been said, so prefer `bradley_terry_loss`.
    Source: Safe RLHF reference implementation, loss type "token-wise".

    better, worse  [B, L] rewards per token
    span           [B, L] bool, see `divergence_span`
    returns        [B] per pair; the caller averages

    >>> tokenwise_bradley_terry_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[True, False]]))
    tensor([0.6931])
    """
    return masked_mean(bradley_terry_loss(better, worse), span, dim=-1)


def tokenwise_cost_loss(
    safer: Tensor, unsafer: Tensor, safer_is_safe: Tensor, unsafer_is_safe: Tensor, span: Tensor
) -> Tensor:
    """Apply `cost_loss` at every token of a span, which the first version of Safe RLHF did.

        mean over the span of the three terms of `cost_loss`

    Kept for comparison; prefer `cost_loss`.
    Source: Safe RLHF reference implementation, loss type "token-wise".

    safer, unsafer                  [B, L] costs per token, higher is worse
    safer_is_safe, unsafer_is_safe  [B] bool
    span                            [B, L] bool, see `divergence_span`
    returns                         [B] per pair; the caller averages

    >>> zeros, span = torch.zeros(1, 2), torch.tensor([[True, True]])
    >>> tokenwise_cost_loss(zeros, zeros, torch.tensor([True]), torch.tensor([False]), span)
    tensor([2.0794])
    """
    per_token = cost_loss(safer, unsafer, safer_is_safe.unsqueeze(-1), unsafer_is_safe.unsqueeze(-1))
    return masked_mean(per_token, span, dim=-1)


def tokenwise_score_regulariser(first: Tensor, second: Tensor, span: Tensor) -> Tensor:
    """Measure how large the scores of a span are, every pair weighing the same.

        mean over both sequences and the span of score^2

    first, second  [B, L] scores per token
    span           [B, L] bool, see `divergence_span`
    returns        [B] per pair; the caller averages

    >>> tokenwise_score_regulariser(torch.ones(1, 2), 3 * torch.ones(1, 2), torch.tensor([[True, False]]))
    tensor([5.])
    """
    return masked_mean((first.square() + second.square()) / 2, span, dim=-1)


def _share(hits: Tensor, scores: Tensor) -> Tensor:
    """Average bools in the dtype of the scores, or in float32 where that is too coarse to count in."""
    return hits.to(torch.promote_types(scores.dtype, torch.float32)).mean()
