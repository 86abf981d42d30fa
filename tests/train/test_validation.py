"""The policy that is kept is chosen on prompts that it never trained on: what is checked, what wins, what resumes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from poise.errors import ConfigError
from poise.files import to_jsonable
from poise.train.limits import Limit, among, rate
from poise.train.objectives import Lagrangian
from poise.train.validation import Validation, check_policy
from poise.types import Completion, Prompt, Rollout, Scores

UNSEEN = tuple(Prompt.of(f"Unseen {i}", kind="harmful" if i % 2 else "benign") for i in range(6))
HARMFUL = among("harmful", lambda prompt: prompt.tags.get("kind") == "harmful")


def rollouts(**channels):
    """One answer to each unseen prompt, with these scores in turn."""
    return [
        Rollout(
            prompt=prompt,
            completion=Completion(prompt_id=prompt.id, text="x"),
            scores=Scores(values={name: values[i % len(values)] for name, values in channels.items()}),
        )
        for i, prompt in enumerate(UNSEEN)
    ]


def check(limits=(), **channels):
    limits = limits or (Limit("cost", 0.0),)
    return check_policy(rollouts(**channels), limits, step=1, asked=len(UNSEEN))


def test_a_limit_of_a_group_is_checked_on_the_unseen_prompts_of_the_group_with_an_interval_over_them():
    found = check((Limit("cost", 0.5, measure=HARMFUL, scale=2.0),), reward=[1.0], cost=[9.0, 1.0, 9.0, 2.0, 9.0, 3.0])
    (limit,) = found.limits
    assert (limit.value.value, limit.value.n, limit.excess) == (2.0, 3, 3.0)
    assert limit.value.low < 2.0 < limit.value.high
    assert not limit.is_met
    assert (found.is_feasible, found.violation) == (False, 3.0)


def test_a_share_has_the_interval_of_a_share_even_where_nothing_happened():
    found = check((Limit("cost", 0.5, measure=rate()), Limit("refusal", 0.9)), reward=[1.0], cost=[-1.0], refusal=[0.0])
    for limit in found.limits:
        assert limit.value.value == 0.0
        assert 0.3 < limit.value.high < 0.6  # of six prompts
    assert [limit.is_met for limit in found.limits] == [True, True]
    assert [limit.is_sure for limit in found.limits] == [True, True]
    tight = check((Limit("refusal", 0.2),), reward=[1.0], refusal=[0.0])
    assert (tight.limits[0].is_met, tight.limits[0].is_sure) == (True, False)


def test_the_violation_of_several_limits_is_their_sum_so_that_missing_one_is_better_than_missing_both():
    limits = (Limit("cost", 0.0), Limit("refusal", 0.2))
    both = check(limits, reward=[1.0], cost=[1.0], refusal=[0.5])
    one = check(limits, reward=[1.0], cost=[1.1], refusal=[0.1])
    assert (both.violation, one.violation) == (pytest.approx(1.3), pytest.approx(1.1))
    assert one.is_better_than(both.record())


def test_a_feasible_policy_is_better_than_any_other_then_the_higher_reward_then_the_smaller_violation():
    poor, rich = check(reward=[1.0], cost=[-1.0]), check(reward=[2.0], cost=[-0.1])
    close, far = check(reward=[9.0], cost=[0.1]), check(reward=[99.0], cost=[5.0])
    order = [far, close, poor, rich]
    for i, worse in enumerate(order):
        for better in order[i + 1 :]:
            assert better.is_better_than(worse.record())
            assert not worse.is_better_than(better.record())
    assert not poor.is_better_than(poor.record())  # the earlier one stays


def test_a_limit_whose_prompts_have_no_scored_answer_is_not_met_and_its_record_is_json():
    some = [each for each in rollouts(reward=[1.0], cost=[-1.0]) if each.prompt.tags["kind"] == "benign"]
    found = check_policy(some, (Limit("cost", 0.0, measure=HARMFUL),), step=1, asked=len(UNSEEN))
    assert not found.is_feasible
    assert (found.asked, found.scored) == (6, 3)
    assert check(reward=[1.0], cost=[3.0]).is_better_than(found.record())
    json.dumps(to_jsonable(found.record()), allow_nan=False)


def validated(make_trainer, every=2, steps=5, **changes):
    trainer = make_trainer(
        optimisation={"steps": steps, "lr": 1e-2, "average": changes.pop("average", None)}, **changes
    )
    trainer.validate_on(Validation(prompts=UNSEEN, every=every, samples=2))
    return trainer


@pytest.mark.parametrize("average", [None, 0.5])
def test_weights_are_checked_every_so_often_and_at_the_end_and_the_best_are_kept(make_trainer, average):
    trainer, seen = validated(make_trainer, objective=Lagrangian(Limit("cost", 99.0)), average=average), {}
    for index in range(5):
        metrics = trainer.step_at(index)
        assert ("validation_reward" in metrics) == (index + 1 in {2, 4, 5})
        now = trainer.parameters if trainer.average is None else trainer.average.mean
        seen[index + 1] = {name: weight.detach().clone() for name, weight in now.items()}
    record = trainer.validated.record()
    assert [row["step"] for row in record["checks"]] == [2, 4, 5]
    assert record["chosen"]["reward"]["value"] == max(row["reward"]["value"] for row in record["checks"])
    assert trainer.validated.load_into(trainer.parameters) == record["chosen"]
    for name, weight in trainer.parameters.items():
        assert torch.equal(weight, seen[record["chosen"]["step"]][name]), name


def test_checks_change_nothing_of_training(make_trainer, weights_of):
    trainer, plain = validated(make_trainer, every=1, average=0.5), make_trainer(optimisation={"steps": 5, "lr": 1e-2})
    for index in range(3):
        trainer.step_at(index)
        plain.step_at(index)
    assert all(torch.equal(weight, weights_of(trainer)[name]) for name, weight in weights_of(plain).items())


def test_the_same_policy_has_the_same_check_and_unseen_prompts_are_the_same_each_time(make_trainer):
    rows = []
    for _ in range(2):
        trainer = validated(make_trainer, every=1)
        for group in (trainer.optimizer, trainer.critic_optimizer):
            group.param_groups[0]["lr"] = 0.0
        for index in range(2):
            trainer.optimisation = replace(trainer.optimisation, schedule=lambda step, steps: 0.0)
            trainer.step_at(index)
        rows += trainer.validated.record()["checks"]
    assert all(row | {"step": 0} == rows[0] | {"step": 0} for row in rows)


def test_a_prompt_that_is_trained_on_is_no_validation_prompt(make_trainer, prompts):
    with pytest.raises(ConfigError, match="1 of 7 validation prompts are trained on"):
        make_trainer().validate_on(Validation(prompts=(*UNSEEN, prompts[0])))


def test_a_limit_on_a_group_needs_validation_prompts_of_the_group(make_trainer):
    trainer = make_trainer(objective=Lagrangian(Limit("cost", 0.0, measure=HARMFUL)))
    with pytest.raises(ConfigError, match="no validation prompt belongs to 'harmful'"):
        trainer.validate_on(Validation(prompts=UNSEEN[::2]))


def test_limits_of_its_own_are_checked_in_place_of_those_that_are_trained_under(make_trainer):
    trainer = make_trainer(objective=Lagrangian(Limit("cost", -9.0)))
    trainer.validate_on(Validation(prompts=UNSEEN, every=1, limits=[Limit("cost", 99.0)]))
    assert trainer.step_at(0)["feasible"] == 0.0
    assert trainer.validated.record()["chosen"]["feasible"] is True


@pytest.mark.parametrize("wrong", [{"prompts": ()}, {"every": 0}, {"samples": 0}])
def test_a_validation_that_asks_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match="validation on"):
        Validation(**({"prompts": UNSEEN} | wrong))
