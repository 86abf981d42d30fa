"""Problems of which most groups say nothing, and a scorer that reads the first number."""

import doctest

import pytest
import torch

from poise.types import Completion, Prompt
from poise.worlds import addition
from poise.worlds.addition import Addition, AdditionScorer, zero_variance_share

WORLD = Addition()


def test_answers_are_sums_and_problems_differ():
    texts = [prompt.text for prompt in WORLD.prompts]
    assert len(set(texts)) == len(texts) == 16
    for prompt in WORLD.prompts:
        left, right = prompt.text.removesuffix("=").split("+")
        assert prompt.tags["answer"] == int(left) + int(right)


def test_most_groups_of_eight_have_no_spread():
    assert zero_variance_share(WORLD.success, group=8) > 0.5
    generator = torch.Generator().manual_seed(0)
    contexts = torch.arange(16).repeat_interleave(8).repeat(200)
    arms = torch.multinomial(WORLD.start.softmax(-1)[contexts], 1, generator=generator).squeeze(-1)
    rewards = WORLD.sample(contexts, arms, generator)["reward"].view(-1, 8)
    share = float((rewards.std(dim=1) == 0).float().mean())
    assert share == pytest.approx(zero_variance_share(WORLD.success, group=8), abs=0.03)


def test_the_starting_policy_is_right_as_often_as_stated():
    policy = WORLD.start.softmax(-1)
    assert policy[torch.arange(16), WORLD.right].tolist() == pytest.approx(WORLD.success, abs=1e-6)
    assert WORLD.reward_of(policy.double().numpy()) == pytest.approx(sum(WORLD.success) / 16, abs=1e-6)


def test_always_being_right_earns_everything():
    policy = torch.nn.functional.one_hot(WORLD.right, WORLD.num_arms).double().numpy()
    assert WORLD.reward_of(policy) == 1.0


@pytest.mark.parametrize(
    ("text", "reward"),
    [("12", 1.0), ("= 12 of course", 1.0), ("112", 0.0), ("-12", 0.0), ("", 0.0), ("9, no, 12", 0.0)],
)
def test_only_the_first_number_counts(text, reward):
    prompt = Prompt.of("7+5=", answer=12)
    (scores,) = AdditionScorer().score([prompt], [Completion(prompt_id=prompt.id, text=text)])
    assert scores.values == {"reward": reward}


def test_demonstrations_are_right_and_of_the_levels_asked_for():
    rows = WORLD.demonstrations(50, levels=("fair",), seed=1)
    for row in rows:
        left, right = row.prompt.text.removesuffix("=").split("+")
        assert (len(left), len(right)) == (2, 2)
        assert int(row.response) == int(left) + int(right)
    assert rows == WORLD.demonstrations(50, levels=("fair",), seed=1)
    assert rows != WORLD.demonstrations(50, levels=("fair",), seed=2)


def test_examples_run():
    assert doctest.testmod(addition).failed == 0


def test_digits_begin_as_right_as_the_table_of_answers():
    world = addition.AdditionByDigits()
    start = world.start.softmax(-1)
    assert world.success_of(start).tolist() == pytest.approx(list(WORLD.success), abs=1e-5)
    assert start.sum(-1) == pytest.approx(torch.ones(16, 5).numpy(), abs=1e-5)
    entropy = torch.distributions.Categorical(probs=start).entropy()
    assert bool((entropy[:, 2] > entropy[:, 0]).all())  # least sure in the middle
    sampled = torch.tensor([0, 1])
    right = world.sample(sampled, world.right[sampled], torch.Generator())["reward"]
    wrong = world.sample(sampled, (world.right[sampled] + 1) % 10, torch.Generator())["reward"]
    assert (right.tolist(), wrong.tolist()) == ([1.0, 1.0], [0.0, 0.0])
