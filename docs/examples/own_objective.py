"""The pipeline with a scorer, an objective and an algorithm of your own: python own_objective.py"""

from dataclasses import replace

import poise


class Letters:  # a scorer fills channels: objectives and limits go by their names
    def score(self, prompts, completions):
        return [poise.Scores(values={"reward": len(set(c.text)), "cost": c.text.count("!")}) for c in completions]


class SquaredCost(poise.Unconstrained):  # an objective says what is maximised
    def shape_scores(self, scores, groups):
        return {"reward": scores["reward"] - 0.1 * scores["cost"] ** 2}


def signs(experience):  # an algorithm: only whether a response beats the prompt's other samples
    return (found := poise.RLOO.advantage(experience))._replace(advantages=found.advantages.sign())


with poise.Run.open("runs/own", recipe="own", arguments={}) as run:
    policy, prompts = poise.Policy(poise.pipeline.start_model(run, "smollm2-135m")), poise.load("starter").prompts
    own = {"objective": SquaredCost(), "algorithm": replace(poise.RLOO, advantage=signs)}
    poise.pipeline.align(run, policy, [Letters()], prompts, optimisation=poise.OptimizerSettings(steps=20), **own)
