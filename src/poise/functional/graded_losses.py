"""Losses of score models from feedback that says more than who won: ratings, rankings, classes per segment.

Signs as in `score_losses`: a reward is better when higher. For graded pairs see `preference_targets.margin_target`, for
required margins the argument of `score_losses.bradley_terry_loss`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.functional.masked import masked_mean


def regression_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """Fit scores to ratings on a scale.

        (score - rating)^2

    Unlike losses of pairs it fixes zero and unit of the scores.

    scores   [B] unbounded
    ratings  [B] in the unit the scores shall have; standardise them over the training set first
    returns  [B] per response; the caller averages

    >>> regression_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0]))
    tensor([1., 0.])
    """
    return (scores - ratings).square()


def plackett_luce_loss(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fit scores to a ranking of any number of responses: the best is drawn first, then the best of the rest.

        - sum_k ( s_k - log sum_{j >= k} exp s_j ),   s_1, s_2, ... from best to worst

    For two responses it is `bradley_terry_loss`. All C - 1 choices count, so that a longer ranking weighs more.
    Source: Plackett (1975), Luce (1959).

    scores   [B, C] rewards, columns ordered from the best response to the worst
    mask     [B, C] bool or None: which responses there are, where rankings have unequal lengths
    returns  [B] per ranking; the caller averages

    >>> plackett_luce_loss(torch.zeros(1, 3))  # log 3!
    tensor([1.7918])
    """
    count = scores.shape[-1]
    real = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    itself = torch.eye(count, dtype=torch.bool, device=scores.device)  # an absent response is left to beat itself
    scores = scores.masked_fill(~real, 0)
    rivals = torch.ones_like(itself).triu() & (real.unsqueeze(-2) | itself)
    normaliser = scores.unsqueeze(-2).masked_fill(~rivals, -math.inf).logsumexp(-1)
    return (normaliser - scores).masked_fill(~real, 0).sum(-1)


def segment_class_loss(logits: Tensor, classes: Tensor, segment_ends: Tensor) -> Tensor:
    """Classify each segment of a response at its last token, for instance as absent, clean or hallucinated.

        mean over the ends of segments of -log softmax(logits_t)[class_t]        (0 without any segment)

    Source: fine-grained RLHF (Wu et al., arXiv:2306.01693) and FGAIF (arXiv:2404.05046), the segment-level reward
    models: only the token that ends a segment is judged.

    logits        [B, L, K] one score per class and token
    classes       [B, L] int64 in 0..K-1; anything where no segment ends
    segment_ends  [B, L] bool
    returns       [B] per response; the caller averages

    >>> segment_class_loss(torch.zeros(1, 4, 3), torch.tensor([[0, 2, 0, 1]]), torch.tensor([[0, 1, 0, 1]]))
    tensor([1.0986])
    """
    ends = segment_ends.bool()
    labels = classes.masked_fill(~ends, 0)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return masked_mean(losses, ends, dim=-1)


def segment_rewards(logits: Tensor, segment_ends: Tensor, values: Tensor) -> Tensor:
    """Pay for each segment at its last token what its most likely class is worth.

        values[argmax_k logits_tk] where a segment ends, 0 elsewhere

    Source: fine-grained RLHF (arXiv:2306.01693); FGAIF (arXiv:2404.05046), with values 0, +1, -1 for absent, clean
    and hallucinated. Rewards of several such models add.

    logits        [B, L, K] one score per class and token
    segment_ends  [B, L] bool
    values        [K] reward of each class
    returns       [B, L] rewards per token, without gradient

    >>> logits = torch.tensor([[[0.0, 2.0], [3.0, 1.0]]])
    >>> segment_rewards(logits, torch.tensor([[False, True]]), torch.tensor([1.0, -1.0]))
    tensor([[0., 1.]])
    """
    return values[logits.detach().argmax(-1)].masked_fill(~segment_ends.bool(), 0)
