"""Rounds of feedback end as they would have without a kill, and wait for what people have to say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from poise.data import first_prompts, load, split_by_prompt
from poise.errors import FeedbackError
from poise.feedback.annotators import RuleAnnotator
from poise.files import read_jsonl_tolerant
from poise.models.policy import Policy
from poise.pipeline import start_model
from poise.pipeline.model import feature_cache
from poise.pipeline.rounds import TO_JUDGE, Round, align_in_rounds, annotators_named
from poise.pipeline.safety import SHARES, SIGNAL, Material, with_rounds
from poise.run import Run
from poise.train.objectives import Lagrangian
from poise.train.on_policy import OptimizerSettings
from poise.types import Annotator, Comparison, Dataset, Prompt, Sampling

KILLS = ("while annotators are asked", "in the second round's updates")
RULES: tuple[Annotator, ...] = (RuleAnnotator("helpful"), RuleAnnotator("safe"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """An annotator in whose middle of work the process is killed."""

    asked = 0

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        self.asked += 1
        if self.asked == 3:
            die()
        return RULES[0].compare(prompt, responses)


class MortalLagrangian(Lagrangian):
    updates = 0

    def update(self, *given: Any, **named: Any) -> Any:
        self.updates += 1
        if self.updates == 2:
            die()
        return super().update(*given, **named)


@cache
def sides() -> dict[str, Dataset]:
    splits = {name: first_prompts(side, 24) for name, side in split_by_prompt(load("starter"), SHARES).items()}
    return splits | with_rounds(splits["train"], 2)


def in_rounds(folder: Path, *, kill: str = "", people: Path | None = None) -> tuple[Round, ...]:
    """Two rounds of three updates of a tiny model, each round asked about."""
    fresh = iter([Lagrangian(), MortalLagrangian() if kill == KILLS[1] else Lagrangian()])
    with Run.open(folder, recipe="own", arguments={}) as run:
        backbone = start_model(run, "random:llama?layers=2")
        spec = replace(SIGNAL, max_steps=2)
        material = Material(
            splits=sides(), backbone=backbone, start=backbone, cache=feature_cache(run), judge=None, signal_spec=spec
        )
        known = annotators_named(run, str(people), material) if people else RULES
        return align_in_rounds(
            run,
            Policy(backbone, seed=0),
            material,
            material.signal(run),
            objective=lambda: next(fresh),
            sampling=Sampling(max_tokens=6),
            rounds=2,
            annotators=(Mortal(), *known) if kill == KILLS[0] else known,
            samples_per_step=8,
            optimisation=OptimizerSettings(steps=3),
        )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        name: value
        for path in sorted(folder.glob("policy-2/model/*.safetensors"))
        for name, value in load_file(path).items()
    }


def steps(folder: Path) -> list[dict[str, Any]]:
    clocks = {"time", "seconds", "tokens_per_s"}
    return [{k: v for k, v in row.items() if k not in clocks} for row in read_jsonl_tolerant(folder / "metrics.jsonl")]


def test_rounds_that_were_killed_between_and_within_end_as_those_that_were_not(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for kill in KILLS:
        code = f"import pathlib, test_rounds; test_rounds.in_rounds(pathlib.Path({str(folder)!r}), kill={kill!r})"
        there = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
        ended = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    resumed, unbroken = in_rounds(folder), in_rounds(tmp_path / "unbroken")
    ours, theirs = weights(folder), weights(tmp_path / "unbroken")
    assert ours and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert steps(folder) == steps(tmp_path / "unbroken")
    assert [each.gathered for each in resumed] == [each.gathered for each in unbroken]
    assert [each.accuracy for each in resumed] == [each.accuracy for each in unbroken]


def fill_in(sheet: Path, people: Path) -> int:
    """What a person does: answers every row of the sheet, and adds it to the file."""
    rows = read_jsonl_tolerant(sheet)
    with people.open("a", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            said = {"better_response_id": number % 2, "safer_response_id": None if number % 3 else 1}
            flags = {"is_response_0_safe": number % 2 == 0, "is_response_1_safe": True}
            file.write(json.dumps(row | said | flags) + "\n")
    return len(rows)


def test_a_run_stops_for_people_after_each_round_and_goes_on_with_what_they_wrote(tmp_path: Path) -> None:
    people, asked = tmp_path / "people.jsonl", []
    for number in (1, 2):
        with pytest.raises(FeedbackError, match=rf"pairs are to be judged by people: .*annotations-{number}"):
            in_rounds(tmp_path / "run", people=people)
        asked.append(fill_in(tmp_path / "run" / f"annotations-{number}" / TO_JUDGE, people))
    found = in_rounds(tmp_path / "run", people=people)
    for each, number in zip(found, asked, strict=True):
        by: dict[str, list[Comparison]] = {"helpful": [], "safe": []}
        for row in each.gathered.comparisons:
            by[row.criterion].append(row)
        assert [len(rows) for rows in by.values()] == [number, number]
        assert {row.winner for row in by["helpful"]} == {0, 1}
        assert {row.winner for row in by["safe"]} == {None, 1}
        assert len(each.gathered.labels) == 2 * number
    assert in_rounds(tmp_path / "at-once", people=people)[1].gathered == found[1].gathered
