"""Pictures that stand alone: SVG files for a page of results, readable on a light and on a dark ground.

The colours are those of Okabe and Ito, told apart by all common kinds of colour blindness; text and lines are a grey
that both grounds carry.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poise.evaluate.charts import GRID, INK, MUTED, STYLE, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
MARKERS = "osD^vP*"
GROUNDS = {INK: "#7d8590", MUTED: "#7d8590", GRID: "#7d859055"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line or cloud of points of a plot; `low` and `high` [N] draw a band, or error bars if there is no line.

    >>> Series(label="PPO", x=[1.0, 2.0], y=[0.1, 0.4], low=[0.0, 0.3], high=[0.2, 0.5]).is_line
    True
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    is_line: bool = True
    is_dashed: bool = False  # a known value, as opposed to a measured one


def chart(series: Sequence[Series], *, name: str, across: str, up: str) -> str:
    """Draw series on one pair of axes and return a whole SVG file.

    name    says what is drawn to who cannot see it
    across  label of the horizontal axis, with its unit
    up      label of the vertical axis
    """
    return charts({name: series}, across=across, up=up)


def charts(panels: Mapping[str, Sequence[Series]], *, across: str, up: str) -> str:
    """Draw panels one above the other, each with its title where there are several; see `chart`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    name, height = "; ".join(panels), 3.4 if len(panels) == 1 else 2.4 * len(panels)
    with rc_context(STYLE | {"svg.hashsalt": name, "axes.titlesize": 9.5}):
        figure = Figure(figsize=(1.6 * WIDTH, height), layout="constrained")
        for place, (title, series) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(len(panels), 1, place)
            for number, each in enumerate(series):
                _draw(axes, each, number)
            axes.set(xlabel=across, ylabel=up, title=title if len(panels) > 1 else "")
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Title": name})
    return _settled(buffer.getvalue())


def _draw(axes: Axes, series: Series, number: int) -> None:
    colour = PALETTE[number % len(PALETTE)]
    style: dict[str, Any] = {"color": colour, "label": series.label, "ms": 4, "lw": 1.6}
    if series.is_line:
        style |= {"ls": (0, (3, 2)) if series.is_dashed else "-"}
    else:
        style |= {"ls": "", "marker": MARKERS[number % len(MARKERS)]}
    axes.plot(series.x, series.y, **style)
    if series.low is None or series.high is None:
        return
    if series.is_line:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.2, lw=0)
    else:
        axes.vlines(series.x, series.low, series.high, color=colour, alpha=0.6, lw=1.4)


def _settled(text: str) -> str:
    """Shorter numbers, the same bytes for the same picture, and colours for any ground."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    for placeholder, colour in GROUNDS.items():
        text = text.replace(placeholder, colour)
    text = re.sub(r"(\d+\.\d{2})\d+", r"\1", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
