"""A linear head from features at rest: fitted in closed form, its penalty and its calibration from cross-validation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from poise.errors import DataError
from poise.functional.ridge import out_of_fold, ridge_path
from poise.functional.statistics import PlattScale, fit_platt
from poise.models.channels import Channel
from poise.models.heads import ScoreModel

PENALTIES = (100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)
FOLDS = 5
_LEAST_SPREAD = 1e-6
_CALIBRATED = PlattScale(slope=1.0, offset=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearFit:
    """Calibrated logits of features: w . (x - mean) / std + offset, whose zero is a probability of one half."""

    mean: Tensor  # [H]
    std: Tensor  # [H]
    weights: Tensor  # [H]
    offset: float
    penalty: float  # the one of `PENALTIES` whose cross-validated log-loss is the least
    logits: Tensor  # [N] of the rows themselves, each by a fit to the prompts of other folds

    def logits_of(self, features: Tensor) -> Tensor:
        """Logits [M] of features [M, H]."""
        return (features.double() - self.mean) / self.std @ self.weights + self.offset


def fit_linear(
    features: Tensor,
    targets: Sequence[float],
    prompts: Sequence[str],
    *,
    penalties: Sequence[float] = PENALTIES,
    balanced: bool = False,
) -> LinearFit:
    """Regress targets in [0, 1] on standardised features and calibrate what that says of targets of 1/2 or more.

    Penalty and calibration come from predictions for prompts that the fit did not see, so that no row helps to judge
    itself. A target between 0 and 1 counts as it is in the regression: degrees tell more than two classes.

    features  [N, H]
    prompts   [N] names; the answers to one prompt stay in one fold
    balanced  rows of both sides of 1/2 count alike in sum, and the probability is that of a row where both are as
              frequent: for rows whose shares say nothing of those that will be met

    Raises DataError unless some targets lie below 1/2 and some do not, on enough prompts for two folds.
    """
    t = torch.tensor(targets, dtype=torch.float64)
    labels = (t >= 0.5).double()
    if len(labels.unique()) < 2:
        raise DataError(f"a linear head needs targets on both sides of 1/2, got {len(t)} on one")
    mean, std = features.double().mean(0), features.double().std(0).clamp(min=_LEAST_SPREAD)
    x = (features.double() - mean) / std
    odds = float(labels.sum() / (1 - labels).sum()) if balanced else 1.0
    v = torch.where(labels > 0, 1 / odds, 1.0).double()
    folds = torch.tensor([fold_of(prompt) for prompt in prompts])
    predicted = out_of_fold(x, t, folds, penalties, weights=v)
    scales = [fit_platt(row.numpy(), labels.numpy()) for row in predicted]
    logits = [scale.slope * row + scale.offset for scale, row in zip(scales, predicted, strict=True)]
    losses = [float(torch.nn.functional.binary_cross_entropy_with_logits(z, labels)) for z in logits]
    best = int(np.argmin(losses))
    slopes, offsets = ridge_path(x, t, [penalties[best]], weights=v)
    scale = scales[best]
    return LinearFit(
        mean=mean,
        std=std,
        weights=scale.slope * slopes[0],
        offset=float(scale.slope * offsets[0] + scale.offset) - math.log(odds),
        penalty=penalties[best],
        logits=logits[best] - math.log(odds),
    )


def fold_of(prompt: str, folds: int = FOLDS) -> int:
    """The fold of a prompt, from its text alone.

    >>> fold_of("How do I bake bread?") == fold_of("How do I bake bread?")
    True
    """
    return int(hashlib.sha256(f"fold {prompt}".encode()).hexdigest(), 16) % folds


def left_out(features: Tensor, targets: Sequence[float], groups: Sequence[str], fit: LinearFit) -> Tensor:
    """What fits to all other groups say of each row [N], in standardised features and at the penalty of `fit`."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    folds = torch.tensor([numbers[name] for name in groups])
    x = (features.double() - fit.mean) / fit.std
    return out_of_fold(x, torch.tensor(targets, dtype=torch.float64), folds, [fit.penalty])[0]


@torch.no_grad()
def set_head(model: ScoreModel, channel: Channel, fit: LinearFit) -> None:
    """Give a score model with a linear head (`hidden=0`) on one channel what was fitted, already calibrated."""
    model.feature_mean.copy_(fit.mean)
    model.feature_std.copy_(fit.std)
    head = model.trained_parameters()
    head["head.0.weight"].copy_(fit.weights[None])
    head["head.0.bias"].fill_(fit.offset)
    model.with_channel(replace(channel, calibration=None if channel.is_probability else _CALIBRATED))
