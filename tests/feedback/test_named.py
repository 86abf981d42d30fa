"""Scorers by name: the grammar, sums with weights, and signs that are stated once and never guessed."""

from __future__ import annotations

import pytest
import torch

from poise.errors import ConfigError, FeedbackError
from poise.feedback.named import Loading, named_scorers, scorers_by_channel
from poise.feedback.remote import RemoteScorer
from poise.feedback.scorer_names import read_scorer_name
from poise.feedback.selected import SelectedChannels
from poise.feedback.serving import ScorerServer
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.types import Completion, Prompt

PROMPT = Prompt.of("How are you?", source="here", grade=3)
ANSWERS = [Completion(prompt_id=PROMPT.id, text=text) for text in ("Fine!", "I can't help with that.")]
PROMPTS = [PROMPT, PROMPT]
FUNCTIONS = """
def length(completions, **columns):
    return [float(len(completion)) for completion in completions]

def graded(completions, grade):
    return grade

def turns(prompts, completions):
    return [len(prompt) + len(completion[0]["content"]) for prompt, completion in zip(prompts, completions)]

async def later(completions):
    return [None, 2]

def short(completions):
    return [1.0]

def nan(completions):
    return [1.0, float("nan")]

def words(completions):
    return ["good", "bad"]

def broken(completions):
    return [completion[0]["content"] for completion in completions]

def wants(completions, solution):
    return solution

def wants_more(completions, trainer_state, **columns):
    return [trainer_state.global_step for _ in completions]
"""


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    return lambda name: f"py:{tmp_path}/rewards.py:{name}"


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random:llama")


@pytest.fixture
def model_folder(backbone, tmp_path):
    model = ScoreModel(backbone, depth=1)
    torch.nn.init.normal_(model.head[-1].weight)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def values(names, channel="reward", **more):
    (scorer,) = named_scorers(names, channel=channel, **more)
    return [scores.values.get(channel) for scores in scorer.score(PROMPTS, ANSWERS)]


def test_a_name_is_read_into_weight_kind_place_output_and_options():
    name = read_scorer_name("-0.5*hf:org/judge#toxic?batch=8&sign=higher_is_worse")
    assert (name.weight, name.kind, name.place, name.output) == (-0.5, "hf", "org/judge", "toxic")
    assert name.integer("batch", 1) == 8 and name.higher_is_worse is True
    assert read_scorer_name("runs/a-1/seed-0/scores/model").place == "runs/a-1/seed-0/scores/model"
    assert read_scorer_name("-https://host:8/").place == "https://host:8"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("judge:gpt", "no kind of scorer is called 'judge'.*hf:ID_OR_FOLDER"),
        ("0*rule:refusal", "weight is 0"),
        ("1e999*rule:refusal", "weight is inf"),
        ("rule:refusal?batch=8", "no option batch.*it has sign"),
        ("hf:a/b?batch", "not OPTION=VALUE"),
        ("hf:a/b?batch=1&batch=2", "twice"),
        ("hf:", "names no scorer"),
        ("", "names no scorer"),
        ("rule:refusal?sign=lower_is_worse", "choose higher_is_worse, higher_is_better"),
        ("rule:politeness", "there is no rule 'politeness'; there is refusal"),
        ("no/such/folder", "there is no folder"),
    ],
)
def test_a_name_outside_the_grammar_is_an_error_that_shows_what_there_is(text, says):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        named_scorers(text, channel="reward")


def test_terms_are_summed_with_their_weights_in_whatever_way_several_are_given(functions):
    alone = values(functions("length"))
    assert alone == [5.0, 23.0]
    assert values(f"0.5*{functions('length')} + -2*rule:refusal") == [2.5, 9.5]
    assert values([f"0.5*{functions('length')}", "-2*rule:refusal"]) == [2.5, 9.5]


def test_what_one_term_cannot_score_has_no_value_and_the_reason_is_kept(functions):
    (scorer,) = scorers_by_channel({"reward": f"{functions('later')} + rule:refusal", "cost": "rule:refusal"})
    first, second = scorer.score(PROMPTS, ANSWERS)
    assert first.values == {"cost": 0.0} and "the function gives None" in first.explanation
    assert second.values == {"reward": 3.0, "cost": 1.0}


def test_functions_are_given_columns_and_messages_as_trl_gives_them(functions):
    assert values(functions("graded")) == [3.0, 3.0]
    assert values(functions("turns") + "?format=messages") == [6.0, 24.0]
    failed = [ANSWERS[0], Completion(prompt_id=PROMPT.id, text="", finish="error", error="no answer")]
    (scorer,) = named_scorers(functions("length"), channel="reward")
    assert "no answer" in scorer.score(PROMPTS, failed)[1].unscorable


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("short", "gave 1 values for 2 completions"),
        ("nan", "gave nan for completion 2 of 2.*None for what cannot be scored"),
        ("words", "gave 'good'.*expected a finite number"),
        ("broken", "failed: TypeError.*format=messages gives messages instead"),
        ("wants_more", "takes trainer_state, and the data has no such column"),
        ("wants", "takes solution, and the data has no such column.*grade, source.*--columns"),
    ],
)
def test_a_function_that_gives_no_reward_per_completion_is_an_error_that_says_what_to_do(functions, function, says):
    with pytest.raises(FeedbackError, match=f"(?s){says}"):
        values(functions(function))


