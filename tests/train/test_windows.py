"""One number for how much is read: who scores or trains sees what was sampled; what cannot be seen is not judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from poise.errors import ConfigError, DataError, ModelError
from poise.evaluate.suite import Suite, run_suite
from poise.feedback.lengths import OverlongPenalty
from poise.models.adapters import Lora
from poise.models.heads import COST, ScoreModel, load_score_model
from poise.models.load import load_backbone
from poise.models.policy import Policy, load_policy
from poise.models.tiny import CHATML
from poise.pipeline import start_model
from poise.rollout.native import NativeEngine
from poise.rollout.scripted import ScriptedEngine
from poise.run import Run
from poise.train.algorithms import RLOO
from poise.train.objectives import Unconstrained
from poise.train.on_policy import OnPolicyTrainer
from poise.train.preference_feedback import PairFeedback, ResponseFeedback
from poise.train.score_model import FeedbackTable
from poise.train.supervised import DemonstrationBatches
from poise.types import Comparison, Completion, Demonstration, Prompt, Sampling

LONG = [Prompt.of(f"{number} " + "Tell me more of it. " * 12) for number in range(4)]
NAME = "random:llama?hidden=32"


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(NAME)


@pytest.fixture(scope="module")
def policy(backbone):
    return Policy(backbone, Lora(rank=2, top=0.5), adapter="windows")


def trainer_of(policy, engine, scorer, tokens=6) -> OnPolicyTrainer:
    return OnPolicyTrainer(
        policy=policy,
        engine=engine,
        scorers=[scorer],
        algorithm=replace(RLOO, samples_per_prompt=2),
        objective=Unconstrained(),
        prompts=LONG,
        prompts_per_step=4,
        sampling=Sampling(max_tokens=tokens),
    )


@pytest.mark.parametrize("window", [None, 64, 200])
def test_a_trainer_reads_prompts_as_its_engine_cut_them(policy, backbone, window):
    scorer = ScoreModel(backbone, hidden=0)
    trainer = trainer_of(policy, NativeEngine(policy, max_prompt_tokens=window), scorer)
    assert trainer.step_at(0)["logprob_gap"] < 1e-5
    assert trainer.renderer.max_prompt_tokens == (window or 512)


def test_a_scorer_that_cannot_see_what_may_be_said_is_refused(policy, backbone):
    scorer = ScoreModel(backbone, hidden=0, max_response_tokens=16)
    penalised = OverlongPenalty(scorer, max_tokens=40, buffer=4)
    for each in (scorer, penalised):
        with pytest.raises(ConfigError, match="reads 16 tokens of a response and max_tokens=40 may be generated"):
            trainer_of(policy, NativeEngine(policy), each, tokens=40)
    suite = Suite(name="short", prompts=(Prompt.of("Hello", kind="harmful"),))
    told = {"engine": ScriptedEngine({}, default="Yes."), "sampling": Sampling(max_tokens=17), "model_name": "scripted"}
    with pytest.raises(ConfigError, match="reads 16 tokens"):
        run_suite(suite, scorers={"judge": scorer}, **told)
    trainer_of(policy, NativeEngine(policy), scorer, tokens=16)


def test_a_score_sees_harm_after_token_256(backbone):
    model = ScoreModel(backbone, (COST,), hidden=0, depth=2)
    torch.nn.init.normal_(model.head[0].weight)
    beginning, prompt = "x" * 300, Prompt.of("Hello")
    first, second = model.values([prompt] * 2, [beginning + " and harm", beginning + " and help"])
    assert first != second


def test_what_is_longer_than_the_window_has_no_score(backbone):
    model = ScoreModel(backbone, (COST,), hidden=0, max_response_tokens=8)
    texts = ["x" * 8, "x" * 9, "", "\ufffd" * 4]
    ids = [(), (), (), (1, 2, 3, 4)]  # the last was sampled in four tokens and takes twelve to write
    completions = [Completion(prompt_id="", text=text, token_ids=each) for text, each in zip(texts, ids, strict=True)]
    scores = model.score([Prompt.of("Hello")] * 4, completions)
    assert [score.unscorable for score in scores] == [
        "",
        "longer than the window of 8 tokens",
        "the response is empty",
        "",
    ]
    assert [bool(score.values) for score in scores] == [True, False, False, True]


def test_an_answer_to_a_prompt_longer_than_the_window_has_no_score_unless_the_model_cuts_prompts(backbone, tmp_path):
    texts, prompts = ["Yes.", "No."], [Prompt.of("Hello"), LONG[0]]
    completions = [Completion(prompt_id=prompt.id, text=text) for prompt, text in zip(prompts, texts, strict=True)]
    strict = ScoreModel(backbone, (COST,), hidden=0, depth=2, max_prompt_tokens=64)
    assert [score.unscorable for score in strict.score(prompts, completions)] == [
        "",
        "the prompt is longer than the window of 64 tokens",
    ]
    assert [strict.sees_all(prompt, "Yes.") for prompt in prompts] == [True, False]
    cutting = ScoreModel(backbone, (COST,), hidden=0, depth=2, max_prompt_tokens=64, cuts_prompts=True)
    assert all(score.values for score in cutting.score(prompts, completions))
    cutting.save_pretrained(tmp_path)
    assert load_score_model(tmp_path, backbone=backbone).reader.cuts_prompts


def comparison(number: int, chosen: str, rejected: str) -> Comparison:
    return Comparison(prompt=Prompt.of(f"Question {number}"), responses=(chosen, rejected), winner=0)


def test_pairs_that_differ_beyond_the_window_are_counted_and_not_trained(policy, backbone):
    seen = [comparison(number, f"good {number}", f"bad {number}") for number in range(3)]
    hidden = comparison(3, "x" * 20 + "good", "x" * 20 + "bad")
    for feedback in (
        PairFeedback(policy, [*seen, hidden], max_tokens=16),
        ResponseFeedback(policy, [*seen, hidden], max_tokens=16),
    ):
        assert len(feedback.groups) == 3
        assert feedback.beyond_window == 0.25
    assert len(PairFeedback(policy, [*seen, hidden]).groups) == 4
    with pytest.raises(DataError, match=r"1 pairs are the same in the first 16 tokens.*larger max_tokens"):
        PairFeedback(policy, [hidden], max_tokens=16)
    model = ScoreModel(backbone, hidden=0, max_response_tokens=16)
    table = FeedbackTable(model, [*seen, hidden])
    assert (len(table.judgements), table.beyond_window) == (3, 0.25)
    with pytest.raises(DataError, match="larger max_response_tokens"):
        FeedbackTable(model, [hidden])


@pytest.mark.parametrize(("context", "windows"), [(64, (32, 32)), (700, (350, 350)), (2048, (512, 512))])
def test_windows_fit_the_context_of_the_model(context, windows):
    backbone = load_backbone(NAME)
    backbone.decoder.context = context
    renderer = backbone.renderer()
    assert (renderer.max_prompt_tokens, renderer.max_response_tokens) == windows


def test_demonstrations_have_the_prompts_of_the_sampler(policy):
    prompt = LONG[0]
    batches = DemonstrationBatches([Demonstration(prompt=prompt, response="Yes.")], policy, max_tokens=64)
    length = batches.rows[0].prompt_length
    assert list(batches.rows[0].ids[:length]) == NativeEngine(policy).renderer.prompt_ids(prompt.messages)[0]


TEMPLATE = CHATML.replace("<|im_start|>assistant", "<|im_start|>beaver").replace(
    "{{ m['role'] }}", "{{ 'beaver' if m['role'] == 'assistant' else m['role'] }}"
)


def test_a_template_of_a_file_stays_with_the_run_and_with_what_it_trains(tmp_path: Path):
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE)
    with Run.open(tmp_path / "run", recipe="test", arguments={}) as run:
        first = start_model(run, "random:llama", chat_template=str(file))
        file.unlink()
        again = start_model(run, "random:llama", chat_template=str(file))
    expected = first.renderer().prompt_ids(Prompt.of("Hello").messages)[0]
    assert "beaver" in first.tokenizer.decode(expected)
    Policy(first, Lora(rank=1)).save_pretrained(tmp_path / "adapter")
    ScoreModel(first, hidden=0).save_pretrained(tmp_path / "scores")
    scores = load_score_model(tmp_path / "scores").renderer
    for renderer in (again.renderer(), load_policy(str(tmp_path / "adapter")).backbone.renderer(), scores):
        assert renderer.prompt_ids(Prompt.of("Hello").messages)[0] == expected


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path):
    with (
        Run.open(tmp_path / "run", recipe="test", arguments={}) as run,
        pytest.raises(ModelError, match=r"cannot read the chat template .*none\.jinja"),
    ):
        start_model(run, "random:llama", chat_template=str(tmp_path / "none.jinja"))
