"""From completions to tensors: score them, drop those that cannot be trained on, and pad the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from poise.data.chat import ChatRenderer
from poise.errors import EngineError, FeedbackError
from poise.feedback.asking import ask, merged, name_of
from poise.models.trunk import pad_rows
from poise.types import Completion, Prompt, Rollout, Scorer, Scores, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRollouts:
    """Rollouts as right-padded tensors, before any model has seen them."""

    token_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] bool
    prompt_lengths: Tensor  # [B]
    response_mask: Tensor  # [B, T] bool
    group: Tensor  # [B] index of the prompt, equal for samples of one prompt
    sampled_logprobs: Tensor | None  # [B, T] nats, None if the engine did not say them for every token
    scores: Mapping[str, Tensor]  # channel -> [B]


def score_all(
    scorers: Sequence[Scorer], prompts: Sequence[Prompt], completions: Sequence[Completion], samples: int
) -> list[Rollout]:
    """Rollouts of the completions, `samples` adjacent ones per prompt, with the channels of all scorers side by side.

    Completions that failed, or that lack the value of a channel, are left out. Raises EngineError if all failed,
    FeedbackError if none of the others has every value or a scorer breaks its promise (`feedback.asking.ask`), and
    ConfigError if two scorers fill one channel.
    """
    owners = [prompt for prompt in prompts for _ in range(samples)]
    kept = [i for i, completion in enumerate(completions) if completion.finish != "error"]
    if not kept:
        reason = completions[0].error or "no reason given"
        raise EngineError(f"all {len(completions)} completions failed; the first: {reason}")
    owners, completions = [owners[i] for i in kept], [completions[i] for i in kept]
    given = [[(name_of(scorer), scores) for scores in ask(scorer, owners, completions)] for scorer in scorers]
    found = [merged(row) for row in zip(*given, strict=True)]
    channels = {name for scores in found for name in scores.values}
    rollouts = [
        Rollout(prompt=prompt, completion=completion, scores=scores)
        for prompt, completion, scores in zip(owners, completions, found, strict=True)
        if scores.values.keys() == channels
    ]
    if not rollouts or not channels:
        reasons = [f"{name}: {scores.unscorable}" for row in given for name, scores in row if scores.unscorable]
        raise FeedbackError(
            f"none of {len(completions)} completions has a value in every channel; the first: "
            f"{reasons[0] if reasons else 'no reason given'}"
        )
    return rollouts


def encode_rollouts(rollouts: Sequence[Rollout], renderer: ChatRenderer, device: torch.device) -> EncodedRollouts:
    """Pad rollouts to tensors; a response without token ids is encoded from its text.

    The response mask is true on what the policy said, and on nothing that was said to it between its turns.
    """
    heads = [renderer.prompt_ids(rollout.prompt.messages, rollout.prompt.tools)[0] for rollout in rollouts]
    turns = [_turns(rollout.prompt, rollout.completion, renderer) for rollout in rollouts]
    tails = [[token for ids, _ in each for token in ids] for each in turns]
    flags = [[is_said for ids, is_said in each for _ in ids] for each in turns]
    token_ids, lengths = pad_rows([head + tail for head, tail in zip(heads, tails, strict=True)], device=device)
    mask = pad_rows(flags)[0].bool()
    sampled = [rollout.completion.token_logprobs for rollout in rollouts]
    known = all(len(values) == sum(row) for values, row in zip(sampled, flags, strict=True))
    return EncodedRollouts(
        token_ids=token_ids,
        attention_mask=torch.arange(token_ids.shape[1], device=device) < lengths[:, None],
        prompt_lengths=torch.tensor([len(head) for head in heads], device=device),
        response_mask=mask.to(device),
        group=group_numbers(rollouts).to(device),
        sampled_logprobs=in_mask(sampled, mask).to(device) if known else None,
        scores={name: values.to(device) for name, values in score_tensors([r.scores for r in rollouts]).items()},
    )


def group_numbers(rollouts: Sequence[Rollout]) -> Tensor:
    """The index [B] of each rollout's prompt, in the order in which the prompts first appear."""
    number = {name: index for index, name in enumerate(dict.fromkeys(rollout.prompt.id for rollout in rollouts))}
    return torch.tensor([number[rollout.prompt.id] for rollout in rollouts])


def score_tensors(scores: Sequence[Scores]) -> dict[str, Tensor]:
    """The values [B] by channel; all have the channels of the first."""
    return {name: torch.tensor([each.values[name] for each in scores]) for name in scores[0].values}


def _turns(prompt: Prompt, completion: Completion, renderer: ChatRenderer) -> list[tuple[list[int], bool]]:
    """The tokens of each turn of a response, and whether the policy said them."""
    turns = completion.turns
    if not turns:
        return [(_response_ids(completion, renderer), True)]
    if all(turn.token_ids for turn in turns):
        return [(list(turn.token_ids), turn.is_sampled) for turn in turns]
    found, said = [], list(prompt.messages)
    for is_sampled, group in groupby(turns, key=lambda turn: turn.is_sampled):
        messages = [turn.message for turn in group]
        if is_sampled:
            if len(messages) > 1:
                raise EngineError(f"prompt {prompt.id}: two answers follow one another in a response of several turns")
            is_closed = len(said) + len(messages) < len(prompt.messages) + len(turns) or completion.finish == "stop"
            ids = renderer.response_ids(text_of(messages[-1]), finished=is_closed, whole=True)[0]
        else:
            ids = renderer.reply_ids(said[:-1], messages, prompt.tools)  # the answer before them has its own tokens
        found.append((ids, is_sampled))
        said += messages
    return found


def _response_ids(completion: Completion, renderer: ChatRenderer) -> list[int]:
    if completion.token_ids:
        return list(completion.token_ids)
    finished = completion.finish == "stop" or not completion.text  # a row has at least one token
    return renderer.response_ids(completion.text, finished=finished)[0]


def in_mask(rows: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Rows of numbers, one for each true place of a row of the mask, as a tensor [B, T]; 0 elsewhere."""
    return torch.zeros(mask.shape).masked_scatter(mask, torch.tensor([value for row in rows for value in row]))
