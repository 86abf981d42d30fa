"""A mask with holes gives what the same tokens give without what stands in the holes."""

from functools import partial

import pytest
import torch

from poise.functional import advantages, importance, masked, policy_losses, rewards, risk
from poise.train.algorithms import PPO, sequence_weights, token_weights

MASK = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0]]).bool()
GROUP = torch.tensor([0, 0, 1])
_gae = partial(advantages.gae, discount=0.9, trace=0.8)

# of the tokens x, y [B, T], the mask, and scores [B]: results [B, T], or [B] or [] that no token has
FUNCTIONS = {
    "gae, advantages": lambda x, y, mask, s: _gae(x, y, mask).advantages,
    "gae, returns": lambda x, y, mask, s: _gae(x, y, mask).returns,
    "return to go": lambda x, y, mask, s: advantages.return_to_go(x, mask, 0.9),
    "greedy baseline": lambda x, y, mask, s: advantages.greedy_baseline(x, s, mask),
    "zero variance": lambda x, y, mask, s: advantages.zero_variance_shaping(torch.zeros(3), GROUP, x.abs(), mask),
    "rewards": lambda x, y, mask, s: rewards.shape_rewards(s, x, y, mask, kl_coef=0.1, sign=1),
    "on the last token": lambda x, y, mask, s: rewards.on_last_token(s, mask),
    "first return": lambda x, y, mask, s: risk.first_return(x, mask),
    "token mean": lambda x, y, mask, s: masked.masked_mean(x, mask),
    "sequence mean": lambda x, y, mask, s: masked.sequence_mean(x, mask),
    "standardised": lambda x, y, mask, s: masked.standardise(x, mask),
    "sequence loss": lambda x, y, mask, s: mask * policy_losses.sequence_surrogate(x, y, s[:, None], mask),
    "token loss": lambda x, y, mask, s: mask * PPO.policy_loss(x, y, s[:, None], mask),
    "importance": lambda x, y, mask, s: importance.truncated_importance_weights(x, y, mask),
    "token weights": lambda x, y, mask, s: token_weights(mask.float()),
    "sequence weights": lambda x, y, mask, s: sequence_weights(mask.float()),
}


def packed(x):
    """The tokens in the mask alone, right-padded."""
    return torch.stack(
        [torch.cat([row[m], torch.zeros(len(m) - int(m.sum()))]) for row, m in zip(x, MASK, strict=True)]
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tokens_between_the_turns_change_nothing(name):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, *MASK.shape, generator=generator)
    scores = torch.randn(3, generator=generator)
    found = FUNCTIONS[name](x, y, MASK, scores)
    expected = FUNCTIONS[name](packed(x), packed(y), packed(MASK.float()).bool(), scores)
    if found.shape == MASK.shape:
        assert not found[~MASK].any()
        found = packed(found)
    torch.testing.assert_close(found, expected)
