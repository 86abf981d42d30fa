"""Experiments: arms that are compared over seeds, what is read off them, and the pages that show it.

study.py      Study, Trial, Metric, Claim, Plot, MethodCard: what a recipe says
source.py     where a study comes from: a file, how it is called
recipe.py     the decorator that makes a command of a function from arguments to a Study
runner.py     every arm from every seed: seeds, workers, folders, resume, quick
results.py    estimates, claims with their verdicts and power, results/NAME.json
plots.py      what pictures draw
pages.py      pages, tables and lists from results/*.json
"""

from poise.experiment.parts import common_part
from poise.experiment.plots import against, clouds, curves, over
from poise.experiment.recipe import Recipe, recipe
from poise.experiment.study import Claim, MethodCard, Metric, Plot, Study, Trial

__all__ = [
    "Claim",
    "MethodCard",
    "Metric",
    "Plot",
    "Recipe",
    "Study",
    "Trial",
    "against",
    "clouds",
    "common_part",
    "curves",
    "over",
    "recipe",
]
