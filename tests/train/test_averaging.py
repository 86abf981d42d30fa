"""Averages of the weights over updates: what they are, that they resume, and that training goes on without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from poise.errors import ConfigError, RunError
from poise.functional.averages import decayed_mean
from poise.train.algorithms import RLOO
from poise.train.averaging import DecayedAverage, MeanOfLast, RunningAverage, holding
from poise.train.objectives import PID, Lagrangian, Limit
from poise.train.tabular import QUICK, TabularTrainer
from poise.worlds.bandit import three_limits

NUMBERS = [torch.tensor([x], dtype=torch.float64) for x in (1.0, 2.0, 4.0, 8.0)]


def averaged(rule, numbers=NUMBERS):
    average = RunningAverage(rule)
    for x in numbers:
        average.add({"x": x})
    return average.mean["x"]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_a_decayed_mean_weighs_each_update_by_the_decay_of_those_after_it_and_the_weights_add_up_to_one(decay):
    weights = np.array([decay ** (len(NUMBERS) - 1 - i) for i in range(len(NUMBERS))])
    expected = float((weights * torch.cat(NUMBERS).numpy()).sum() / weights.sum())
    assert averaged(decay).item() == pytest.approx(expected, rel=1e-12)


def test_no_decay_and_a_window_of_one_are_the_last_weights_bit_for_bit():
    for rule in (0.0, MeanOfLast(1)):
        assert torch.equal(averaged(rule), NUMBERS[-1])


def test_a_decay_near_one_and_a_window_of_all_are_the_plain_mean():
    assert averaged(1 - 1e-9).item() == pytest.approx(15 / 4)
    assert averaged(MeanOfLast(9)).item() == averaged(MeanOfLast(4)).item() == 15 / 4


def test_a_window_forgets_what_is_older():
    assert averaged(MeanOfLast(2)).item() == 6.0


def test_steps_too_small_for_narrow_weights_are_not_lost_in_their_average():
    steps = [torch.tensor([1.0 + (i % 2) / 128], dtype=torch.bfloat16) for i in range(400)]
    for rule in (0.99, MeanOfLast(400)):
        assert averaged(rule, steps).item() == pytest.approx(1.0 + 0.5 / 128, abs=1e-4)


def test_what_is_averaged_is_a_copy():
    x = torch.ones(2)
    average = RunningAverage(0.5)
    average.add({"x": x})
    x.zero_()
    assert average.mean["x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", [lambda: DecayedAverage(1.0), lambda: DecayedAverage(-0.1), lambda: MeanOfLast(0)])
def test_a_rule_that_averages_nothing_is_refused(rule):
    with pytest.raises(ConfigError, match="average"):
        rule()


def test_a_decayed_mean_has_the_shape_and_type_of_the_mean():
    found = decayed_mean(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bfloat16), seen=1, decay=0.5)
    assert (found.dtype, found.shape) == (torch.float32, (2, 3))


@pytest.mark.parametrize("rule", [0.7, MeanOfLast(3)])
def test_a_trainer_averages_the_weights_after_each_update_and_puts_them_into_the_policy_when_asked(
    make_trainer, weights_of, rule
):
    trainer, plain = make_trainer(optimisation={"average": rule}), make_trainer()
    own = RunningAverage(rule)
    for index in range(5):
        trainer.step_at(index)
        plain.step_at(index)
        own.add(trainer.parameters)
    for name, weight in weights_of(plain).items():
        assert torch.equal(weights_of(trainer)[name], weight), name  # averaging changes nothing of training
    assert not plain.load_average()
    assert trainer.load_average()
    for name, parameter in trainer.parameters.items():
        assert torch.equal(parameter, own.mean[name]), name
    assert any(not torch.equal(p, plain.parameters[name]) for name, p in trainer.parameters.items())


def test_a_policy_that_holds_the_average_for_a_while_has_its_own_weights_again_bit_for_bit(make_trainer, weights_of):
    trainer = make_trainer(optimisation={"average": 0.9})
    for index in range(2):
        trainer.step_at(index)
    before = weights_of(trainer)
    with pytest.raises(KeyError), holding(trainer.average.mean, trainer.parameters):
        assert any(not torch.equal(p, before[name]) for name, p in trainer.parameters.items())
        raise KeyError
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(trainer).items())


@pytest.mark.parametrize(("begun", "resumed"), [(None, 0.9), (0.9, 0.8), (0.9, MeanOfLast(2))])
def test_a_checkpoint_with_another_average_than_is_asked_for_is_refused(make_trainer, begun, resumed):
    trainer = make_trainer(optimisation={"average": begun})
    trainer.step_at(0)
    with pytest.raises(RunError, match="of the weights, and"):
        make_trainer(optimisation={"average": resumed}).load_state_dict(trainer.state_dict())


def table_trainer(steps):
    objective = Lagrangian(Limit("cost", 0.1), PID.of_gain(1.0))
    settings = replace(QUICK, steps=steps)
    return TabularTrainer(world=three_limits(), algorithm=RLOO, objective=objective, optimisation=settings)


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_the_mean_policy_of_a_table_is_the_mean_of_its_last_policies_bit_for_bit(steps):
    policy, metrics = table_trainer(steps).run(steps)
    by_hand = table_trainer(steps)
    rows = []
    for index in range(steps):
        rows.append((by_hand.step_at(index)["reward"], by_hand.probabilities.double().numpy()))
    last = rows[-max(1, steps // 2) :]
    assert np.array_equal(policy, np.mean([probabilities for _, probabilities in last], axis=0))
    assert metrics["reward"] == np.mean([reward for reward, _ in last])
