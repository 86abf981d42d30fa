"""Limits in the trainers of TRL: what is rewarded, what moves the multipliers, and what a checkpoint keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from poise.errors import ConfigError, TrainingError
from poise.feedback.python_rewards import PythonReward
from poise.models.tiny import tiny_model, tiny_tokenizer
from poise.train.controllers import PID
from poise.train.lagrangian_reward import LagrangianReward
from poise.train.limits import Limit, among
from poise.train.objectives import Lagrangian


def length(completions):
    return [None if not each else float(len(each)) for each in completions]


def spaces(completions):
    return [float(each.count(" ")) for each in completions]


def made(*parts):
    scorers = [PythonReward(length, output="reward"), PythonReward(spaces, output="cost")]
    return LagrangianReward(scorers, Lagrangian(*(parts or (Limit("cost", 1.0), PID(multiplier=1.0)))))


def test_the_reward_is_that_of_the_lagrangian_for_texts_and_for_messages():
    reward = made(Limit("cost", 1.0), PID(multiplier=3.0))
    assert reward(prompts=["q", "q"], completions=["a b c", "abc"]) == [(5 - 3 * 2) / 4, 3 / 4]
    talk = [[{"role": "user", "content": "q"}]] * 2
    said = [[{"role": "assistant", "content": "a b c"}], [{"role": "assistant", "content": "abc"}]]
    assert reward(prompts=talk, completions=said) == [(5 - 3 * 2) / 4, 3 / 4]


def test_what_cannot_be_scored_has_the_mean_of_its_prompt_and_moves_no_multiplier():
    reward = made(Limit("cost", 1.0), PID())
    found = reward(prompts=["q", "q", "q", "r"], completions=["ab", "", "abcd", ""])
    assert found == [2.0, 3.0, 4.0, 0.0]
    reward.end_step()
    assert reward.objective.watches[0].episodes == 2


def test_multipliers_answer_once_to_all_completions_of_a_step_and_to_none_of_an_evaluation():
    reward, expected = made(), PID(multiplier=1.0)
    step = SimpleNamespace(global_step=0)
    reward.callback.on_step_begin(None, step, None)
    reward(prompts=["q"], completions=["a b c d"])
    reward(prompts=["q"], completions=["abc"])
    reward.callback.on_step_end(None, step, None)
    expected.update(1.5, 1.0)
    assert reward.objective.multipliers == {"cost": expected.multiplier}
    reward(prompts=["q"], completions=["a b c d e f g h"])  # of an evaluation
    reward.callback.on_step_begin(None, step, None)
    reward.callback.on_step_end(None, step, None)  # on completions that the step before sampled
    assert reward.objective.multipliers == {"cost": expected.multiplier}


def test_a_limit_on_some_prompts_is_told_them_by_the_columns_of_the_data():
    harmless = among("harmless", lambda prompt: prompt.tags["kind"] == "harmless")
    reward = made(Limit("cost", 0.0, measure=harmless), PID(multiplier=1.0))
    found = reward(prompts=["q", "r"], completions=["a b", "a b"], kind=["harmful", "harmless"])
    assert found[0] == 3.0 and found[1] < 3.0


def test_multipliers_go_on_from_a_checkpoint_and_are_missed_where_there_are_none(tmp_path):
    reward, again = made(), made()
    reward(prompts=["q"], completions=["a b c d"])
    reward.end_step()
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=3, is_world_process_zero=True)
    (tmp_path / "checkpoint-3").mkdir()
    reward.callback.on_save(args, state, None)
    again.callback.on_train_begin(args, state, None)
    assert again.objective.state_dict() == reward.objective.state_dict()
    state.global_step = 4
    with pytest.raises(TrainingError, match=r"checkpoint-4 has no poise_multipliers.json"):
        again.callback.on_train_begin(args, state, None)


def test_a_trainer_without_the_callback_is_told_to_pass_it():
    with pytest.raises(ConfigError, match=r"callbacks=\[reward.callback\]"):
        made()(prompts=["q"], completions=["a"], trainer_state=SimpleNamespace(global_step=1))


def test_a_missing_channel_is_an_error_and_no_reward():
    reward = LagrangianReward([PythonReward(length, output="reward")], Lagrangian(Limit("cost", 1.0), PID()))
    with pytest.raises(ConfigError, match="no scorer gives the channel cost; they give reward"):
        reward(prompts=["q"], completions=["a"])


@pytest.mark.filterwarnings("ignore")  # of TRL's own deprecations
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_trl_trains_under_the_limit_and_resumes_with_its_multipliers(tmp_path, kind):
    trl = pytest.importorskip("trl", reason="runs the trainers of TRL: pip install -e '.[bench]'")
    datasets = pytest.importorskip("datasets", reason="runs the trainers of TRL: pip install -e '.[bench]'")
    seen = []
    tiny_model("random:llama?layers=1&hidden=16").save_pretrained(tmp_path / "model")
    tiny_tokenizer("random:llama").save_pretrained(tmp_path / "model")

    def cost(completions):
        seen.append([float(len(each)) for each in completions])
        return seen[-1]

    def reward():
        scorers = [PythonReward(spaces, output="reward"), PythonReward(cost, output="cost")]
        return LagrangianReward(scorers, Lagrangian(Limit("cost", 2.0), PID()))

    def trainer(lagrangian, steps):
        config = getattr(trl, f"{kind}Config")(
            output_dir=str(tmp_path / "out"),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=4,
            **{"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1},
        )
        return getattr(trl, f"{kind}Trainer")(
            model=str(tmp_path / "model"),
            reward_funcs=[lagrangian],
            callbacks=[lagrangian.callback],
            args=config,
            train_dataset=datasets.Dataset.from_list([{"prompt": "Say"}, {"prompt": "Tell"}]),
        )

    torch.manual_seed(0)
    first, expected = reward(), PID()
    trainer(first, 2).train()
    per_step = len(seen) // 2
    for step in range(2):
        values = [value for call in seen[step * per_step : (step + 1) * per_step] for value in call]
        expected.update(sum(values) / len(values), 2.0)
    assert len(seen) == 2 and all(len(call) == 8 for call in seen)
    assert first.objective.multipliers["cost"] == pytest.approx(expected.multiplier) and expected.multiplier > 0
    again = reward()
    resumed = trainer(again, 3)
    resumed.train(resume_from_checkpoint=True)
    expected.update(sum(seen[-1]) / len(seen[-1]), 2.0)
    assert again.objective.multipliers["cost"] == pytest.approx(expected.multiplier)
    assert any("multiplier" in name for row in resumed.state.log_history for name in row)
