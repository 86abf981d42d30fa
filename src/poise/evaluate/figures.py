"""Pictures that stand alone: SVG files for a page of results, readable on a light and on a dark ground.

The colours are those of Okabe and Ito, told apart by all common kinds of colour blindness; text and lines are a grey
that both grounds carry.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
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
    """One line or cloud of points; `low` and `high` draw a band, or whiskers where there is no line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    is_line: bool = True
    is_dashed: bool = False  # what is known, beside what was measured
    marker: str = ""


def chart(
    series: Sequence[Series],
    *,
    name: str,
    across: str,
    up: str,
    lines: Mapping[str, float] | None = None,
    is_logarithmic: bool = False,
) -> str:
    """Draw series on one pair of axes and return a whole SVG file.

    name    says what is drawn to who cannot see it
    across  label of the horizontal axis, with its unit
    up      label of the vertical axis
    lines   horizontal lines by what stands beside them
    """
    return charts({name: series}, across=across, up=up, lines=lines, is_logarithmic=is_logarithmic)


def charts(
    panels: Mapping[str, Sequence[Series]],
    *,
    across: str,
    up: str,
    lines: Mapping[str, float] | None = None,
    is_logarithmic: bool = False,
) -> str:
    """Draw panels one above the other, each with its title where there are several; see `chart`."""

    def draw(axes: Axes, title: str, series: Sequence[Series]) -> None:
        for number, each in enumerate(series):
            _draw(axes, each, number)
        for label, height in (lines or {}).items():
            axes.axhline(height, color=INK, lw=1, ls=(0, (4, 3)))
            axes.annotate(label, (axes.get_xlim()[0], height), (3, 3), textcoords="offset points", fontsize=8)
        if is_logarithmic:
            axes.set_xscale("log")
        axes.set(xlabel=across, ylabel=up, title=title if len(panels) > 1 else "")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)

    return _drawn(panels, draw)


def _drawn(panels: Mapping[str, Sequence[Series]], draw: Callable[[Axes, str, Sequence[Series]], None]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    name = "; ".join(panels)
    with rc_context(STYLE | {"svg.hashsalt": name, "axes.titlesize": 9.5}):
        figure = Figure(figsize=(1.6 * WIDTH, 3.4 if len(panels) == 1 else 2.4 * len(panels)), layout="constrained")
        for number, (title, series) in enumerate(panels.items(), start=1):
            draw(figure.add_subplot(len(panels), 1, number), title, series)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Title": name})
    return _settled(buffer.getvalue())


def _draw(axes: Axes, series: Series, number: int) -> None:
    colour = PALETTE[number % len(PALETTE)]
    style: dict[str, Any] = {"color": colour, "label": series.label, "ms": 4, "lw": 1.6}
    style |= {"marker": series.marker or ("" if series.is_line else MARKERS[number % len(MARKERS)])}
    style |= {"ls": (0, (3, 2)) if series.is_dashed else "-"} if series.is_line else {"ls": ""}
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
