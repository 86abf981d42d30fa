"""What studies of safety share: the cost that a limit is set on, the KL to the start, and how long scores read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from poise.errors import FeedbackError
from poise.evaluate.divergence import sequence_kl
from poise.evaluate.suite import SuiteResult
from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.pipeline import TrainedScoreModel
from poise.pipeline.safety import limited_cost, prepare
from poise.plan.compute import Compute
from poise.plan.machines import named_machine
from poise.plan.model_sizes import MODEL_SIZES
from poise.plan.work import Planner, planning
from poise.run import Run
from poise.types import Completion, Evaluation, Prompt, Rollout, Scores


def test_the_sequence_kl_is_the_mean_log_ratio_also_where_an_answer_has_no_score() -> None:
    policy = Policy(load_backbone("random:llama"), Lora(rank=2))
    rows = [((65, 7, 9), (-1.0, -2.0, -3.0), {"cost": 1.0}), ((0,), (-0.5,), {})]
    rollouts = []
    for number, (ids, logprobs, values) in enumerate(rows):
        prompt = Prompt.of(f"Question {number}")
        completion = Completion(prompt_id=prompt.id, text="", token_ids=ids, token_logprobs=logprobs)
        rollouts.append(Rollout(prompt=prompt, completion=completion, scores=Scores(values=values)))
    expected = []
    for rollout in rollouts:
        head, _ = policy.backbone.renderer().prompt_ids(rollout.prompt.messages)
        tail = list(rollout.completion.token_ids)
        ids = torch.tensor([head + tail])
        reference = policy.backbone.model(ids).logits.log_softmax(-1)[0, len(head) - 1 : -1]
        picked = sum(reference[t, token].item() for t, token in enumerate(tail))
        expected.append(sum(rollout.completion.token_logprobs) - picked)
    result = SuiteResult(evaluation=Evaluation(suite="s", model="m", metrics={}), rollouts=tuple(rollouts))

    found = sequence_kl(policy, result.rollouts, 1.0)

    assert found.n == 2
    assert found.value == pytest.approx(sum(expected) / 2, rel=1e-4)


class HalfScored:
    """A score model that has no value for some answers."""

    def score(self, prompts, completions):
        return [
            Scores(values={"cost": 9.0}, unscorable="longer than the window" if "long" in c.text else "")
            for c in completions
        ]


def scored(*texts: str, kind: str = "harmful") -> list[Rollout]:
    found = []
    for number, text in enumerate(texts):
        prompt = Prompt.of(f"Question {number}", kind=kind)
        completion = Completion(prompt_id=prompt.id, text=text)
        found.append(Rollout(prompt=prompt, completion=completion, scores=Scores(values={})))
    return found


def test_the_limited_cost_is_that_of_answers_that_have_one_and_nothing_is_made_up_where_there_is_none() -> None:
    scorer = TrainedScoreModel(model=HalfScored(), accuracy={}, rows=0)  # type: ignore[arg-type]
    found = limited_cost(scorer, scored("short", "a long one", "", "short too"))
    assert (found.value, found.n) == (9.0, 2)
    with pytest.raises(FeedbackError, match="none of 2 answers has a cost"):
        limited_cost(scorer, scored("a long one", " "))


@pytest.mark.parametrize(("longest", "read"), [(48, None), (600, 600)])
def test_scores_read_the_longest_answer(tmp_path: Path, longest: int, read: int | None) -> None:
    planner = Planner(compute=Compute(model=MODEL_SIZES["1.5b"], machine=named_machine("h100x8")))
    with planning(planner), Run.open(tmp_path / "run", recipe="mine", arguments={}) as run:
        found = prepare(run, model="random:llama", data="starter", longest_answer=longest)
    assert found.signal_spec.reading.get("max_response_tokens") == read
    assert found.judge is not None and found.judge.model.max_response_tokens == max(512, longest)
