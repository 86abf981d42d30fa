"""Physics problems whose answers are checked, and the table of their steps."""

import doctest

import pytest
import torch

from poise.types import Completion
from poise.worlds import physics
from poise.worlds.physics import KINDS, PhysicsScorer, PhysicsTable, is_right, problems
from poise.worlds.ranked_pairs import fitted, ranked

WORLD = PhysicsTable()


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("98 J", True),
        ("It is 102 J, I think.", True),  # 4 % off
        ("104 J", False),
        ("98 W", False),
        ("98J", True),
        ("9.8e1 J", True),
        ("-98 J", False),
        ("98", False),
        ("", False),
    ],
)
def test_numbers_within_five_per_cent_and_the_unit_count(text, right):
    assert is_right(text, 98.0, "J") is right


def test_right_formulas_are_right():
    by_name = {kind.name: kind for kind in KINDS}
    assert by_name["speed"].formulas[0](u=3, a=2, t=4) == 11
    assert by_name["distance"].formulas[0](u=3, a=2, t=4) == 28
    assert by_name["kinetic energy"].formulas[0](m=4, v=7) == 98
    assert by_name["parallel"].formulas[0](r=6, s=3) == 2
    assert by_name["pendulum"].formulas[0](length=9.81) == pytest.approx(6.2832, abs=1e-4)


def test_problems_are_answered_by_their_tags():
    rows = problems(40, seed=3)
    assert {row.tags["kind"] for row in rows} == {kind.name for kind in KINDS}
    answers = [Completion(prompt_id=row.id, text=f"about {row.tags['answer']:.4g} {row.tags['unit']}.") for row in rows]
    assert all(scores.values["reward"] == 1.0 for scores in PhysicsScorer().score(rows, answers))
    assert rows == problems(40, seed=3) != problems(40, seed=4)


def test_the_right_steps_are_always_right_and_mistakes_rarely():
    assert bool(WORLD.passes[:, :, 0, 0, 0].all())
    by_chance = WORLD.passes.float().mean((0, 1))
    by_chance[0, 0, 0] = 0
    assert 0 < float(by_chance.sum()) < 0.5  # a wrong way sometimes gives the right number
    assert not bool(WORLD.passes[..., 1:].any())  # a wrong unit never passes


def test_accuracy_is_that_of_sampled_answers():
    generator = torch.Generator().manual_seed(0)
    contexts = torch.arange(len(KINDS)).repeat(4000)
    policy = WORLD.start.softmax(-1)
    arms = torch.multinomial(policy[contexts].flatten(0, 1), 1, generator=generator).view(len(contexts), -1)
    found = float(WORLD.sample(contexts, arms, generator)["reward"].mean())
    assert found == pytest.approx(WORLD.accuracy_of(policy), abs=0.01)
    sure = torch.nn.functional.one_hot(torch.zeros(len(KINDS), 3, dtype=torch.long), 4).float()
    assert WORLD.accuracy_of(sure) == 1.0
    assert WORLD.steps_right(sure) == 1.0


def test_examples_run():
    assert doctest.testmod(physics).failed == 0


def test_the_reward_model_finds_what_most_pairs_prefer():
    world = PhysicsTable()
    model = fitted(world, ranked(world, 4000, seed=1))
    assert float((model.table.argmax(-1) == 0).float().mean()) > 0.8  # the right choice is the first
