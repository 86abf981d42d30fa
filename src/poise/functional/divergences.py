"""How far the policy is from its reference: estimators of KL(policy || reference) from sampled tokens, in nats."""

from __future__ import annotations

from torch import Tensor

from poise.functional.bounded import bounded_expm1


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate the KL divergence by the log-ratio: unbiased, of high variance, negative on many tokens.

        k1 = log pi(y) - log pi_ref(y),   y ~ pi

    Source: Schulman, "Approximating KL Divergence" (2020).

    logprobs, ref_logprobs  [...] nats
    returns                 [...] nats

    >>> import torch
    >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([1.])
    """
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate the KL divergence by half the squared log-ratio: biased, of low variance, never negative.

        k2 = (log pi(y) - log pi_ref(y))^2 / 2,   y ~ pi

    Source: Schulman, "Approximating KL Divergence" (2020).

    logprobs, ref_logprobs  [...] nats
    returns                 [...] nats

    >>> import torch
    >>> kl_k2(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.5000])
    """
    return (logprobs - ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate the KL divergence without bias, with low variance, and never below zero.

        k3 = exp(-d) - 1 + d,   d = log pi(y) - log pi_ref(y),   y ~ pi

    Where the reference is far more certain of a token than the policy, exp(-d) is very large; beyond e^60 it goes on
    as a straight line (`bounded.bounded_expm1`): no single token makes a loss infinite, and none loses its gradient.
    Source: Schulman, "Approximating KL Divergence" (2020).

    logprobs, ref_logprobs  [...] nats
    returns                 [...] nats

    >>> import torch
    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.3679])
    """
    difference = logprobs - ref_logprobs
    return bounded_expm1(-difference) + difference


def adapt_kl_coefficient(coefficient: float, kl: float, target: float, gain: float) -> float:
    """Move the KL coefficient towards the value that holds the divergence at its target.

        coefficient * (1 + gain * clip(kl / target - 1, -0.2, 0.2))

    Give the mean over the sequences that were trained on: dividing by all of a batch of which some were left out
    makes the divergence look small and moves the coefficient the wrong way.
    Source: Ziegler et al. (arXiv:1909.08593); RA-RLHF (arXiv:2501.06911), Eq. 12 of the draft, gain = batch / horizon.

    kl, target  nats per sequence, finite, target > 0
    gain        share of the coefficient per update and unit of clipped error, 0 to below 5

    >>> round(adapt_kl_coefficient(0.2, kl=12.0, target=6.0, gain=0.0128), 6)
    0.200512
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + gain * error)
