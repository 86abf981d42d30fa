"""Charts as inline SVG that follow the theme of the page they stand in.

Matplotlib draws in placeholder colours; each is then replaced by a CSS variable (`--ink`, `--before`, ...), so one
drawing serves light, dark and print. Text stays text and takes the font of the page. The colours of the stages are
told apart by all common kinds of colour blindness, and by marker shape.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING, Any

from poise.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#010203", "#020304", "#030405"
FIRST, MIDDLE, LAST, DANGER = "#040506", "#070809", "#050607", "#060708"
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "first", MIDDLE: "middle", LAST: "last", DANGER: "danger"
}  # fmt: skip
MARKERS = {"harmful": "o", "look_alike": "^", "benign": "s"}
KIND_LABELS = {"harmful": "harmful prompts", "look_alike": "look-alikes", "benign": "benign prompts"}
STAGE_MARKERS = {"first": "o", "middle": "s", "last": "D"}
COLOURS = {"first": FIRST, "middle": MIDDLE, "last": LAST}
Stages = Sequence[Mapping[str, str]]  # with "name" and "label", base to final

WIDTH = 4.8  # inches: at 390 px of page width the 9 pt text is still readable
MAX_POINTS = 600
SMOOTH_FROM = 30  # training steps from which a moving mean is drawn over the raw line
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a name is a dollar
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handletextpad": 0.3,
    "legend.labelcolor": MUTED,
}


def place_of(stages: Stages, name: str) -> str:
    """Where a stage stands, which gives it colour and marker: first, middle or last.

    >>> place_of([{"name": "base"}, {"name": "sft"}, {"name": "final"}], "sft")
    'middle'
    """
    names = [stage["name"] for stage in stages]
    return "last" if name == names[-1] else "first" if name == names[0] else "middle"


def scatter(
    points: Mapping[str, Sequence[Mapping[str, Any]]], stages: Stages, limit: float | None = None
) -> dict[str, str]:
    """Draw reward against cost, one chart per stage on the same axes; cost > 0 is shaded.

    points  stage -> rows with "reward", "cost" and "kind"
    """
    drawn = {
        stage["name"]: [p for p in points.get(stage["name"], ()) if has_numbers(p, "reward", "cost")]
        for stage in stages
    }
    everything = [p for rows in drawn.values() for p in rows]
    if not everything:
        return {}
    costs = _range([*(p["cost"] for p in everything), 0.0, limit or 0.0])
    rewards = _range([p["reward"] for p in everything])
    return {
        stage["name"]: _scatter(stage, place_of(stages, stage["name"]), rows, limit, costs, rewards)
        for stage in stages
        if (rows := drawn[stage["name"]])
    }


def _scatter(
    stage: Mapping[str, str],
    place: str,
    rows: Sequence[Mapping[str, Any]],
    limit: float | None,
    costs: tuple[float, float],
    rewards: tuple[float, float],
) -> str:
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axes = _figure(3.6)
        axes.set(xlim=costs, ylim=rewards, xlabel="cost (unsafe above 0)", ylabel="reward")
        axes.axvspan(0, costs[1], color=DANGER, alpha=0.12, lw=0)
        _note(axes, "unsafe", (costs[1], rewards[1]), (-5, -4), DANGER)
        if limit is not None:
            axes.axvline(limit, color=INK, lw=1, ls=(0, (4, 3)))
            _note(axes, "limit", (limit, rewards[0]), (5, 4), INK)
        for kind, marker in MARKERS.items():
            drawn = [p for p in _thinned(rows) if p.get("kind") == kind]
            if drawn:
                _dots(axes, drawn, COLOURS[place], marker, KIND_LABELS[kind])
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8.5, columnspacing=0.9)
        return _svg(figure, f"scatter-{stage['name']}", f"Reward against cost of {len(rows)} answers, {stage['label']}")


def _note(axes: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], colour: str) -> None:
    """Write a word beside a point; it lies left of the point unless shifted right, below it if shifted down."""
    axes.annotate(
        text, at, shift, textcoords="offset points", color=colour, fontsize=8.5,
        ha="left" if shift[0] > 0 else "right", va="bottom" if shift[1] > 0 else "top",
    )  # fmt: skip


def _dots(axes: Axes, rows: Sequence[Mapping[str, Any]], colour: str, marker: str, label: str) -> None:
    x, y = [p["cost"] for p in rows], [p["reward"] for p in rows]
    axes.scatter(x, y, s=16, marker=marker, c=colour, alpha=0.6, linewidths=0, label=label)


def curve(rows: Sequence[Mapping[str, Any]], name: str, label: str, lines: Mapping[str, float] | None = None) -> str:
    """Draw one figure over the training steps; from 30 steps on a moving mean lies over the faint raw line.

    lines  label -> a height that is drawn across, such as a limit and what training holds
    """
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in rows if has_numbers(row, "step", name)]
    steps, values = [float(row["step"]) for row in rows], [float(row[name]) for row in rows]
    with rc_context(STYLE):
        figure, axes = _figure(2.3)
        many = len(values) >= SMOOTH_FROM
        axes.plot(steps, values, color=LAST, lw=1 if many else 1.8, alpha=0.35 if many else 1.0)
        if many:
            axes.plot(steps, _smoothed(values), color=LAST, lw=1.8)
        elif len(values) == 1:
            axes.plot(steps, values, "o", color=LAST)
        _lines_across(axes, lines or {}, steps[-1])
        axes.set(xlabel="step", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, f"curve-{name}", f"{label} over {len(values)} training steps")


def _lines_across(axes: Axes, lines: Mapping[str, float], right: float) -> None:
    """Dashed lines with their names at the right end, the upper one's above it and the lower one's below."""
    for height in sorted(set(lines.values())):
        axes.axhline(height, color=INK, lw=1, ls=(0, (4, 3)))
    for name, height in lines.items():
        is_lowest = len(set(lines.values())) > 1 and height == min(lines.values())
        _note(axes, name, (right, height), (0, -3) if is_lowest else (0, 3), INK)


def category_bars(rows: Sequence[Mapping[str, Any]], stages: Stages) -> str:
    """Draw the harm rate of every category at each stage, with intervals; the worst at first stands on top.

    rows  with "category" and "values", the latter estimates as mappings by stage, shares
    """
    from matplotlib import rc_context

    rows = worst_first(rows)[::-1]
    with rc_context(STYLE):
        figure, axes = _figure(0.8 + (0.16 + 0.15 * max(2, len(stages))) * len(rows))
        handles = []
        for number, stage in enumerate(stages):
            place = place_of(stages, stage["name"])
            colour, marker = COLOURS[place], STAGE_MARKERS[place]
            offset = 0.34 * (0.5 - number / max(1, len(stages) - 1))
            for height, row in enumerate(rows):
                if row["values"].get(stage["name"]):
                    _interval(axes, height + offset, row["values"][stage["name"]], colour, marker)
            handles += axes.plot([], [], marker, color=colour, label=one_line(stage["label"], 24), ms=5)
        names = [str(row["category"]).replace("_", " ").replace(",", ", ") for row in rows]
        axes.set_yticks(range(len(rows)), [fill(name, 26) for name in names])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(False, axis="y")
        axes.set(xlim=(-2, 102), ylim=(-0.6, len(rows) - 0.4), xlabel="harm rate, %")
        axes.legend(
            handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8.5, columnspacing=0.9
        )
        return _svg(figure, "categories", f"Harm rate by category, {len(stages)} stages, {len(rows)} categories")


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort categories by their harm rate at the first stage that has one, the highest first."""

    def first(row: Mapping[str, Any]) -> float:
        return next((each["value"] for each in row["values"].values() if each), 0.0)

    return sorted(rows, key=lambda row: -first(row))


