"""How well a signal trained on the starter set alone agrees with people: `python benchmarks/starter_signal.py`.

It trains the cost of the recipe's training signal on the set's train side, and measures it on responses whose harm
people rated (`human_rated_harm`, set POISE_DATA). Those rows are measured with and never learned from. Half of their
prompts, drawn by a hash, are `search`: what was looked at while the set was written. The others are `final`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.data import load, split_by_prompt, with_cut_responses
from poise.functional.intervals import share
from poise.functional.statistics import area_under_curve
from poise.models.features import FeatureCache
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.pipeline.safety import SHARES, SIGNAL, unseen_accuracy
from poise.pipeline.scores import fit_scores
from poise.run import Run
from poise.types import Dataset, Estimate, Prompt

RATINGS = Path(os.environ.get("POISE_DATA", "")) / "human_rated_harm" / "harm.jsonl"
HARMFUL = 0.5  # mean rating from which on people call a response harmful
LENGTHS = ("shortest third", "middle third", "longest third")
Choice = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A response and what people said of it: 0 is no harm, 1 the most."""

    category: str
    prompt: str
    response: str
    rating: float

    @property
    def is_final(self) -> bool:
        """Whether its prompt was kept from those who wrote the set."""
        return int(hashlib.md5(self.prompt.encode()).hexdigest(), 16) % 2 == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A group of responses with the agreement on it."""

    group: str
    harmful: int
    signal: Estimate
    length: Estimate  # of the number of words in place of the signal
    sign: Estimate  # share of responses on the side of zero that people say


def read_ratings(path: Path) -> list[Rated]:
    """The rated responses of a file, in its order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Rated(category=r["category"], prompt=r["prompt"], response=r["response"], rating=float(np.mean(r["ratings"])))
        for r in rows
        if r["response"].strip()
    ]


def train_side(data: str) -> tuple[Dataset, Dataset]:
    """What the recipe's signal learns from, and what it is measured on."""
    splits = split_by_prompt(load(data), SHARES)
    return with_cut_responses(splits["train"]), splits["test"]


def costs_of(model: ScoreModel, rows: Sequence[Rated]) -> NDArray[np.float64]:
    """The cost of each response [N]; of one that is longer than the window, of what it sees."""
    tokens, starts = model.encode([Prompt.of(row.prompt) for row in rows], [row.response for row in rows])
    column = model.names.index("cost")
    raw = model(model.features(tokens, starts))[:, column]
    return np.asarray(model.channel("cost").value(raw).detach().cpu().numpy(), dtype=np.float64)


def groups_of(rows: Sequence[Rated]) -> Iterator[tuple[str, Choice]]:
    """Names of groups and which rows are in them: all, those not free of harm, by length and by category."""
    words = np.array([len(row.response.split()) for row in rows])
    thirds = np.searchsorted(np.quantile(words, [1 / 3, 2 / 3]), words)
    yield "all", np.ones(len(rows), dtype=bool)
    yield "rated above 0", np.array([row.rating > 0 for row in rows])
    for third, name in enumerate(LENGTHS):
        yield name, thirds == third
    for category in sorted({row.category for row in rows}):
        yield category, np.array([row.category == category for row in rows])


def agreement(rows: Sequence[Rated], costs: NDArray[np.float64]) -> list[Line]:
    """The agreement of costs with people in each group that holds both harmful and harmless responses."""
    harmful = np.array([row.rating >= HARMFUL for row in rows])
    words = np.array([float(len(row.response.split())) for row in rows])
    prompts = np.array([row.prompt for row in rows])
    lines = []
    for group, chosen in groups_of(rows):
        truth, names = harmful[chosen], prompts[chosen].tolist()
        if 0 < truth.sum() < len(truth):
            lines.append(
                Line(
                    group=group,
                    harmful=int(truth.sum()),
                    signal=area_under_curve(costs[chosen], truth, names),
                    length=area_under_curve(words[chosen], truth, names),
                    sign=share((costs[chosen] > 0) == truth, names),
                )
            )
    return lines


def table(lines: Sequence[Line], part: str) -> str:
    """A Markdown table of the agreement."""
    head = [f"| {part} | n, harmful | AUC of the signal | AUC of length alone | right side of 0 |", "| --- " * 5 + "|"]
    return "\n".join(
        head
        + [
            f"| {line.group} | {line.signal.n}, {line.harmful} | {_printed(line.signal)} | {_printed(line.length)} | "
            f"{_printed(line.sign)} |"
            for line in lines
        ]
    )


def _printed(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


PARTS: dict[str, Callable[[Rated], bool]] = {
    "search": lambda row: not row.is_final,
    "final": lambda row: row.is_final,
    "both": lambda row: True,
}


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="starter", help="the set, or a folder in its format")
    parser.add_argument("--ratings", type=Path, default=RATINGS)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=["both"])
    parser.add_argument("--features", type=Path, help="folder where features are kept for the next time")
    parser.add_argument("--hidden", type=int, default=64, help="width of the heads' hidden layer; 0 is a linear head")
    parser.add_argument("--weight-decay", type=float, default=SIGNAL.weight_decay)
    arguments = parser.parse_args()
    rows = read_ratings(arguments.ratings)
    reading = {**SIGNAL.reading, "hidden": arguments.hidden}
    spec = replace(SIGNAL, reading=reading, weight_decay=arguments.weight_decay)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(arguments.features or Path(folder) / "features")
        with Run.open(Path(folder) / "run", recipe="starter-signal", arguments={}) as run:
            backbone, (data, test) = load_backbone("smollm2-135m"), train_side(arguments.data)
            measure = lambda model: unseen_accuracy(model, test)  # noqa: E731
            signal = fit_scores(run, backbone, data, spec, measure=measure, cache=cache)
            costs = costs_of(signal.model, rows)
    for name, estimate in signal.accuracy.items():
        print(f"{name}: {estimate}")
    for part in arguments.part:
        chosen = [i for i, row in enumerate(rows) if PARTS[part](row)]
        print("\n" + table(agreement([rows[i] for i in chosen], costs[chosen]), part))


if __name__ == "__main__":
    main()
