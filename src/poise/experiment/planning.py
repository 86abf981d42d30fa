"""What a study of language models will take: the stages of each arm's trial, told and not done."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poise.errors import ConfigError
from poise.experiment.recipe import Recipe
from poise.plan.compute import Compute
from poise.plan.work import Planner, StagePlan, Tokens, planning
from poise.run import Run


def plan_stages(recipe: Recipe, given: Mapping[str, Any], compute: Compute, tokens: Tokens) -> list[StagePlan]:
    """The stages of one seed of every arm that is wanted; stages that arms share stand there once.

    Raises ConfigError for a recipe whose trials have no stages.
    """
    arguments, options = recipe.resolve(given)
    study = recipe.build(**arguments).only(options.arms)
    if len(inspect.signature(study.trial).parameters) < 3:
        raise ConfigError(f"{recipe.name} trains no language model: its trials have no stages")
    with tempfile.TemporaryDirectory() as folder:
        planner = Planner(compute=compute, tokens=tokens)
        for arm, value in study.arms.items():
            facts = {**arguments, "arm": arm, "seed": options.seeds[0]}
            with (
                planning(planner),
                Run.open(Path(folder) / f"{arm}-seed-{options.seeds[0]}", recipe=recipe.name, arguments=facts) as part,
            ):
                study.trial(value, options.seeds[0], part)
    return list(planner.stages.values())
