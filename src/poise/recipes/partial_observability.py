"""Judges who see part of what happens: deceptive inflation and overjustification, and what modelling the belief mends.

    comparisons of what a log shows -> rewards of states -> best policy;   true and observed return, both failures

Leon Lang et al., "When Your AIs Deceive You: Challenges of Partial Observability in Reinforcement Learning from Human
Feedback", NeurIPS 2024, arXiv:2402.17747: its two examples, learned from sampled comparisons where the paper reasons
from the limit of infinitely many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.special import expit

from poise.evaluate.figures import Series
from poise.experiment import Claim, MethodCard, Metric, Plot, Study, Trial, recipe
from poise.experiment.plots import dashed
from poise.experiment.results import Results
from poise.functional.observed_returns import deceptive_inflation, overjustification
from poise.worlds.partial_observability import ObservedWorld, fitted_rewards, hiding, verbose

CARD = MethodCard(
    title="What is learned from judges who see part of what happens",
    paper="arXiv:2402.17747",
    reported="both failures, in closed form",
    feedback="a simulated judge who sees a log",
    form="comparisons of trajectories",
    signal="rewards of states, fitted by Bradley-Terry",
    optimiser="exact",
    model="policies of two small decision problems",
    data="random trajectories",
)
RATIONALITY = 0.3  # returns differ by up to 17: a judge who is never wrong would not say by how much
AUDITED = 0.1  # share of the comparisons in which the judge is shown everything, where runs are audited
BELIEFS: dict[
    str, tuple[Callable[..., ObservedWorld], str, dict[str, float]]
] = {  # setting -> its world, the belief that says how silence is taken, and the values that were run
    "hiding": (hiding, "suspicion", {"hiding": 0.5, "hiding-suspicious": 0.95}),
    "verbose": (verbose, "trust", {"verbose": 0.2, "verbose-trusting": 0.5}),
}
METHODS = {
    "sees-all": "judge sees everything",
    "naive": "judge sees the log; taken at its word",
    "aware": "judge sees the log; belief modelled",
    "audited": "the same, and a tenth of the comparisons audited",
}
SETTINGS = {
    setting: (make(**{belief: value}), f"{name}, {belief} {value:g}")
    for name, (make, belief, values) in BELIEFS.items()
    for setting, value in values.items()
}


@recipe(CARD, quick={"comparisons": 500}, seeds=10)
def partial_observability(*, comparisons: int = 20_000) -> Study:
    """Learn from judges who see a log, and print what the learned policies are worth and what they seem to be.

    Args:
        comparisons: pairs of trajectories that are judged.
    """
    arms = [(setting, method) for setting in SETTINGS for method in METHODS]
    return Study(
        arms={f"{setting}-{method}": (SETTINGS[setting][0], method) for setting, method in arms},
        trial=lambda arm, seed: learn(arm[0], arm[1], seed, comparisons),
        labels={f"{setting}-{method}": f"{SETTINGS[setting][1]}: {METHODS[method]}" for setting, method in arms},
        metrics=[
            Metric(name="value", label="return"),
            Metric(name="observed_value", label="seems to be"),
            Metric(name="overestimation", label="overestimated by"),
            Metric(name="underestimation", label="underestimated by"),
            Metric(name="inflation", label="deceptive inflation, seeds", unit="share"),
            Metric(name="overjustification", label="overjustification, seeds", unit="share"),
            Metric(name="open", label="directions left open"),
        ],
        claims=[
            Claim(text="Hiding: it is overestimated more than under full sight", metric="overestimation",
                  higher="hiding-naive", lower="hiding-sees-all"),
            Claim(text="Hiding: and it is worse than under full sight", metric="value",
                  higher="hiding-sees-all", lower="hiding-naive"),
            Claim(text="Verbose: it is underestimated less than under full sight", metric="underestimation",
                  higher="verbose-sees-all", lower="verbose-naive"),
            Claim(text="Verbose: and it is worse than under full sight", metric="value",
                  higher="verbose-sees-all", lower="verbose-naive"),
            *(
                Claim(text=f"{SETTINGS[name][1].capitalize()}: modelling the belief{how} is better than naive reading",
                      metric="value", higher=f"{name}-{method}", lower=f"{name}-naive", source="ours")
                for name in ("hiding", "verbose", "verbose-trusting")
                for method, how in (("aware", " alone"), ("audited", ", with audits,"))
            ),
        ],
        plots=[Plot(title="Return of what is learned, and what it seems to be, over the judge's belief",
                    across="probability of the belief about silence", up="return", draw=over_beliefs)],
        notes=f"""
