"""Write docs/performance.md and its plots from what lies in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import RESULTS

DOCS = Path(__file__).parent.parent / "docs"
PAGE, PLOTS, NOTES = DOCS / "performance.md", DOCS / "performance", Path(__file__).parent / "notes.md"
AXES = {"rows": "rows", "response": "tokens of a response", "layers": "layers of a random model"}
ROWS = (
    *("rollout_fixed", "rollout_mixed", "rollout_grouped", "grpo_16", "grpo_64", "grpo_16_lora", "grpo_64_lora"),
    *("ppo_lag_16", "ppo_lag_16_separate", "dpo", "reward", "sft", "sft_packed"),
)


def main() -> None:
    """Render the page."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    rows = [found[name] for name in ROWS if name in found]
    scalings = [value for name, value in found.items() if ".scaling" in name]
    profiles = [found[f"{name}.profile"] for name in ROWS if f"{name}.profile" in found]
    PLOTS.mkdir(exist_ok=True)
    parts = [_head(rows), _table(rows) if rows else "", _missing(found)]
    if any(row["bound"] for row in rows):
        parts.append(_bounds(rows))
    if scalings:
        parts.append(_scaling(scalings))
    if profiles:
        parts.append(_profiles(profiles))
    if memories := [found[f"{name}.memory"] for name in ROWS if f"{name}.memory" in found]:
        parts.append(_memories(memories))
    parts += [_gpu(found.get("gpu")), NOTES.read_text() if NOTES.exists() else ""]
    PAGE.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _head(rows: list[dict[str, Any]]) -> str:
    machines = {json.dumps(row["machine"], sort_keys=True): row["machine"] for row in rows}
    lines = [
        f"- {m['cores']} cores of {m['cpu']}{' with AMX (bf16)' if m['amx_bf16'] else ''}, Python {m['python']}, "
        f"torch {m['torch']}, transformers {m['transformers']}, TRL {m['trl']}, "
        f"{'our kernels' if m.get('kernels') else 'no kernels'}, {m['date']}"
        for m in machines.values()
    ]
    return (
        "# Performance\n\nTimes against peers on the same machine, model (SmolLM2-135M in bf16), prompts and lengths. "
        "`make bench` measures and writes this page; each row is a script of `benchmarks/`. Both sides run in one "
        "process tree and take turns; both have the same tuned malloc. Seconds are medians over n turns, the ratio is "
        "the median of those of single turns, with the smallest and the largest: machines are shared, and a turn meets "
        "both sides alike. Turns of which other processes took over a tenth are left out.\n\n" + "\n".join(lines)
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| work | ours, s | peer, s | ratio | wanted | ours, GiB | peer, GiB | memory ratio | taken by others | n |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        bound = row["peer"] is None
        met = row["ratio"] is not None and (row["ratio"] <= row["bar"] if bound else row["ratio"] >= row["bar"])
        peer = f"{row['bound']:.2f} (products)" if bound else f"{row['peer']:.2f}"
        memory = "" if row["peer_rss_gib"] is None else f"{row['peer_rss_gib']:.2f}"
        clock = " (processor seconds, one thread)" if row.get("clock") == "processor" else ""
        low, high = row["ratio_range"] or (row["ratio"], row["ratio"])
        shares = [each["others"] for side in row["repeats"].values() for each in side]
        lines.append(
            f"| `{row['benchmark']}`{clock} | {row['ours']:.2f} | {peer} | "
            f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]{'' if met else ' (not met)'} | "
            f"{'at most' if bound else 'at least'} {row['bar']} | {row['ours_rss_gib']:.2f} | {memory} | "
            f"{'' if row['rss_ratio'] is None else format(row['rss_ratio'], '.2f')} | "
            f"{min(shares):.0%} to {max(shares):.0%} | {row['n']} |"
        )
    _bars(rows)
    return "## Against peers\n\n" + "\n".join(lines) + "\n\n![Ratios](performance/ratios.svg)"


def _missing(found: dict[str, Any]) -> str:
    absent = [f"`{name}`" for name in ROWS if name not in found]
    return f"Not measured: {', '.join(absent)}." if absent else ""


