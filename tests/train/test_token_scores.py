"""Scores of parts of a response: spans of its text and single tokens, from the scorer to the rewards of tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poise.data.rollouts import read_rollouts, write_rollouts
from poise.errors import DataError, FeedbackError
from poise.feedback.asking import merged
from poise.train.algorithms import RLOO
from poise.train.experience import experiences
from poise.train.objectives import Lagrangian, Limit, Unconstrained
from poise.types import Scores, Span


class Parts:
    """Facts: one for the first two characters; cost: a tenth for each token, and one more for the whole response."""

    def score(self, prompts, completions):
        return [
            Scores(
                values={"cost": 0.1 * len(c.token_ids) + 1.0, "reward": 2.0},
                spans={"facts": (Span(begin=0, end=2, value=1.0),) if len(c.text) > 1 else ()},
                token_values={"cost": (0.1,) * len(c.token_ids)},
            )
            for c in completions
        ]


def free(record):
    return replace(record, kl_coef=0.0, kl=replace(record.kl, score_clip=None))


def test_a_channel_of_parts_has_their_sum_and_what_is_unscorable_has_no_parts():
    spans = {"facts": (Span(begin=0, end=4, value=1.0), Span(begin=4, end=6, value=-3.0))}
    assert Scores(values={"reward": 1.0}, spans=spans).values == {"facts": -2.0, "reward": 1.0}
    assert Scores(values={}, spans=spans, unscorable="no").spans == {}
    both = merged((("a", Scores(values={}, spans=spans)), ("b", Scores(values={}, token_values={"cost": (1.0, 2.0)}))))
    assert (both.values, both.spans) == ({"facts": -2.0, "cost": 3.0}, spans)
    with pytest.raises(DataError, match="begin < end"):
        Span(begin=3, end=3, value=1.0)


def test_rewards_stand_on_the_tokens_of_their_parts_and_the_rest_on_the_last(make_trainer, prompts):
    objective = Lagrangian(Limit("cost", 0.5, scale=2.0))
    trainer = make_trainer(scorers=[Parts()], objective=objective, algorithm=free(RLOO))
    batch = trainer.collect(prompts)
    seen = experiences(batch, trainer.algorithm, objective)
    for row, rollout in enumerate(trainer.rollouts):
        count = len(rollout.completion.token_ids)
        rewards = seen["cost"].rewards[row]
        expected = [0.2] * count
        expected[-1] += 2.0
        assert rewards[:count].tolist() == pytest.approx(expected)
        assert not rewards[count:].any()
        assert seen["reward"].rewards[row].nonzero().flatten().tolist() == [count - 1]


def test_a_span_is_paid_for_at_the_token_that_its_text_ends_in(make_trainer, prompts):
    trainer = make_trainer(scorers=[Parts()], objective=Unconstrained("facts"), algorithm=free(RLOO))
    batch = trainer.collect(prompts)
    rewards = experiences(batch, trainer.algorithm, trainer.objective)["facts"].rewards
    tokenizer = trainer.renderer.tokenizer
    told = 0
    for row, rollout in enumerate(trainer.rollouts):
        if len(rollout.completion.text) < 2:
            continue
        (place,) = rewards[row].nonzero().flatten().tolist()
        ids, text = list(rollout.completion.token_ids), rollout.completion.text
        before = tokenizer.decode(ids[:place], skip_special_tokens=True)
        upto = tokenizer.decode(ids[: place + 1], skip_special_tokens=True)
        lead = tokenizer.decode(ids, skip_special_tokens=True).find(text)
        assert len(before) - lead < 2 <= len(upto) - lead
        told += 1
    assert told


def test_values_that_do_not_fit_the_response_are_errors_that_name_the_scorer(make_trainer, prompts):
    class Wrong:
        def __init__(self, **parts):
            self.parts = parts

        def score(self, prompts, completions):
            return [Scores(values={"cost": 0.0}, **self.parts) for _ in completions]

    for parts, reason in (
        ({"token_values": {"reward": (1.0,) * 99}}, "'Wrong' gave 99 values on channel 'reward' for"),
        ({"spans": {"reward": (Span(begin=0, end=9999, value=1.0),)}}, "a span to character 9999 of a response of"),
    ):
        trainer = make_trainer(scorers=[Wrong(**parts)])
        with pytest.raises(FeedbackError, match=reason):
            trainer.collect(prompts)


def test_parts_are_read_back_as_they_were(make_trainer, prompts, tmp_path):
    trainer = make_trainer(scorers=[Parts()], objective=Unconstrained("facts"), algorithm=free(RLOO))
    trainer.collect(prompts)
    write_rollouts(tmp_path / "rollouts.jsonl", trainer.rollouts)
    assert read_rollouts(tmp_path / "rollouts.jsonl") == tuple(trainer.rollouts)
