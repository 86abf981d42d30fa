"""A figure with its interval: how every number of an evaluation travels and prints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PER_CENT = ("share", "ratio")  # units that print as per cent; a ratio may leave 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its sample size, unit and confidence interval.

    >>> str(Estimate(value=0.125, n=40, unit="share", low=0.055, high=0.261, method="Wilson"))
    '12.5 % [5.5, 26.1] (n=40)'

    It shows as many digits as the interval is worth, or without one as the value needs; `bare` leaves out n:

    >>> f"{Estimate(value=0.0042, n=5, low=0.0021, high=0.0063):bare}", f"{Estimate(value=0.0042, n=1):bare}"
    ('0.004 [0.002, 0.006]', '0.0042')
    """

    value: float
    n: int
    unit: str = ""  # "share", of a whole, and "ratio", to what it may exceed, print as per cent
    low: float | None = None  # None beside a given `high`: no lower end; both None: no interval, `method` says why
    high: float | None = None
    level: float = 0.95
    method: str = ""

    def __str__(self) -> str:
        return f"{self:bare} (n={self.n})"

    def __format__(self, how: str) -> str:
        if how != "bare":
            return format(str(self), how)
        scale, unit = (100.0, " %") if self.unit in PER_CENT else (1.0, f" {self.unit}" if self.unit else "")
        digits = self._digits(scale)

        def shown(x: float) -> str:
            return f"{round(scale * x, digits) + 0.0:.{digits}f}"  # never -0.0

        interval = self.interval_text(shown)
        return f"{shown(self.value)}{unit}{interval and f' {interval}'}"

    def interval_text(self, shown: Callable[[float], str]) -> str:
        """Write the interval in brackets, its ends by `shown`; a share's stays within [0, 1]. Nothing if there is none.

        >>> Estimate(value=3.0, n=9, low=1.0).interval_text(str), Estimate(value=3.0, n=9).interval_text(str)
        ('[1.0 or more]', '')
        """
        ends = [
            end if end is None or self.unit != "share" else min(max(end, 0.0), 1.0) for end in (self.low, self.high)
        ]
        low, high = ("" if end is None else shown(end) for end in ends)
        if low and high:
            return f"[{low}, {high}]"
        return f"[{low or high} or {'more' if low else 'less'}]" if low or high else ""

    def _digits(self, scale: float) -> int:
        """Two digits after the point, one of large numbers and per cents, and more where these would show nothing."""
        usual = 1 if self.unit in PER_CENT or abs(self.value) >= 10 else 2
        half = 0.0 if self.low is None or self.high is None else scale * (self.high - self.low) / 2
        size = scale * abs(self.value)
        if half > 1e-9 * max(1.0, size):
            needed = -math.floor(math.log10(half))
        else:
            needed = 1 - math.floor(math.log10(size)) if 0 < size < 1 else 0
        return max(usual, min(needed, 6))


LEAST_RIGHT = 0.6  # how often a judge must order pairs as people do, with its whole interval, for its rates to be read
NOT_MEASURABLE: Literal["not measurable"] = "not measurable"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRate:
    """A rate that a judge gave, such as a win rate, beside how often it is right on pairs that it never saw.

    A judge whose interval includes 60 %, lies below, or is not there measures nothing: the rate is not printed then.

    >>> rate = Estimate(value=0.55, n=90, unit="share")
    >>> f"{JudgedRate(rate=rate, right=Estimate(value=0.7, n=900, unit='share', low=0.67, high=0.73)):bare}"
    '55.0 % (judge right on 70.0 % [67.0, 73.0] of unseen pairs)'
    >>> str(JudgedRate(rate=rate, right=Estimate(value=0.58, n=400, unit="share", low=0.53, high=0.63)))
    'not measurable (judge right on 58.0 % [53.0, 63.0] of unseen pairs)'
    """

    rate: Estimate
    right: Estimate | None

    @property
    def is_measurable(self) -> bool:
        """Whether the judge orders pairs well enough for its rate to be read."""
        return self.right is not None and self.right.low is not None and self.right.low > LEAST_RIGHT

    def __str__(self) -> str:
        return self._with(str(self.rate))

    def __format__(self, how: str) -> str:
        return self._with(format(self.rate, how)) if how else str(self)

    def _with(self, rate: str) -> str:
        worth = "is not known on unseen pairs" if self.right is None else f"right on {self.right:bare} of unseen pairs"
        return f"{rate if self.is_measurable else NOT_MEASURABLE} (judge {worth})"
