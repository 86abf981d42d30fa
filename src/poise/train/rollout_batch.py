"""From completions to tensors: score them, drop those that cannot be trained on, and pad the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from poise.data.chat import ChatRenderer
from poise.errors import ConfigError, EngineError, FeedbackError
from poise.feedback.asking import ask, merged, name_of
from poise.models.decoder import pad_rows
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
    token_scores: Mapping[str, Tensor]  # channel -> [B, T], of those that speak of parts


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


def encode_rollouts(
    rollouts: Sequence[Rollout], renderer: ChatRenderer | None, device: torch.device
) -> EncodedRollouts:
    """Pad rollouts to tensors; a response without token ids is encoded from its text.

    The response mask is true on what the policy said, and on nothing that was said to it between its turns.

    Raises ConfigError for a policy without a renderer.
    """
    if renderer is None:
        raise ConfigError("a policy without a renderer cannot read text: use a trainer that collects its own rows")
    heads = [renderer.prompt_ids(rollout.prompt.messages, rollout.prompt.tools)[0] for rollout in rollouts]
    turns = [_turns(rollout.prompt, rollout.completion, renderer) for rollout in rollouts]
    tails = [[token for ids, _ in each for token in ids] for each in turns]
    flags = [[is_said for ids, is_said in each for _ in ids] for each in turns]
    said = [[token for ids, is_said in each if is_said for token in ids] for each in turns]
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
        token_scores={name: in_mask(rows, mask).to(device) for name, rows in _parts(rollouts, said, renderer)},
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
                raise EngineError(f"prompt {prompt.id}: two consecutive answers in a response of several turns")
            is_closed = len(said) + len(messages) < len(prompt.messages) + len(turns) or completion.finish == "stop"
            ids = renderer.response_ids(text_of(messages[-1]), finished=is_closed, whole=True)[0]
        else:
            ids = renderer.reply_ids(said[:-1], messages, prompt.tools)  # the answer before them has its own tokens
        found.append((ids, is_sampled))
        said += messages
    return found


def _parts(
    rollouts: Sequence[Rollout], said: Sequence[Sequence[int]], renderer: ChatRenderer
) -> Iterator[tuple[str, list[list[float]]]]:
    """Each channel that speaks of parts of responses, with a number for every token that the policy said."""
    names = {name for r in rollouts for name in (*r.scores.spans, *r.scores.token_values)}
    for name in sorted(names):
        yield name, [token_values(r, ids, name, renderer) for r, ids in zip(rollouts, said, strict=True)]


def token_values(rollout: Rollout, ids: Sequence[int], name: str, renderer: ChatRenderer) -> list[float]:
    """What a channel says of each token: the values of tokens, and each span's at the token that its text ends in.

    Raises FeedbackError for as many values as there are not tokens, and for a span outside the text.
    """
    given = rollout.scores.token_values.get(name, ())
    if given and len(given) != len(ids):
        raise FeedbackError(
            f"scorer {rollout.scores.source!r} gave {len(given)} values on channel {name!r} for {len(ids)} tokens; "
            "give one for each of `completion.token_ids`"
        )
    values, spans = [float(value) for value in given] or [0.0] * len(ids), rollout.scores.spans.get(name, ())
    ends = _text_ends(ids, rollout.completion.text, renderer) if spans else []
    for span in spans:
        if span.end > len(rollout.completion.text):
            raise FeedbackError(
                f"scorer {rollout.scores.source!r} gave channel {name!r} a span to character {span.end} of a response "
                f"of {len(rollout.completion.text)}"
            )
        values[next((i for i, end in enumerate(ends) if end >= span.end), len(ids) - 1)] += span.value
    return values


def _text_ends(ids: Sequence[int], text: str, renderer: ChatRenderer) -> list[int]:
    """Where in the text each token ends, in characters."""

    def read(count: int) -> str:
        return str(renderer.tokenizer.decode(list(ids[:count]), skip_special_tokens=True))

    start = read(len(ids)).rfind(text)  # engines strip what stands around the text
    if start < 0:
        raise FeedbackError(
            f"the text {text[:60]!r} differs from the text of its tokens, so its spans cannot be located"
        )
    return [len(read(count)) - start for count in range(1, len(ids) + 1)]


def _response_ids(completion: Completion, renderer: ChatRenderer) -> list[int]:
    if completion.token_ids:
        return list(completion.token_ids)
    finished = completion.finish == "stop" or not completion.text  # a row has at least one token
    return renderer.response_ids(completion.text, finished=finished)[0]


def in_mask(rows: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Rows of numbers, one for each true place of a row of the mask, as a tensor [B, T]; 0 elsewhere."""
    return torch.zeros(mask.shape).masked_scatter(mask, torch.tensor([value for row in rows for value in row]))
