"""How surprising texts are to a model: perplexity of real texts under a policy, and of a policy's under its start."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from poise.data.chat import Encoded
from poise.errors import DataError
from poise.evaluate.divergence import as_sampled
from poise.models.policy import Policy
from poise.train.responses import sequence_logprobs
from poise.types import Demonstration, Rollout

_TOKENS_PER_PASS = 4096


def perplexity(policy: Policy, texts: Sequence[Demonstration]) -> float:
    """The mean over texts of exp(mean negative log-probability of a token of the continuation).

        mean_i exp(-1 / T_i sum_t log p(y_it | x_i, y_i<t))

    Source: as RA-RLHF (arXiv:2501.06911) measures it, on texts of the good class. A mean over texts, not the usual
    exponential of the mean over all tokens: long texts count no more than short ones.

    texts  [N] beginnings with their continuations

    Raises DataError where no continuation has a token.
    """
    renderer = policy.backbone.renderer()
    return _mean_perplexity(policy, [renderer.encode(each.prompt, each.response, finished=False) for each in texts])


def sample_perplexity(policy: Policy, rollouts: Sequence[Rollout]) -> float:
    """The same of sampled responses, under the reference of the policy that sampled them: how strange it finds them.

    rollouts  [N] with the token ids of what was sampled; those without a token are left out

    Raises DataError where no response has a token.
    """
    return _mean_perplexity(policy, as_sampled(policy, rollouts), reference=True)


def _mean_perplexity(policy: Policy, rows: Sequence[Encoded], *, reference: bool = False) -> float:
    rows = [row for row in rows if len(row.ids) > row.prompt_length]
    if not rows:
        raise DataError("cannot compute perplexity: every continuation is empty")
    sums = sequence_logprobs(policy, rows, tokens=_TOKENS_PER_PASS, reference=reference).tolist()
    lengths = [len(row.ids) - row.prompt_length for row in rows]
    return float(np.mean([math.exp(-total / length) for total, length in zip(sums, lengths, strict=True)]))
