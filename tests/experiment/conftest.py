"""A recipe of a user's own, in a file of its own."""

import pytest

MINE = '''"""Mine: which of three coins shows more heads."""

from pathlib import Path

from poise.experiment import Claim, MethodCard, Metric, Plot, Study, Trial, curves, recipe

CARD = MethodCard(title="Three coins", paper="none", feedback="gold", optimiser="none")


@recipe(CARD, quick={"tosses": 4}, seeds=3, workers=1)
def mine(*, tosses: int = 100) -> Study:
    """Toss coins.

    Args:
        tosses: how often each coin is tossed.
    """

    def trial(bias, seed):
        heads = [bias * (1 + seed / 64)] * tosses
        return Trial(
            metrics={"heads": heads[0], "tosses": len(heads), **({"luck": 1.0} if bias == 0.8 else {})},
            curves={"toss": range(4), "heads": heads[:4]},
        )

    return Study(
        arms={"fair": 0.5, "good": 0.8, "bad": 0.2},
        trial=trial,
        labels={"good": "the good one"},
        metrics=[
            Metric(name="heads", label="heads", unit="share"),
            Metric(name="tosses", label="tosses"),
            Metric(name="luck", label="luck", table="Luck"),
        ],
        claims=[
            Claim(text="Good beats fair", metric="heads", higher="good", lower="fair"),
            Claim(text="Bad beats fair", metric="heads", higher="bad", lower="fair", source="ours"),
            Claim(text="Bad is above a half", metric="heads", higher="bad", lower=0.5),
        ],
        plots=[Plot(title="Heads", across="toss", up="heads", draw=curves("toss", "heads"))],
        notes="Coins are tossed.",
        pilots=["One toss: too few."],
    )
'''

LONG = """
    def trial(bias, seed, part):
        if not (stage := part.stage("toss")).finished:
            with (part.path / "count").open("a") as file:
                file.write("tossed ")
            stage.finish({"heads": bias})
        if bias == 0.8:
            raise KeyboardInterrupt
        paths = {"count": str(part.path / "count")}
        return Trial(metrics=stage.result, curves={"toss": [0], "heads": [0]}, paths=paths)

    return Study("""


@pytest.fixture
def long(mine):
    """The same with trials of a stage each, one arm of which is stopped after it."""
    mine.write_text(mine.read_text().replace("\n    return Study(", LONG))
    return mine


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file of the recipe, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file
