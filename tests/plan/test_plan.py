"""The plan of a run: shapes as models have them, and costs that grow as they must."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch

from poise.cli.planning import plan_lines
from poise.errors import ConfigError, ModelError
from poise.experiment.planning import plan_stages
from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.plan.compute import Compute, Setting
from poise.plan.machines import named_machine, this_machine
from poise.plan.model_sizes import MODEL_SIZES, model_size
from poise.plan.probe import _seconds, _works, probe
from poise.plan.work import Tokens
from poise.recipes.safe_rlhf import safe_rlhf

H100S = named_machine("h100x8")
SEVEN = Compute(model=MODEL_SIZES["7b"], machine=H100S, setting=Setting(processes=8, is_sharded=True))


def seconds(compute, **given):
    given = {"arms": ("lagrangian",), "most_prompts": 24, **given}
    return sum(stage.seconds for stage in plan_stages(safe_rlhf, given, compute, Tokens()))


def with_setting(**changes):
    return replace(SEVEN, setting=replace(SEVEN.setting, **changes))


@pytest.mark.parametrize("name", ["random:llama", "random:qwen?layers=3", "random:gpt2"])
def test_a_shape_counts_the_weights_of_the_model(name):
    size, model = model_size(name), load_backbone(name).model
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n)
    assert size.parameters == matrices
    policy = Policy(load_backbone(name), Lora(rank=4))
    assert size.adapter_parameters(rank=4) == sum(p.numel() for p in policy.parameters().values())


def test_the_named_shapes_have_the_sizes_that_their_names_say():
    assert [round(MODEL_SIZES[name].parameters / 1e9, 1) for name in ("1.5b", "7b", "70b")] == [1.5, 7.6, 70.6]


def test_a_model_or_machine_that_does_not_exist_is_named():
    with pytest.raises(ModelError, match="no model '13b'"):
        model_size("13b")
    with pytest.raises(ConfigError, match="h100x8"):
        named_machine("tpu")


def test_time_grows_with_steps_samples_and_tokens_and_falls_with_processes():
    once, base = (seconds(SEVEN, steps=steps, validate_every=0) for steps in (1, 10))  # without checks in steps of ten
    assert seconds(SEVEN, steps=20, validate_every=0) - base == pytest.approx(10 / 9 * (base - once))
    assert seconds(SEVEN, steps=10, samples_per_step=256) > base
    assert seconds(SEVEN, steps=10, response_tokens=200) > 1.2 * base
    assert seconds(with_setting(processes=1, is_sharded=False), steps=10, samples_per_step=512) > seconds(
        with_setting(is_sharded=False), steps=10, samples_per_step=512
    )


def test_sharding_divides_the_weights_and_costs_time():
    alone = with_setting(is_sharded=False)
    assert SEVEN.weights() < 0.3 * alone.weights()
    assert SEVEN.forward(1e5) > alone.forward(1e5)
    full = with_setting(is_full=True)
    states = 16 * MODEL_SIZES["7b"].parameters / 8
    assert states < full.weights() < 1.5 * states


def test_recomputation_trades_time_for_memory():
    again = with_setting(recompute=True)
    assert again.updating() < 0.6 * SEVEN.updating()
    assert 1.2 < again.training(1e5, positions=0) / SEVEN.training(1e5, positions=0) < 2


def pretend(monkeypatch, seconds):
    """Let the four works of a probe at a depth take these seconds, which may follow from how often they were done."""

    def works(size, depth):
        calls = itertools.count()
        return [partial(lambda index: seconds(depth, next(calls) // 4)[index], index) for index in range(4)]

    monkeypatch.setattr("poise.plan.probe._works", works)
    monkeypatch.setattr("poise.plan.probe._seconds", lambda work: work())


def test_a_pass_through_half_of_the_layers_costs_half(monkeypatch):
    layers = MODEL_SIZES["7b"].layers
    clock = {1: (1.0, 3.0, 2.0, 10.0), 4: (2.5, 9.0, 6.8, 34.0)}  # the longer generation has 16 steps more
    pretend(monkeypatch, lambda depth, calls: clock[depth])
    measured = probe(model_size("random:llama"))
    assert (measured.decoding_layer, measured.decoding_head) == pytest.approx((0.4, 0.1))
    assert measured.training_layer / measured.forward_layer == pytest.approx(4.0)
    for compute in (SEVEN, replace(SEVEN, probe=measured)):
        assert compute.forward(1e5, layers=layers / 2) == pytest.approx(compute.forward(1e5) / 2, rel=0.01)


def test_a_machine_too_busy_to_be_measured_says_so(monkeypatch):
    pretend(monkeypatch, lambda depth, calls: (1.0, 1.0, 1.0, 2.0))
    with pytest.raises(ConfigError, match="4 layers took no longer than 1"):
        probe(model_size("random:llama"))


def test_times_that_make_no_sense_are_measured_again(monkeypatch):
    """A slow phase of the machine hits the shallow model alone; later both are measured as they are."""
    quiet = {1: (1.0, 3.0, 2.0, 10.0), 4: (2.5, 9.0, 6.8, 34.0)}
    busy = {1: (9.0, 9.0, 9.0, 90.0), 4: quiet[4]}
    pretend(monkeypatch, lambda depth, calls: (busy if calls < 5 else quiet)[depth])
    assert probe(model_size("random:llama")).decoding_layer == pytest.approx(0.4)


def test_every_pass_of_a_probe_takes_time():
    assert all(_seconds(work) > 0 for work in _works(model_size("random:llama"), 1))


def test_this_machine_is_measured():
    machine = this_machine(model_size("random:llama?hidden=256"))
    assert 1e8 < machine.peak < 1e16 and 1e8 < machine.bandwidth < 1e14 and 0 < machine.call < 1e-2
    assert machine.rate(1) < machine.rate(64) <= machine.rate(4096) <= machine.peak
    assert machine.is_gpu == torch.cuda.is_available()


def lines(*words, machine):
    layout = {"processes": 0, "shard": True, "is_full": False, "recompute": False, "base_bits": 16}
    return list(plan_lines("safe-rlhf", words, machine=machine, **layout))


def test_the_command_shows_every_stage_and_what_does_not_fit():
    shown = lines("--model", "70b", "--steps", "3", machine="h100x1")
    assert [line.split()[0] for line in shown[3:13]] == [
        *(f"seed-0/{stage}" for stage in ("model", "judge", "harm-judge", "refusals-evaluation", "refusals-limit")),
        *(f"seed-0/{stage}" for stage in ("imitated", "scores", "evaluate", "evaluate-start")),
        "lagrangian-seed-0/policy-1",
    ]
    assert "3 updates of 64 samples" in shown[12]
    assert any("does not fit" in line for line in shown)
    assert not any("does not fit" in line for line in lines("--model", "1.5b", machine="h100x8"))


def test_a_quick_run_is_not_planned():
    with pytest.raises(ConfigError, match="without --quick"):
        lines("--quick", machine="h100x1")
