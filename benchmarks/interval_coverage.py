"""How often intervals hold the truth: `python benchmarks/interval_coverage.py` prints it, `--page` writes the docs too.

Every function that gives an interval stands in COVERED_BY with the cases that stand for it. A case draws data of which
the truth is known. What is to hold: 93 % of the intervals or more, for a nominal 95 %, in every case.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poise.evaluate.calibration import calibrate
from poise.evaluate.diversity import distinct_estimate
from poise.evaluate.judges import check_judge
from poise.evaluate.tails import lower_tail, tail_difference
from poise.functional.agreement import kappa
from poise.functional.intervals import (
    clopper_pearson,
    mean,
    paired_difference,
    ratio_of_sums,
    share,
    student_mean,
    win_rate,
)
from poise.functional.judge_error import corrected_share, prediction_powered_share
from poise.functional.ratings import arena_table, elo_difference, elo_estimate, ladder_ratings
from poise.functional.statistics import area_under_curve
from poise.types import Estimate

PAGE = Path(__file__).parent.parent / "docs" / "intervals.md"
LEAST, NOMINAL = 0.93, 0.95
Random = np.random.Generator
Draw = Callable[[Random], Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Data whose truth is known, and the interval that is to hold it."""

    interval: str
    data: str
    draw: Draw
    truth: float | None  # None: the mean of the estimates themselves, where it is known in no closed form


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of a case."""

    case: Case
    covered: float  # of the intervals that were given
    given: float  # of the samples: the rest had no interval
    width: float  # median; infinite if an end is missing


def coverage(case: Case, replications: int) -> Row:
    """Draw a case many times, always the same ones, and count."""
    random = np.random.default_rng(zlib.crc32(f"{case.interval} {case.data}".encode()))
    found = [case.draw(random) for _ in range(replications)]
    truth = float(np.mean([each.value for each in found])) if case.truth is None else case.truth
    given = [each for each in found if each.low is not None or each.high is not None]
    ends = np.array([[-np.inf if e.low is None else e.low, np.inf if e.high is None else e.high] for e in given])
    if not given:
        return Row(case=case, covered=1.0, given=0.0, width=float("nan"))
    hits = (ends[:, 0] <= truth + 1e-9) & (truth - 1e-9 <= ends[:, 1])
    width = float(np.median(ends[:, 1] - ends[:, 0]))
    return Row(case=case, covered=float(hits.mean()), given=len(given) / replications, width=width)


RATES = (0.0, 0.02, 0.5, 0.98, 1.0)
PROMPTS = (5, 20, 100)
ALIKE = (0.0, 0.3, 1.0)  # how alike the rows of a prompt are: their correlation
SKEWED: Mapping[str, tuple[Callable[[Random, int], np.ndarray], float]] = {
    "normal": (lambda random, n: random.normal(size=n), 0.0),
    "exponential": (lambda random, n: random.exponential(size=n), 1.0),
    "lognormal": (lambda random, n: np.exp(random.normal(size=n)), float(np.exp(0.5))),
    "mirrored exponential": (lambda random, n: -random.exponential(size=n), -1.0),
    "chi-square(1)": (lambda random, n: random.normal(size=n) ** 2, 1.0),
}


def prompts_of(random: Random, prompts: int, uneven: bool) -> list[int]:
    """The prompt of each row: eight rows for each, or 1 to 16."""
    rows = random.integers(1, 17, prompts) if uneven else np.full(prompts, 8)
    return np.repeat(np.arange(prompts), rows).tolist()


def flags_of(random: Random, labels: Sequence[int], rate: float, alike: float) -> np.ndarray:
    """Flags whose rows within a prompt correlate by `alike`: each prompt draws its rate from a beta distribution."""
    prompts = max(labels) + 1
    if rate in (0.0, 1.0) or alike == 0:
        rates = np.full(prompts, rate)
    elif alike == 1:
        rates = (random.random(prompts) < rate) * 1.0
    else:
        size = 1 / alike - 1
        rates = random.beta(rate * size, (1 - rate) * size, prompts)
    return (random.random(len(labels)) < rates[labels]) * 1.0


def shares() -> Iterator[Case]:
    for n in (1, 5, 20, 100):
        for rate in (*RATES, 0.1):
            yield Case(
                interval="clopper_pearson", data=f"{n} rows at {rate:g}", truth=rate,
                draw=lambda random, n=n, rate=rate: clopper_pearson(int(random.binomial(n, rate)), n),
            )  # fmt: skip
    for prompts in PROMPTS:
        for rate in (*RATES, 0.1):
            for alike in ALIKE if 0 < rate < 1 else (0.0,):
                for uneven in (False, True):

                    def draw(random, prompts=prompts, rate=rate, alike=alike, uneven=uneven):
                        labels = prompts_of(random, prompts, uneven)
                        return share(flags_of(random, labels, rate, alike), labels)

                    data = f"{prompts} prompts, {'1 to 16' if uneven else 8} rows each, alike {alike:g}, at {rate:g}"
                    yield Case(interval="share", data=data, truth=rate, draw=draw)
    for rate, ties in ((0.5, 1.0), (0.6, 0.5), (0.98, 0.0), (1.0, 0.0)):

        def drawn(random, rate=rate, ties=ties):
            labels = prompts_of(random, 20, False)
            won = np.where(random.random(160) < ties, 0.0, 2 * flags_of(random, labels, rate, 0.3) - 1)
            return win_rate(np.zeros(160), won, labels)

        truth = ties / 2 + (1 - ties) * rate
        yield Case(interval="win_rate", data=f"20 prompts, 8 rows each, {ties:g} ties, else won at {rate:g}",
                   truth=truth, draw=drawn)  # fmt: skip


def bounded() -> Iterator[Case]:
    """Weighted shares, verdicts of judges, forecasts."""
    for prompts in (5, 40):
        for rate in (0.02, 0.5, 0.98):
            for figure in ("accuracy", "precision", "recall"):

                def draw(random, prompts=prompts, rate=rate, figure=figure):
                    labels = prompts_of(random, prompts, False)
                    truth = flags_of(random, labels, 0.5, 0.3) > 0.5
                    right = flags_of(random, labels, rate, 0.3) > 0.5
                    return check_judge((truth == right).tolist(), truth.tolist(), labels).get(figure, NOT_GIVEN)

                data = f"{figure} {rate:g}, {prompts} prompts, 8 rows each"
                yield Case(interval="check_judge", data=data, truth=rate, draw=draw)

        def f1(random, prompts=prompts):
            labels = prompts_of(random, prompts, False)
            truth, right = (flags_of(random, labels, rate, 0.3) > 0.5 for rate in (0.5, 0.8))
            return check_judge((truth == right).tolist(), truth.tolist(), labels)["f1"]

        yield Case(interval="check_judge", data=f"F1 0.8, {prompts} prompts, 8 rows each", truth=0.8, draw=f1)
    for rate in (0.02, 0.5):

        def brier(random, rate=rate):
            return calibrate(np.full(40, rate).tolist(), (random.random(40) < rate).tolist(), resamples=1).brier

        def bin_of(random, rate=rate):
            return (
                calibrate(np.full(40, rate).tolist(), (random.random(40) < rate).tolist(), resamples=1)
                .table[0]
                .observed
            )

        yield Case(interval="calibrate", data=f"Brier score, 40 rows at {rate:g}", truth=rate * (1 - rate), draw=brier)
        yield Case(interval="calibrate", data=f"a bin's share, 40 rows at {rate:g}", truth=rate, draw=bin_of)


NOT_GIVEN = Estimate(value=0.0, n=0)


def means() -> Iterator[Case]:
    for name, (values, truth) in SKEWED.items():
        for prompts in PROMPTS:

            def single(random, values=values, prompts=prompts):
                return mean(values(random, prompts))

            yield Case(interval="mean", data=f"{name}, {prompts} rows", truth=truth, draw=single)
            for alike in ALIKE:
                for uneven in (False, True):

                    def draw(random, values=values, prompts=prompts, alike=alike, uneven=uneven):
                        labels = prompts_of(random, prompts, uneven)
                        own, shared = values(random, len(labels)), values(random, prompts)[labels]
                        return mean(alike * shared + (1 - alike) * own, labels)

                    data = f"{name}, {prompts} prompts, {'1 to 16' if uneven else 8} rows each, of one part {alike:g}"
                    yield Case(interval="mean", data=data, truth=truth, draw=draw)
    for seeds in (2, 3, 5, 10):
        yield Case(interval="student_mean", data=f"normal, {seeds} seeds", truth=0.0,
                   draw=lambda random, seeds=seeds: student_mean(random.normal(size=seeds)))  # fmt: skip


def differences() -> Iterator[Case]:
    chances = ((0, 1), (0, 0.98), (0, 0), (0.02, 0.02), (0, 0.02), (0.3, 0.3), (0.5, 0.5), (0.1, 0.9), (0.1, 0.4))
    for gained, lost in chances:
        for prompts, rows in ((5, 1), (30, 1), (100, 1), (5, 8), (40, 4)):
            for alike in (0.0, 0.5, 1.0) if rows > 1 else (0.0,):

                def draw(random, gained=gained, lost=lost, prompts=prompts, rows=rows, alike=alike):
                    labels = np.repeat(np.arange(prompts), rows)
                    chance = [gained, lost, 1 - gained - lost]
                    own, shared = (random.choice([1, -1, 0], n, p=chance) for n in (len(labels), prompts))
                    moved = np.where(random.random(len(labels)) < alike, shared[labels], own)
                    return paired_difference(moved < 0, moved > 0, labels.tolist(), unit="share")

                data = f"{prompts} prompts, {rows} rows each, alike {alike:g}, gained {gained:g}, lost {lost:g}"
                yield Case(interval="paired_difference", data=data, truth=100 * (gained - lost), draw=draw)
    for prompts in (5, 40):

        def scores(random, prompts=prompts):
            labels = np.repeat(np.arange(prompts), 4)
            before = random.exponential(size=prompts)[labels] + random.normal(size=len(labels))
            return paired_difference(before, before + 0.5 * random.exponential(size=len(labels)), labels.tolist())

        yield Case(interval="paired_difference", data=f"scores, {prompts} prompts, 4 rows each", truth=0.5, draw=scores)


def ratios() -> Iterator[Case]:
    for prompts in (5, 20, 60):
        for before, after in ((1.0, 0.0), (0.98, 0.02), (0.9, 0.3), (0.5, 0.5), (0.3, 0.9)):
            for together in (False, True):

                def draw(random, prompts=prompts, before=before, after=after, together=together):
                    labels = prompts_of(random, prompts, False)
                    if together:  # one number decides both sides
                        luck = random.random(len(labels))
                        below, above = (luck < before) * 1.0, (luck < after) * 1.0
                    else:
                        below, above = (flags_of(random, labels, rate, 0.3) for rate in (before, after))
                    return ratio_of_sums(above, below, labels, unit="ratio") if below.any() else NOT_GIVEN

                data = f"{after:g} over {before:g}, {prompts} prompts, 8 rows each{', together' if together else ''}"
                yield Case(interval="ratio_of_sums", data=data, truth=after / before, draw=draw)

        def weighed(random, prompts=prompts):
            weights = random.uniform(1, 3, prompts)
            return ratio_of_sums(weights * random.exponential(2.0, prompts), weights, unit="cost")

        yield Case(interval="ratio_of_sums", data=f"exponential, weighed, {prompts} rows", truth=2.0, draw=weighed)


def ranks() -> Iterator[Case]:
    from scipy.stats import norm

    for bad, good in ((5, 5), (5, 50), (50, 50)):
        for area in (0.5, 0.8, 0.98, 1.0):
            shift = 99.0 if area == 1 else float(np.sqrt(2) * norm.ppf(area))

            def draw(random, bad=bad, good=good, shift=shift):
                scores = np.concatenate([random.normal(size=bad), random.normal(shift, size=good)])
                return area_under_curve(scores, [0] * bad + [1] * good)

            yield Case(interval="area_under_curve", data=f"{area:g}, {bad} against {good} rows", truth=area, draw=draw)
    for prompts in (10, 40):
        for area in (0.8, 0.98):
            shift = float(np.sqrt(2 * 2) * norm.ppf(area))

            def grouped(random, prompts=prompts, shift=shift):
                labels = np.repeat(np.arange(prompts), 6)
                truth = labels % 2
                scores = random.normal(size=prompts)[labels] + random.normal(shift * truth)
                return area_under_curve(scores, truth, labels.tolist())

            data = f"{area:g}, {prompts} prompts, 6 rows each, alike 0.5"
            yield Case(interval="area_under_curve", data=data, truth=area, draw=grouped)


def judged() -> Iterator[Case]:
    """Shares that a judge found whose error labels show: labels of other answers, or of a part of these."""
    for truth in (0.0, 0.01, 0.05, 0.5, 1.0):
        for finds, alarms in ((0.6, 0.02), (0.95, 0.1), (1.0, 0.0), (0.8, 0.3)):
            for rows, labelled in ((40, 60), (400, 60), (1000, 300)):

                def draw(random, truth=truth, finds=finds, alarms=alarms, rows=rows, labelled=labelled):
                    called = random.binomial(rows, truth * finds + (1 - truth) * alarms)
                    found, false = random.binomial(labelled, finds), random.binomial(labelled, alarms)
                    return corrected_share(
                        clopper_pearson(called, rows),
                        clopper_pearson(found, labelled),
                        clopper_pearson(false, labelled),
                    )

                data = (
                    f"{truth:g}, {rows} rows; sensitivity {finds:g}, false alarms {alarms:g}, {labelled} labels of each"
                )
                yield Case(interval="corrected_share", data=data, truth=truth, draw=draw)
    for truth, finds, alarms in ((0.0, 1.0, 0.0), (0.0, 1.0, 0.1), (0.02, 0.5, 0.02), (0.3, 0.8, 0.1), (0.5, 0.5, 0.5)):
        for prompts, whole in ((8, False), (50, False), (50, True)):

            def powered(random, truth=truth, finds=finds, alarms=alarms, prompts=prompts, whole=whole):
                names = np.repeat(np.arange(prompts), 4)
                harms = flags_of(random, names.tolist(), truth, 0.3)
                called = np.where(harms > 0, random.random(len(names)) < finds, random.random(len(names)) < alarms)
                places = np.flatnonzero(names < prompts // 2) if whole else np.arange(0, len(names), 4)
                return prediction_powered_share(called, places.tolist(), harms[places], names.tolist())

            data = (
                f"{truth:g}, {prompts} prompts, 4 rows each, {'half of them' if whole else 'a row of each'} labelled; "
                f"sensitivity {finds:g}, false alarms {alarms:g}"
            )
            yield Case(interval="prediction_powered_share", data=data, truth=truth, draw=powered)


def ladders() -> Iterator[Case]:
    for rate in (0.02, 0.5, 0.8, 0.98, 0.999):
        truth = elo_difference(rate)
        for games in (5, 20):
            yield Case(
                interval="elo_estimate", data=f"{games} games at {rate:g}", truth=truth,
                draw=lambda random, games=games, rate=rate: elo_estimate(share(random.random(games) < rate)),
            )  # fmt: skip

        def grouped(random, rate=rate):
            labels = prompts_of(random, 20, False)
            return elo_estimate(win_rate(np.zeros(160), 2 * flags_of(random, labels, rate, 0.3) - 1, labels))

        yield Case(interval="elo_estimate", data=f"20 prompts, 8 games each, at {rate:g}", truth=truth, draw=grouped)
    for prompts, samples, alike in ((8, 4, 0.5), (40, 1, 0.0), (40, 4, 0.3)):
        for best in (0.0, 100.0, 700.0):  # Elo points; the player between is halfway

            def ladder(random, prompts=prompts, samples=samples, alike=alike, best=best):
                shape = (3, prompts, samples)
                luck = np.where(random.random(shape) < alike, random.gumbel(size=(3, prompts, 1)),
                                random.gumbel(size=shape))  # fmt: skip
                strengths = math.log(10) / 400 * np.array([0.0, best / 2, best])[:, None]
                labels = np.repeat(np.arange(prompts), samples).tolist()
                return ladder_ratings(strengths + luck.reshape(3, -1), labels)[2]

            data = f"{prompts} prompts, {samples} rows each, alike {alike:g}, {best:g} ahead"
            yield Case(interval="ladder_ratings", data=data, truth=1000 + best, draw=ladder)
    for rate in (0.02, 0.5, 1.0):

        def arena(random, rate=rate):
            labels = prompts_of(random, 20, False)
            won, zero = 2 * flags_of(random, labels, rate, 0.3) - 1, np.zeros(160)
            return arena_table(zero, zero, won, zero, labels).win_rates["all"]

        yield Case(interval="arena_table", data=f"20 prompts, 8 rows each, at {rate:g}", truth=rate, draw=arena)


def tails() -> Iterator[Case]:
    from scipy.stats import norm

    for part in (0.1, 0.5, 1.0):
        edge = -np.log1p(-part) if part < 1 else 0.0
        lowest = {
            "normal": -norm.pdf(norm.ppf(part)) / part if part < 1 else 0.0,
            "exponential": 1 - edge * (1 - part) / part if part < 1 else 1.0,
            "mirrored exponential": np.log(part) - 1,
        }
        for name, truth in lowest.items():
            for n in (20, 50, 100, 200):

                def draw(random, name=name, n=n, part=part):
                    return lower_tail(SKEWED[name][0](random, n), part)

                yield Case(interval="lower_tail", data=f"{name}, lowest {part:g} of {n} rows", truth=truth, draw=draw)

        def grouped(random, part=part):
            labels = np.repeat(np.arange(100), 4)
            return lower_tail(
                (random.normal(size=100)[labels] + random.normal(size=400)) / np.sqrt(2), part, labels.tolist()
            )

        def lifted(random, part=part):
            before = random.normal(size=100)
            return tail_difference(before, before + 0.3 + 0.5 * random.normal(size=100), part)

        data = f"normal, lowest {part:g} of 100 prompts, 4 rows each"
        yield Case(interval="lower_tail", data=data, truth=lowest["normal"], draw=grouped)
        truth = lowest["normal"] * (np.sqrt(1.25) - 1) + 0.3
        yield Case(interval="tail_difference", data=f"normal, lowest {part:g} of 100 rows", truth=truth, draw=lifted)


def texts() -> Iterator[Case]:
    chances = 1 / np.arange(1, 201)
    chances /= chances.sum()
    for prompts in (5, 20, 60):
        for rows in (1, 4):

            def draw(random, prompts=prompts, rows=rows):
                said = random.choice(200, (prompts * rows, 8), p=chances)
                written = [" ".join(map(str, words)) for words in said]
                return distinct_estimate(written, 1, np.repeat(np.arange(prompts), rows).tolist())

            yield Case(
                interval="distinct_estimate", data=f"{prompts} prompts, {rows} texts each", truth=None, draw=draw
            )


def agreements() -> Iterator[Case]:
    """Two raters who copy the truth with errors of their own; the truth is that of very many rows."""
    for prompts in PROMPTS:
        for right, rate in ((0.75, 0.5), (0.9, 0.5), (0.9, 0.2)):
            for alike in (0.0, 0.3):

                def draw(random, prompts=prompts, right=right, rate=rate, alike=alike):
                    labels = prompts_of(random, prompts, False)
                    truth = flags_of(random, labels, rate, alike)
                    raters = [np.where(random.random(len(labels)) < right, truth, 1 - truth) for _ in range(2)]
                    return kappa(raters[0].tolist(), raters[1].tolist(), labels)

                said = rate * right + (1 - rate) * (1 - right)
                same, chance = right**2 + (1 - right) ** 2, said**2 + (1 - said) ** 2
                data = f"{prompts} prompts, 8 rows each, alike {alike:g}, raters right at {right:g}, yes at {rate:g}"
                yield Case(interval="kappa", data=data, truth=(same - chance) / (1 - chance), draw=draw)


CASES = tuple(
    case
    for family in (shares, bounded, means, differences, ratios, ranks, judged, ladders, tails, texts, agreements)
    for case in family()
)


# Every function that sets the ends of an interval, or is public and gives estimates, with the cases that stand for it.
COVERED_BY: Mapping[str, tuple[str, ...]] = {
    "functional.intervals.clopper_pearson": ("clopper_pearson",),
    "functional.intervals.share": ("share",),
    "functional.intervals.mean": ("mean",),
    "functional.intervals.linear_estimate": ("mean", "ratio_of_sums"),
    "functional.intervals.pulled_estimate": ("mean", "ratio_of_sums", "distinct_estimate"),
    "functional.intervals.student_mean": ("student_mean",),
    "functional.intervals.paired_difference": ("paired_difference",),
    "functional.intervals.win_rate": ("win_rate",),
    "functional.intervals.ratio_of_sums": ("ratio_of_sums", "check_judge"),
    "functional.intervals._ratio_of_shares": ("ratio_of_sums",),
    "functional.statistics.area_under_curve": ("area_under_curve",),
    "functional.agreement.kappa": ("kappa",),
    "functional.judge_error.corrected_share": ("corrected_share",),
    "functional.judge_error.prediction_powered_share": ("prediction_powered_share",),
    "functional.judge_error._within": ("corrected_share", "prediction_powered_share"),
    "functional.ratings.elo_estimate": ("elo_estimate",),
    "functional.ratings.ladder_ratings": ("ladder_ratings",),
    "functional.ratings.arena_table": ("arena_table",),
    "evaluate.calibration.calibrate": ("calibrate",),
    "evaluate.compare.compare": ("share", "win_rate", "elo_estimate", "ratio_of_sums", "paired_difference"),
    "evaluate.diversity.distinct_estimate": ("distinct_estimate",),
    "evaluate.judges.check_judge": ("check_judge",),
    "evaluate.seeds.over_seeds": ("share", "mean", "paired_difference"),  # of pooled answers, by prompt
    "evaluate.suite.measure": ("share", "mean", "distinct_estimate"),
    "evaluate.suite.harm": ("share",),  # bounds whose ends are those of two shares
    "evaluate.tails.lower_tail": ("lower_tail",),
    "evaluate.tails.tail_difference": ("tail_difference",),
    "evaluate.tails._estimate": ("lower_tail", "tail_difference"),  # takes an interval away
}


def rows_of(replications: int, only: str = "") -> list[Row]:
    """Every case, or those of one interval."""
    return [coverage(case, replications) for case in CASES if only in ("", case.interval)]


SUMMARY = ("interval", "cases", "lowest coverage", "where", "median")
DETAILS = ("interval", "data", "coverage", "samples with an interval", "median width")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def summary(rows: Sequence[Row]) -> str:
    """For each interval its worst case and the usual one."""
    lines = []
    for interval in dict.fromkeys(row.case.interval for row in rows):
        own = [row for row in rows if row.case.interval == interval]
        worst = min(own, key=lambda row: row.covered)
        usual = float(np.median([row.covered for row in own]))
        lines.append([f"`{interval}`", str(len(own)), f"{worst.covered:.1%}", worst.case.data, f"{usual:.1%}"])
    return table(SUMMARY, lines)


def details(rows: Sequence[Row]) -> str:
    lines = [
        [f"`{row.case.interval}`", row.case.data, f"{row.covered:.1%}", f"{row.given:.0%}", f"{row.width:.3g}"]
        for row in rows
    ]
    return table(DETAILS, lines)


def write_page(rows: Sequence[Row], only: str, replications: int) -> None:
    """Put the tables into the page; of one interval alone, put its rows after those of the others, which stay."""
    above, _, below = PAGE.read_text(encoding="utf-8").partition("<!-- coverage -->")
    note = f"{replications} samples of each case, written by `python benchmarks/interval_coverage.py --page`."
    new = [[line for line in text.splitlines() if line.startswith("| `")] for text in (summary(rows), details(rows))]
    if only and note not in below:
        raise SystemExit(f"{PAGE} has another number of samples than {replications}: see --replications there")
    heads = [table(head, []) for head in (SUMMARY, DETAILS)]
    if only:
        old = [[line for line in text.splitlines() if line.startswith("| `")] for text in below.split("### Every case")]
        new = [[*(line for line in kept if f"| `{only}` |" not in line), *added]
               for kept, added in zip(old, new, strict=True)]  # fmt: skip
    first, second = ("\n".join((head, *lines)) for head, lines in zip(heads, new, strict=True))
    PAGE.write_text(f"{above}<!-- coverage -->\n\n{note}\n\n{first}\n\n### Every case\n\n{second}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of every interval in simulations.")
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--only", default="", help="the cases of one interval, such as share")
    parser.add_argument("--page", action="store_true", help=f"put the tables into {PAGE}; with --only, its rows alone")
    options = parser.parse_args()
    rows = rows_of(options.replications, options.only)
    text = f"{summary(rows)}\n\n### Every case\n\n{details(rows)}\n"
    print(text)
    low = [row for row in rows if row.covered < LEAST]
    print(f"{len(low)} of {len(rows)} cases below {LEAST:.0%}; {options.replications} samples each.")
    if options.page:
        write_page(rows, options.only, options.replications)


if __name__ == "__main__":
    main()
