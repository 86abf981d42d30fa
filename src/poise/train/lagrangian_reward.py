"""Our limits in the trainers of TRL: a reward function for GRPO and RLOO, and the callback that moves multipliers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainerCallback

from poise.errors import ConfigError, TrainingError
from poise.feedback.asking import ask, merged, name_of
from poise.files import write_json
from poise.train.limits import group_masks
from poise.train.objectives import Lagrangian
from poise.types import Completion, Message, Prompt, RolloutTurn, Scorer

_FILE = "poise_multipliers.json"
_NOT_COLUMNS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})


class LagrangianReward:
    """The reward of a completion less the price of its costs, as one of the `reward_funcs` of TRL's GRPO or RLOO.

        (reward - sum l_i * cost_i) / (1 + sum l_i)

    The multipliers l_i are those of the objective, which `callback` updates at the end of each step from the scores of
    the completions of that step; those of an evaluation are not counted. Multipliers are stored in each checkpoint of
    the trainer and go on from there when it resumes.

        reward = LagrangianReward(scorers, Lagrangian(Limit("cost", 0.1), PID()))
        GRPOTrainer(..., reward_funcs=[reward], callbacks=[reward.callback])

    A completion that cannot be scored has the mean of the others of its prompt, so that nothing is learned from it: TRL
    takes a missing reward for 0. Without another of its prompt it has 0.

    scorers    fill the channel "reward" and those of the limits, as `feedback.named.scorers_by_channel` does by name
    objective  the limits, each with a controller

    >>> from poise.feedback.python_rewards import PythonReward
    >>> from poise.train.objectives import PID, Limit
    >>> length = PythonReward(lambda completions: [len(each) for each in completions], output="reward")
    >>> spaces = PythonReward(lambda completions: [each.count(" ") for each in completions], output="cost")
    >>> reward = LagrangianReward([length, spaces], Lagrangian(Limit("cost", 1.0), PID(multiplier=1.0)))
    >>> reward(prompts=["Say it", "Say it"], completions=["a b c", "abc"])
    [1.5, 1.5]
    """

    __name__ = "lagrangian_reward"  # under which TRL logs it

    def __init__(self, scorers: Sequence[Scorer], objective: Lagrangian):
        self.scorers, self.objective = list(scorers), objective
        self.callback = LagrangianCallback(self)
        self.is_watched = False  # whether a trainer calls the callback
        self.metrics: dict[str, float] = {}  # of the last step: multipliers, excesses, whether the limits were met
        self._seen: list[_Seen] = []  # since the step began

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One reward per completion, in the signature of TRL's reward functions.

        Raises:
            ConfigError: the callback was not given to the trainer, or a channel is missing.
            FeedbackError: a scorer failed.
        """
        self._require_callback(columns.get("trainer_state"))
        asked = [_prompt(prompt, row) for prompt, row in zip(prompts, _rows(columns, len(prompts)), strict=True)]
        ids = columns.get("completion_ids") or [()] * len(completions)
        made = [_completion(p, each, tokens) for p, each, tokens in zip(asked, completions, ids, strict=True)]
        rewards = self._rewards(asked, made)
        log = columns.get("log_metric")
        if log is not None:
            self._log(log, rewards)
        return _filled(rewards, [prompt.id for prompt in asked])

    def _require_callback(self, state: Any) -> None:
        if state is not None and state.global_step > 0 and not self.is_watched:
            raise ConfigError(
                "the trainer was not given the callback of its LagrangianReward, so no multiplier would ever move: "
                "pass callbacks=[reward.callback] beside reward_funcs=[reward]"
            )

    def _rewards(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        """The mixed reward of each completion; None for those that lack a channel."""
        given = [(name_of(scorer), ask(scorer, prompts, completions)) for scorer in self.scorers]
        rows = [merged([(name, scores[i]) for name, scores in given]) for i in range(len(completions))]
        channels = ["reward", *dict.fromkeys(limit.channel for limit in self.objective.limits)]
        whole = [i for i, row in enumerate(rows) if all(channel in row.values for channel in channels)]
        found: list[float | None] = [None] * len(rows)
        if not whole:
            _require_channels(channels, {channel for row in rows for channel in row.values})
            return found
        scores = {name: torch.tensor([rows[i].values[name] for i in whole], dtype=torch.float64) for name in channels}
        for name, values in scores.items():
            if not bool(values.isfinite().all()):
                raise TrainingError(f"scores on channel {name!r} are NaN or infinite: no reward can be made of them")
        groups = group_masks(self.objective.groups, [prompts[i] for i in whole])
        mixed = self.objective.mix(self.objective.shape_scores(scores, groups), groups)
        self._seen.append((scores, groups))
        for i, value in zip(whole, mixed.tolist(), strict=True):
            found[i] = value
        return found

    def _log(self, log: Callable[[str, float], None], rewards: Sequence[float | None]) -> None:
        for name, value in self.metrics.items():
            log(name, value)
        log("unscorable", sum(reward is None for reward in rewards) / len(rewards))

    def begin_step(self) -> None:
        """Forget what was scored outside a step, such as in an evaluation."""
        self._seen.clear()

    def end_step(self) -> dict[str, float]:
        """Move the multipliers by what this step has scored in all processes; returns the objective's metrics."""
        from accelerate.utils import gather_object

        seen = gather_object(list(self._seen))
        self._seen.clear()
        if not seen:  # a step on completions that an earlier one sampled
            return {}
        scores, groups = (_joined([part[place] for part in seen]) for place in (0, 1))
        self.metrics = self.objective.update(scores, groups)
        return self.metrics

    def save(self, folder: str | Path) -> None:
        """Write what moves of the objective into a checkpoint."""
        write_json(Path(folder) / _FILE, self.objective.state_dict())

    def load(self, folder: str | Path) -> None:
        """Go on from a checkpoint. Raises TrainingError if it has no multipliers."""
        file = Path(folder) / _FILE
        if not file.is_file():
            raise TrainingError(
                f"{folder} has no {_FILE}: its multipliers are not known. Resume from a checkpoint that a trainer with "
                "this callback wrote, in its output folder, or begin anew"
            )
        self.objective.load_state_dict(json.loads(file.read_text("utf-8")))


_Seen = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


class LagrangianCallback(TrainerCallback):
    """Moves the multipliers of a `LagrangianReward` at the end of each step, and keeps them in the checkpoints."""

    def __init__(self, reward: LagrangianReward):
        self.reward = reward

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Go on from the checkpoint that the trainer goes on from."""
        self.reward.is_watched = True
        if state.global_step > 0:
            self.reward.load(_checkpoint(args, state))

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Forget what an evaluation has scored."""
        self.reward.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Move the multipliers."""
        self.reward.end_step()

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Store them beside the trainer's own state."""
        if state.is_world_process_zero:
            self.reward.save(_checkpoint(args, state))


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _require_channels(wanted: Sequence[str], given: set[str]) -> None:
    """Raise ConfigError where completions have scores, but none of them on a channel that is wanted."""
    if given and (missing := [channel for channel in wanted if channel not in given]):
        raise ConfigError(
            f"no scorer gives the channel {', '.join(missing)}; they give {', '.join(sorted(given))}. Name one for it, "
            'as in scorers_by_channel({"reward": ..., "cost": ...})'
        )


def _rows(columns: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """The further columns of each row."""
    listed = {
        name: values
        for name, values in columns.items()
        if name not in _NOT_COLUMNS and name != "completion_ids" and isinstance(values, list) and len(values) == number
    }
    return [{name: values[i] for name, values in listed.items()} for i in range(number)]


def _prompt(said: Any, row: Mapping[str, Any]) -> Prompt:
    return Prompt.of(said if isinstance(said, str) else cast("list[Message]", said), **row)


def _completion(prompt: Prompt, said: Any, token_ids: Sequence[int]) -> Completion:
    """A completion as TRL gives it: a text, or the messages of one turn or several."""
    if isinstance(said, str):
        return Completion(prompt_id=prompt.id, text=said, token_ids=tuple(token_ids))
    answers = [str(message.get("content") or "") for message in said if message["role"] == "assistant"]
    turns = tuple(RolloutTurn(message=message) for message in said) if len(said) > 1 else ()
    return Completion(prompt_id=prompt.id, text="\n\n".join(answers), token_ids=tuple(token_ids), turns=turns)


def _filled(rewards: Sequence[float | None], prompts: Sequence[str]) -> list[float]:
    """The rewards, with the mean of the same prompt where there is none."""
    known: dict[str, list[float]] = {}
    for reward, prompt in zip(rewards, prompts, strict=True):
        if reward is not None:
            known.setdefault(prompt, []).append(reward)
    means = {prompt: sum(values) / len(values) for prompt, values in known.items()}
    return [means.get(p, 0.0) if reward is None else reward for reward, p in zip(rewards, prompts, strict=True)]


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