Two tasks ([worlds](../worlds.md)): {comparisons:,} comparisons of random trajectories by a judge who prefers one with
probability sigmoid({RATIONALITY:g} x difference of returns), rewards of states fitted to them, and the best policy
under these. Taken at their word, judges teach the return that they observe. With the belief modelled, the fit predicts
what they would observe of trajectories that look alike. Audited, they see all in {AUDITED:.0%} of the comparisons.
""",
        discussion="""
The failures are the paper's: deceptive inflation is to look better by being overestimated more than the best policy,
overjustification to give up return in order to be underestimated less. Modelling the belief does not suffice here: the
return is then known up to what feedback leaves open, one direction in both worlds, and which of the equals the fit
takes is an accident of its ridge. A few comparisons under full sight close it.
""",
    )  # fmt: skip


def learn(world: ObservedWorld, method: str, seed: int, comparisons: int) -> Trial:
    """Sample comparisons, fit rewards of states to them, and take the best policy under these rewards."""
    generator = np.random.default_rng(seed)
    pairs = generator.integers(len(world.trajectories), size=(comparisons, 2))
    is_audited = generator.random(comparisons) < {"sees-all": 1.0, "audited": AUDITED}.get(method, 0.0)
    margins = [returns.numpy()[pairs] @ [1.0, -1.0] for returns in (world.returns, world.observed_returns)]
    is_first = generator.random(comparisons) < expit(RATIONALITY * np.where(is_audited, *margins))
    visits = world.state_visits
    seen = visits if method in ("sees-all", "naive") else world.believed @ visits
    rows = np.where(is_audited[:, None], *(table[pairs[:, 0]] - table[pairs[:, 1]] for table in (visits, seen)))
    policy = world.best_for(visits @ fitted_rewards(rows, is_first, rationality=RATIONALITY))
    found, reference = world.measure(policy), world.verdict().optimal
    return Trial(
        metrics={name: float(value) for name, value in found._asdict().items()}
        | {"inflation": float(deceptive_inflation(found, reference))}
        | {"overjustification": float(overjustification(found, reference))}
        | {"lost": float(reference.value - found.value), "open": float(world.open_directions(rows))}
    )


def over_beliefs(results: Results) -> Mapping[str, Sequence[Series]]:
    """Each world's exact returns over the belief, and what two ways of reading the judge learned."""
    panels = {}
    for name, (_, belief, values) in BELIEFS.items():
        learned = [results.points({f"{s}-{m}": v for s, v in values.items()}, "value", m) for m in ("naive", "audited")]
        panels[f"{name}, by {belief}"] = [*dashed(partial(exact, name)), *learned]
    return panels


def exact(name: str) -> dict[str, tuple[list[float], list[float]]]:
    """The best return, that of what is learned, and what this seems to be, over the belief."""
    make, belief, _ = BELIEFS[name]
    shares = np.linspace(0.0, 1.0, 41).tolist()
    verdicts = [make(**{belief: share}).verdict() for share in shares]
    return {
        "best there is": (shares, [float(each.optimal.value) for each in verdicts]),
        "learned": (shares, [float(each.learned.value) for each in verdicts]),
        "seems": (shares, [float(each.learned.observed_value) for each in verdicts]),
    }
