"""Preference losses by name, as a command line can choose them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from poise.errors import ConfigError
from poise.functional.implied_rewards import alpha_reward, forward_kl_reward, jensen_shannon_reward
from poise.train.preference_feedback import PairFeedback
from poise.train.preference_methods import (
    PreferenceMethod,
    conservative_dpo,
    dpo,
    graded_by,
    ipo,
    kto,
    mmpo,
    offset_dpo,
    orpo,
    robust_dpo,
    simpo,
    with_supervised,
)

Make = Callable[..., PreferenceMethod]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedLoss:
    """A loss with its usual strength.

    make        from a beta to the method
    is_scored   it asks a score model of reward about the pairs
    is_limited  labels are that score model's reward less the price of its cost, which holds the cost at a limit
    """

    make: Make
    beta: float = 0.1
    is_scored: bool = False
    is_limited: bool = False

    def method(self, *, beta: float | None = None, supervised_weight: float = 0.0) -> PreferenceMethod:
        """The loss with a beta (its usual one, where not given) and the supervised loss of preferred responses added.

        Raises ConfigError for a supervised loss beside a loss of single responses.
        """
        method = self.make(beta=self.beta if beta is None else beta)
        if not supervised_weight:
            return method
        if method.feedback is not PairFeedback:
            raise ConfigError(
                "supervised_weight needs a loss of pairs, and kto reads responses one by one: set it to 0"
            )
        return with_supervised(method, coefficient=supervised_weight)


def _graded(make: Make) -> Make:
    return lambda *, beta: graded_by(make(beta=beta), "reward")


LOSSES = {
    "dpo": NamedLoss(make=dpo),
    "cdpo": NamedLoss(make=conservative_dpo),
    "rdpo": NamedLoss(make=robust_dpo),
    "ipo": NamedLoss(make=ipo),
    "simpo": NamedLoss(make=simpo, beta=2.0),
    "orpo": NamedLoss(make=orpo),
    "kto": NamedLoss(make=kto),
    "forward-kl": NamedLoss(make=partial(dpo, implied_reward=forward_kl_reward)),
    "jensen-shannon": NamedLoss(make=partial(dpo, implied_reward=jensen_shannon_reward)),
    "alpha": NamedLoss(make=partial(dpo, implied_reward=partial(alpha_reward, alpha=0.5))),
    "mmpo": NamedLoss(make=_graded(mmpo), is_scored=True),
    "odpo": NamedLoss(make=_graded(partial(offset_dpo, scaling=lambda margin: margin)), is_scored=True),
    "constrained": NamedLoss(make=dpo, is_scored=True, is_limited=True),
}


def named_losses(names: str | Sequence[str]) -> dict[str, NamedLoss]:
    """The losses with these names, joined by commas or one by one.

    Raises ConfigError for none, for one that is named twice, and for one that is not there.

    >>> list(named_losses("dpo,ipo"))
    ['dpo', 'ipo']
    """
    wanted = tuple(names.split(",")) if isinstance(names, str) else tuple(names)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(f"loss is {','.join(wanted) or 'empty'}: give at least one, without duplicates")
    if strangers := [name for name in wanted if name not in LOSSES]:
        raise ConfigError(f"no loss {strangers[0]!r}: choose {', '.join(LOSSES)}")
    return {name: LOSSES[name] for name in wanted}
