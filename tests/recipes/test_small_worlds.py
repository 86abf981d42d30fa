"""The recipes on small worlds: each runs, writes its page and pictures, and tests its claims; and what they share."""

import json
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from poise.cli.recipes import find_recipe, load_recipe, read_card, recipe_files
from poise.functional.intervals import student_mean
from poise.recipes import _arms as arms
from poise.recipes import _frontier as frontier
from poise.recipes import _multi_limit as limits
from poise.recipes import _observability as observability
from poise.recipes import _physics as physics
from poise.recipes._arms import Claim, Column, Outcome, Results
from poise.run import Run
from poise.types import Estimate
from poise.worlds import toy_language as toy
from poise.worlds.partial_observability import verbose
from poise.worlds.physics import PhysicsTable

NAMES = (
    "critical-evaluation",
    "group-invariant",
    "multi-limit",
    "partial-observability",
    "remax-physics",
    "reward-shaping-frontier",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_writes_a_page_with_a_verdict_on_every_claim(name, tmp_path, capsys):
    page = tmp_path / "pages" / f"{name}.md"
    load_recipe(find_recipe(name))(quick=True, page=str(page), folder=str(tmp_path / "run"))
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    text = page.read_text("utf-8")
    assert text in printed
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seeds"] == 2
    assert summary["claims"]
    for claim in summary["claims"]:
        assert f"| {claim['verdict']} |" in text or f"| **{claim['verdict']}** |" in text
        assert claim["text"] in text
    for picture in page.parent.glob("*.svg"):
        assert f"]({picture.name})" in text
        assert xml.fromstring(picture.read_text("utf-8")).tag.endswith("svg")


def test_every_page_of_results_is_that_of_a_recipe_which_names_it_as_verified():
    pages = {path.stem for path in (find_recipe("contract").parents[3] / "docs" / "results").glob("*.md")}
    assert pages & set(NAMES) <= set(recipe_files())
    for name in pages & set(NAMES):
        card = read_card(find_recipe(name))
        assert card.expected is not None, f"{name} has a page of results: say in EXPECTED what was found"
        assert {"ours", "hardware", "date"} <= set(card.expected)


def outcome(**figures):
    return Outcome(figures=figures, curves={"x": [0.0, 1.0], "y": [figures["gain"], 2 * figures["gain"]]})


RESULTS = Results(outcomes={"a": [outcome(gain=1.0), outcome(gain=3.0)], "b": [outcome(gain=0.5), outcome(gain=2.5)]})


def test_differences_are_paired_by_seed():
    assert (RESULTS.arms, RESULTS.seeds) == (("a", "b"), 2)
    difference = RESULTS.difference("a", "b", "gain")
    assert (difference.value, difference.low) == (0.5, None)  # the seeds differ by 2, alike: nothing varies
    assert RESULTS.estimate("a", "gain").low < 0 < RESULTS.estimate("a", "gain").high
    line = RESULTS.series("a", "x", "y")
    assert (line.x, line.y) == ([0.0, 1.0], [2.0, 4.0])
    assert line.low[0] < 1.0
    assert line.high[0] > 3.0


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.9, "holds"), (-0.1, 0.9, "not shown"), (-0.9, -0.1, "contradicted")]
)
def test_a_claim_holds_only_if_its_whole_interval_lies_above_zero(low, high, verdict):
    assert Claim(text="", difference=Estimate(value=0.5, n=5, low=low, high=high)).verdict == verdict


@pytest.mark.parametrize(
    ("value", "n", "verdict"),
    [(0.5, 6, "holds"), (-0.5, 6, "contradicted"), (0.0, 6, "not shown"), (0.5, 5, "not shown")],
)
def test_seeds_that_all_give_the_same_show_a_side_if_they_are_six_or_more(value, n, verdict):
    assert Claim(text="", difference=student_mean([value] * n)).verdict == verdict


def test_one_seed_shows_nothing():
    assert Claim(text="", difference=Estimate(value=0.5, n=1)).verdict == "not shown"


def test_shares_are_shown_in_per_cent_and_within_their_bounds():
    column = Column(figure="", label="", is_share=True)
    assert column.text(Estimate(value=0.5, n=2, low=-0.25, high=1.25)) == "50.0 % [0.0, 100.0]"
    assert Column(figure="", label="", digits=1).text(Estimate(value=-0.0, n=1)) == "0.0"


def plain_attempt(arm, seed, *, factor):
    return Outcome(figures={"gain": factor * seed})


def test_arms_that_are_finished_are_not_run_again(tmp_path):
    def forbidden(arm, seed, *, factor):
        raise AssertionError("run again")

    with Run.open(tmp_path / "run", recipe="arms", arguments={}) as run:
        first = arms.measure(run, plain_attempt, ["a", "b"], seeds=3, workers=1, factor=2.0)
    with Run.open(tmp_path / "run", recipe="arms", arguments={}) as run:
        again = arms.measure(run, forbidden, ["a", "b"], seeds=3, workers=1, factor=2.0)
    assert again.values("b", "gain").tolist() == first.values("b", "gain").tolist() == [0.0, 2.0, 4.0]


def test_the_best_policy_under_five_limits_meets_each_and_no_penalty_or_single_limit_is_needed_for_it():
    policy = limits.best().policy
    assert all(rule.excess(policy) <= 1e-9 for rule in limits.RULES)
    free = np.eye(toy.table().num_arms)[toy.table().channels["reward"].argmax(-1)]
    assert sum(rule.excess(free) > rule.tolerance for rule in limits.RULES) >= 4
    assert toy.table().mean_of(policy, "reward") == pytest.approx(limits.best().reward)


def test_the_exact_front_covers_more_than_any_policy_on_it_alone():
    best = frontier.exact_front("cost")
    assert best["reward"] == sorted(best["reward"])
    assert frontier.volume({"reward": best["reward"][30:31], "cost": best["cost"][30:31]}, "cost") < (
        frontier.exact_volume("cost")
    )


def test_a_tenth_under_full_sight_closes_what_the_belief_leaves_open():
    world = verbose(trust=0.2)
    visits = observability.state_visits(world)
    seen = observability.believed(world) @ visits
    pairs = np.array([(i, j) for i in range(len(visits)) for j in range(len(visits))])
    blurred, sharp = (table[pairs[:, 0]] - table[pairs[:, 1]] for table in (seen, visits))
    assert observability.open_directions(blurred, visits) == 1
    assert observability.open_directions(np.concatenate([blurred, sharp]), visits) == 0


def test_the_reward_model_finds_what_most_pairs_prefer():
    world = PhysicsTable()
    model = physics.fitted(world, physics.ranked(world, 4000, seed=1))
    assert float((model.table.argmax(-1) == 0).float().mean()) > 0.8  # the right choice is the first
    assert physics.divergence(world.start.softmax(-1), world.start.softmax(-1)) == 0.0