def _bounds(rows: list[dict[str, Any]]) -> str:
    lines = ["| work | ours, s | matrix products alone, s | times the bound |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{row['benchmark']}` | {row['ours']:.2f} | {row['bound']:.2f} | {row['over_bound']:.2f} |"
        for row in rows
        if row["bound"]
    ]
    text = "The bound is the time of the step's bf16 matrix products, at their own numbers of rows, without attention."
    return f"## Distance to the limit of the machine\n\n{text}\n\n" + "\n".join(lines)


def _scaling(scalings: list[dict[str, Any]]) -> str:
    lines = ["| work | over | time grows as | memory grows as |", "| --- | --- | --- | --- |"]
    for each in scalings:
        scales = [point["scale"] for point in each["points"]]
        lines.append(
            f"| `{each['benchmark']}` | {AXES[each['scaled']]}, {scales[0]} to {scales[-1]} | "
            f"n^{each['time_exponent']:.2f} | n^{each['memory_exponent']:.2f} |"
        )
    _curves(scalings)
    text = (
        "Ours alone (`--scaling rows`, `response`, `layers`): slopes of lines through the logarithms of the fastest of "
        "three repeats at each size, and of memory above that of a process at rest. Below 1: part does not grow."
    )
    return f"## Scaling\n\n{text}\n\n" + "\n".join(lines) + "\n\n![Scaling](performance/scaling.svg)"


def _profiles(profiles: list[dict[str, Any]]) -> str:
    lines = ["| work | threads | share of the time |", "| --- | --- | --- |"]
    for each in profiles:
        shares = ", ".join(f"{name.removeprefix('aten::')} {share:.0%}" for name, share in each["shares"].items())
        lines.append(f"| `{each['benchmark']}` | {each['threads']} | {shares} |")
    text = (
        "One repeat under torch's profiler (`python benchmarks/time_shares.py NAME`), by the operation itself; those "
        "of `poise::` are our kernels. What is not products could still be saved."
    )
    return f"## Where the time goes\n\n{text}\n\n" + "\n".join(lines)


def _memories(memories: list[dict[str, Any]]) -> str:
    points = ("libraries", "set up", "between repeats", "highest")
    lines = [f"| work | side | {' | '.join(points)} |", "| --- " * (len(points) + 2) + "|"]
    lines += [
        f"| `{each['benchmark']}` | {side} | " + " | ".join(f"{each[side][point]:.2f}" for point in points) + " |"
        for each in memories
        for side in ("ours", "peer")
    ]
    text = "GiB resident in a process of its own (`python benchmarks/memory_shares.py NAME`), as more comes into it."
    return f"## Where the memory comes from\n\n{text}\n\n" + "\n".join(lines)


def _gpu(result: dict[str, Any] | None) -> str:
    if result is None:
        return "## One GPU\n\nNot measured. `python benchmarks/gpu.py` measures it wherever a GPU appears."
    lines = [f"- {name}: {value}" for name, value in result["figures"].items()]
    return f"## One GPU\n\n{result['device']}, {result['date']}.\n\n" + "\n".join(lines)


def _bars(rows: list[dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["peer"] is not None]
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(rows) + 1))
    names = [row["benchmark"] for row in rows]
    axes.barh(names, [row["ratio"] for row in rows], color="#4878a8")
    axes.plot([row["bar"] for row in rows], names, "|", color="black", markersize=14, label="wanted")
    axes.invert_yaxis()
    axes.set_xlabel("time of the peer / time of poise")
    axes.legend()
    figure.savefig(PLOTS / "ratios.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _curves(scalings: list[dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    kinds = [kind for kind in AXES if any(each["scaled"] == kind for each in scalings)]
    figure, plots = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.5), squeeze=False, layout="constrained")
    for axes, kind in zip(plots[0], kinds, strict=True):
        shown = [each for each in scalings if each["scaled"] == kind]
        for each in shown:
            scales, seconds = zip(*((p["scale"], p["seconds"]) for p in each["points"]), strict=True)
            axes.loglog(scales, seconds, "o-", label=each["benchmark"])
        scales = sorted({p["scale"] for each in shown for p in each["points"]})
        axes.set_xticks(scales, [str(scale) for scale in scales])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.set_xlabel(AXES[kind])
        axes.set_ylabel("seconds")
        axes.legend()
    figure.savefig(PLOTS / "scaling.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
