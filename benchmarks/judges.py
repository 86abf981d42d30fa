"""What judges and scorers of refusals are worth on people's labels of prompts that they never saw: prints the table.

    python benchmarks/judges.py                  # reads the package pyrit, and XSTest where POISE_DATA has it
    python benchmarks/judges.py --folder FOLDER  # keeps features and heads there, and goes on where it was stopped

`docs/judges.md` shows the table and says what is independent of what.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from poise.data.human_rated import human_ratings, part_of
from poise.data.outcomes import outcomes, xstest_outcomes
from poise.evaluate.judges import check_judge
from poise.feedback.rules import is_refusal
from poise.models.heads import ScoreModel
from poise.pipeline import feature_cache, start_model
from poise.pipeline.judges import harm_judge
from poise.pipeline.refusals import refusal_scorer
from poise.run import Run
from poise.types import Estimate, Rating

Says = Callable[[Sequence[Rating]], list[bool]]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--folder", default="", help="a run's folder, to go on with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary) / "run"
        with Run.open(folder, recipe="judges", arguments={"model": options.model}) as run:
            print("\n".join(table(run, options.model)))


def table(run: Run, model: str) -> list[str]:
    """The lines of the table: harm first, then each scorer of refusals on each source."""
    backbone, cache = start_model(run, model), feature_cache(run)
    judge = harm_judge(run, backbone, cache=cache)
    lines = ["| figure | value |", "| --- | --- |"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in judge.accuracy.items()]
    scorers: dict[str, Says] = {"rule": by_rule}
    for use in ("limit", "evaluation"):
        scorer = refusal_scorer(run, backbone, use, cache=cache)  # type: ignore[arg-type]
        scorers[use] = by_model(scorer.model)
        left_out = {name: value for name, value in scorer.accuracy.items() if "_without_" in name}
        lines += [f"| {use}: {name.replace('_', ' ')} | {value} |" for name, value in left_out.items()]
    lines += ["", f"| F1 on prompts kept apart | {' | '.join(scorers)} |", f"| --- |{' --- |' * len(scorers)}"]
    for name, rows in sources().items():
        figures = [f1(says(rows), rows) for says in scorers.values()]
        lines.append(f"| {name} | {' | '.join(map(str, figures))} |")
    return lines


def sources() -> dict[str, list[Rating]]:
    """Rows that neither scorer learned from: the part `test` of every source, and the half of the other scorer."""
    people = [row for row in human_ratings("refusal").ratings if row.prompt.tags["split"] == "test"]
    xstest = [row for row in xstest_outcomes() if part_of(row.prompt.text) == "test" and row.value != 0.5]
    own = [row for use in ("limit", "evaluation") for row in outcomes(use).ratings]  # type: ignore[arg-type]
    held = [row for row in own if row.prompt.tags["split"] == "test" and row.value != 0.5]
    of = {name: [row for row in held if row.prompt.tags["source"] == name] for name in ("starter", "evasions")}
    answers = [row for row in of["starter"] if row.value == 0.0]
    astray = [row for row in held if row.prompt.tags["source"] == "unrelated"]
    refused = [row for row in people if row.prompt.tags["outcome"] != "unrelated"]
    strayed = [row for row in people if row.prompt.tags["outcome"] != "refusal"]
    found = {
        "people: refusals and answers": refused,
        "people: unrelated and answers": strayed,
        "people: all": people,
        "XSTest": xstest,
        **of,
        "unrelated and answers": [*astray, *answers],
    }
    return {name: rows for name, rows in found.items() if rows}


def by_rule(rows: Sequence[Rating]) -> list[bool]:
    """What the regular expressions say."""
    return [is_refusal(row.response) for row in rows]


def by_model(model: ScoreModel) -> Says:
    """What a scorer says, at a probability above one half."""

    def says(rows: Sequence[Rating]) -> list[bool]:
        values = model.values([row.prompt for row in rows], [row.response for row in rows])
        return [bool(value > 0.5) for value in values[:, 0]]

    return says


def f1(said: Sequence[bool], rows: Sequence[Rating]) -> Estimate:
    """The F1 of refusals and evasions, with an interval over prompts."""
    return check_judge(said, [row.value > 0.5 for row in rows], [row.prompt.id for row in rows])["f1"]


if __name__ == "__main__":
    main()