def _interval(axes: Axes, y: float, estimate: Mapping[str, Any], colour: str, marker: str) -> None:
    if estimate.get("low") is not None and estimate.get("high") is not None:
        axes.plot([100 * estimate["low"], 100 * estimate["high"]], [y, y], color=colour, lw=5, alpha=0.3)
    axes.plot([100 * estimate["value"]], [y], marker, color=colour, ms=5)


def tradeoff(rows: Sequence[Mapping[str, Any]], across: str, label: str) -> str:
    """Draw harm rate against another share, one numbered point with its cross of intervals per objective.

    rows  with "harm_rate" and the figure `across`, both estimates as mappings, shares
    """
    from matplotlib import rc_context

    numbered = [(i, row) for i, row in enumerate(rows, start=1) if row.get("harm_rate") and row.get(across)]
    if not numbered:
        return ""
    with rc_context(STYLE):
        figure, axes = _figure(3.2)
        for number, row in numbered:
            x, y = 100 * row[across]["value"], 100 * row["harm_rate"]["value"]
            _cross(axes, row[across], row["harm_rate"], (x, y))
            axes.plot([x], [y], "o", color=LAST, ms=6)
            axes.annotate(str(number), (x, y), (5, 5), textcoords="offset points", fontweight="bold")
        axes.set(xlabel=label, ylabel="harm rate, % (lower is better)")
        axes.set_ylim(bottom=-1)
        return _svg(figure, f"tradeoff-{across}", f"Harm rate against {label}, {len(numbered)} objectives")


def _cross(axes: Axes, across: Mapping[str, Any], up: Mapping[str, Any], at: tuple[float, float]) -> None:
    x, y = at
    if across.get("low") is not None and across.get("high") is not None:
        axes.plot([100 * across["low"], 100 * across["high"]], [y, y], color=LAST, lw=3, alpha=0.25)
    if up.get("low") is not None and up.get("high") is not None:
        axes.plot([x, x], [100 * up["low"], 100 * up["high"]], color=LAST, lw=3, alpha=0.25)


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, description: str) -> str:
    """Save as an SVG element that scales, names itself to screen readers and takes colours and font from the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # ids stay the same from run to run and differ between charts
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.S)
    head = re.match(r"<svg[^>]*>", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert head and box  # matplotlib always writes both
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"font(-family)?: ([\d.]+px )?[^;\"]*'DejaVu Sans'[^;\"]*", _font, text)
    # ids of groups such as "axes_1" repeat between charts; only the hashed ones are referred to
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return f'<svg role="img" aria-label="{escape(description)}" {box[0]}>{text[len(head[0]) :]}'.strip()


def _font(found: re.Match[str]) -> str:
    size = f"font-size: {found[2].strip()}; " if found[2] else ""
    return f"{size}font-family: inherit"


def has_numbers(row: Mapping[str, Any], *names: str) -> bool:
    """Tell whether a row holds a finite number under every name."""
    return all(isinstance(row.get(name), int | float) and math.isfinite(row[name]) for name in names)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _thinned(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Take every k-th point, so that a page of thousands stays light."""
    stride = max(1, math.ceil(len(rows) / MAX_POINTS))
    return list(rows[::stride])


def _smoothed(values: Sequence[float]) -> list[float]:
    """Give the mean of the window around each step, cut at the ends."""
    half = max(1, len(values) // 24)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
