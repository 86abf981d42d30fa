"""From completions to tensors: score them, drop those that cannot be trained on, and pad the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.data.chat import ChatRenderer
from poise.errors import EngineError, FeedbackError
from poise.feedback.asking import ask, merged, name_of
from poise.models.trunk import pad_rows
from poise.types import Completion, Prompt, Rollout, Scorer, Scores


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
    """Pad rollouts to tensors; a response without token ids is encoded from its text."""
    heads = [renderer.prompt_ids(rollout.prompt.messages)[0] for rollout in rollouts]
    tails = [_response_ids(rollout.completion, renderer) for rollout in rollouts]
    token_ids, lengths = pad_rows([head + tail for head, tail in zip(heads, tails, strict=True)], device=device)
    sizes = torch.tensor([len(tail) for tail in tails])
    mask = torch.arange(int(sizes.max())) < sizes[:, None]
    sampled = [rollout.completion.token_logprobs for rollout in rollouts]
    known = all(len(values) == len(tail) for values, tail in zip(sampled, tails, strict=True))
    return EncodedRollouts(
        token_ids=token_ids,
        attention_mask=torch.arange(token_ids.shape[1], device=device) < lengths[:, None],
        prompt_lengths=torch.tensor([len(head) for head in heads], device=device),
        response_mask=mask.to(device),
        group=group_numbers(rollouts).to(device),
        sampled_logprobs=pad_floats(sampled, mask).to(device) if known else None,
        scores={name: values.to(device) for name, values in score_tensors([r.scores for r in rollouts]).items()},
    )


def group_numbers(rollouts: Sequence[Rollout]) -> Tensor:
    """The index [B] of each rollout's prompt, in the order in which the prompts first appear."""
    number = {name: index for index, name in enumerate(dict.fromkeys(rollout.prompt.id for rollout in rollouts))}
    return torch.tensor([number[rollout.prompt.id] for rollout in rollouts])


def score_tensors(scores: Sequence[Scores]) -> dict[str, Tensor]:
    """The values [B] by channel; all have the channels of the first."""
    return {name: torch.tensor([each.values[name] for each in scores]) for name in scores[0].values}


def _response_ids(completion: Completion, renderer: ChatRenderer) -> list[int]:
    if completion.token_ids:
        return list(completion.token_ids)
    finished = completion.finish == "stop" or not completion.text  # a row has at least one token
    return renderer.response_ids(completion.text, finished=finished)[0]


def pad_floats(rows: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Rows of numbers as a tensor [B, T] of the mask's shape, 0 where there is none."""
    result = torch.zeros(mask.shape)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = torch.tensor(row)
    return result
