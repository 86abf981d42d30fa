"""The published files themselves, where POISE_DATA names them."""

from __future__ import annotations

import time

import pytest

from poise.data import load, split_by_prompt
from poise.data.lint import lint, lint_splits
from poise.data.sources import names

pytestmark = pytest.mark.real_data


@pytest.mark.parametrize("name", sorted(set(names()) - {"starter"}))
def test_every_named_set_loads_with_few_bad_rows(poise_data, name):
    dataset = load(name)
    assert dataset.prompts
    assert len(dataset.bad_rows) < 0.01 * dataset.provenance["rows_read"]
    assert str(poise_data) in dataset.provenance["files"][0]["path"]


@pytest.mark.usefixtures("poise_data")
def test_hh_rlhf_loads_in_two_seconds():
    started = time.process_time()
    assert len(load("hh-rlhf").comparisons) > 3000
    assert time.process_time() - started < 2


@pytest.mark.usefixtures("poise_data")
def test_nineteen_of_the_32_pku_rows_set_help_against_harm_and_none_contradicts_its_flags():
    report = lint(load("pku-saferlhf"))
    assert (report["helpful_safe_conflict"].count, report["helpful_safe_conflict"].of) == (19, 32)
    assert (report["safer_but_flagged_unsafe"].count, report["safer_but_flagged_unsafe"].of) == (0, 32)


@pytest.mark.usefixtures("poise_data")
def test_the_noise_of_the_safety_pairs_is_found():
    dataset = load("pku-safety-pairs")
    report = lint(dataset)
    assert report["duplicate_rows"].count > 1000
    assert report["safety_label_conflict"].count > 300
    assert report["preference_conflict"].count > 100
    assert len(dataset.labels) < 2 * len(dataset.comparisons)


@pytest.mark.usefixtures("poise_data")
def test_xstest_has_450_prompts_and_a_verdict_for_every_completion():
    dataset = load("xstest:completions")
    kinds = [prompt.tags["kind"] for prompt in dataset.prompts]
    assert (kinds.count("look_alike"), kinds.count("harmful")) == (250, 200)
    assert all(row.prompt.tags["final_label"] for row in dataset.demonstrations)


@pytest.mark.usefixtures("poise_data")
def test_a_split_of_real_pairs_does_not_leak():
    parts = split_by_prompt(load("hh-rlhf:helpful+pku-safety-pairs"), {"train": 0.8, "test": 0.2})
    assert lint_splits(parts)[0].count == 0