def test_a_conversation_is_not_silently_cut_to_its_last_turn_for_a_function_of_texts(functions):
    talk = Prompt.of([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}])
    (scorer,) = named_scorers(functions("length"), channel="reward")
    with pytest.raises(FeedbackError, match=r"conversation of 2 messages.*format=messages.*format=text"):
        scorer.score([talk], ANSWERS[:1])
    (scorer,) = named_scorers(functions("length") + "?format=text", channel="reward")
    assert scorer.score([talk], ANSWERS[:1])[0].values == {"reward": 5.0}


def test_a_file_that_is_missing_fails_or_defines_nothing_of_the_name_is_an_error(functions, tmp_path):
    with pytest.raises(ConfigError, match=r"no function 'lenght'.*length"):
        named_scorers(functions("lenght"), channel="reward")
    with pytest.raises(ConfigError, match="there is no file"):
        named_scorers("py:nowhere/rewards.py:length", channel="reward")
    (tmp_path / "bad.py").write_text("import no_such_module")
    with pytest.raises(ConfigError, match="fails when it is run: ModuleNotFoundError"):
        named_scorers(f"py:{tmp_path}/bad.py:length", channel="reward")


def test_a_score_model_folder_fills_the_channel_of_its_name_and_is_loaded_once(model_folder, backbone):
    model = ScoreModel.score(_loaded(model_folder, backbone), PROMPTS, ANSWERS)
    loading = Loading(backbone=backbone)
    (scorer,) = scorers_by_channel({"reward": str(model_folder), "cost": f"0.5*{model_folder}#cost"}, loading=loading)
    assert len(scorer.sources) == 1 and scorer.sources[0].backbone[0] is backbone
    for mine, theirs in zip(scorer.score(PROMPTS, ANSWERS), model, strict=True):
        assert mine.values["reward"] == pytest.approx(theirs.values["reward"], abs=1e-6)
        assert mine.values["cost"] == pytest.approx(0.5 * theirs.values["cost"], abs=1e-6)
    assert scorer.max_response_tokens == scorer.sources[0].max_response_tokens
    assert scorer.record()["cost"]["higher_is_worse"] is True


def _loaded(folder, backbone):
    from poise.models.heads import load_score_model

    return load_score_model(folder, backbone=backbone)


def test_an_output_that_points_the_other_way_needs_a_negative_weight(model_folder, backbone):
    how = Loading(backbone=backbone)
    with pytest.raises(ConfigError, match=r"higher is worse.*'reward' higher is better.*wrong sign.*negative weight"):
        named_scorers(f"{model_folder}#reward", channel="cost", loading=how)
    with pytest.raises(ConfigError, match="it is stored that higher is better"):
        named_scorers(f"{model_folder}#reward?sign=higher_is_worse", channel="cost", loading=how)
    with pytest.raises(ConfigError, match="wrong sign; give it a positive weight"):
        named_scorers(f"-{model_folder}#reward", channel="reward", loading=how)
    flipped = values(f"-{model_folder}#reward", channel="cost", loading=how)
    assert flipped == [-value for value in values(f"{model_folder}#reward", loading=how)]


def test_outputs_that_are_not_there_are_answered_with_those_that_are(model_folder, backbone):
    with pytest.raises(ConfigError, match=r"no output 'humour'. It has reward, cost"):
        named_scorers(f"{model_folder}#humour", channel="reward", loading=Loading(backbone=backbone))
    with pytest.raises(ConfigError, match="several outputs, and none is called 'humour'"):
        named_scorers(str(model_folder), channel="humour", loading=Loading(backbone=backbone))


def test_a_server_says_which_way_its_channels_point(model_folder, backbone, monkeypatch):
    monkeypatch.setenv("POISE_SCORER_TOKEN", "a long secret")
    model = _loaded(model_folder, backbone)
    with ScorerServer(model, {"reward": False, "cost": True}, token="a long secret") as server:
        assert isinstance(named_scorers(server.url, channel="cost")[0].sources[0], RemoteScorer)
        asked = values(f"2*{server.url}?batch=1", channel="cost")
        with pytest.raises(ConfigError, match="wrong sign"):
            named_scorers(f"{server.url}#cost", channel="reward")
    direct = [scores.values["cost"] for scores in model.score(PROMPTS, ANSWERS)]
    assert asked == pytest.approx([2 * value for value in direct], abs=1e-5)


def test_bounds_of_a_sum_are_known_where_those_of_every_term_are(functions):
    assert named_scorers("-2*rule:refusal + rule:refusal", channel="reward")[0].bounds == {"reward": (-2.0, 1.0)}
    assert named_scorers(f"{functions('length')} + rule:refusal", channel="reward")[0].bounds == {}


def test_over_several_processes_each_summed_scorer_is_asked_as_it_would_be_alone(model_folder, monkeypatch):
    from types import SimpleNamespace

    from poise.train import sharding

    (scorer,) = scorers_by_channel({"reward": f"{model_folder} + rule:refusal"})
    monkeypatch.setattr(sharding, "current", lambda: SimpleNamespace(size=2))
    model, rule = sharding.shard_scorer(scorer).sources
    assert isinstance(model, ScoreModel)  # parts its rows over the processes: all of them must take part
    assert type(rule).__name__ == "_MainScorer"
    chosen = sharding.shard_scorer(SelectedChannels(model, {"reward": "mine"}))
    assert isinstance(chosen.scorer, ScoreModel)
    assert chosen.channels == {"reward": "mine"}
