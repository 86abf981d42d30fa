"""What a completion is depends on its prompt, the seed and the policy: never on the batch it was made in."""

import itertools

import pytest
import torch

from poise.errors import ConfigError, EngineError
from poise.models.decoder import pad_rows
from poise.models.load import load_backbone
from poise.models.policy import Policy, load_policy
from poise.models.shared_rows import SharedRows
from poise.rollout.cache import RowCache
from poise.rollout.generation import FusedForward, LayerForward, StaticForward
from poise.rollout.native import NativeEngine
from poise.types import Prompt, Sampling

SAMPLING = Sampling(max_tokens=24, samples=2, seed=3)


def by_name(completions):
    """Token ids, finish and text by prompt and sample."""
    return {(c.prompt_id, c.sample): (c.token_ids, c.finish, c.text) for c in completions}


def engine_that_stops(policy, share=40, **settings):
    """An engine for which the first `share` of 260 tokens end a turn, so that rows leave at different steps."""
    engine = NativeEngine(policy, **settings)
    engine.renderer.stop_ids = frozenset(range(share))
    return engine


def test_order_batch_size_and_neighbours_do_not_change_a_completion(policy, prompts):
    expected = by_name(engine_that_stops(policy).generate(prompts, SAMPLING))
    assert len(set(expected.values())) == len(expected)
    for batch_size in (1, 3, 4, 100):
        found = engine_that_stops(policy, batch_size=batch_size).generate(prompts, SAMPLING)
        assert [(c.prompt_id, c.sample) for c in found] == [(p.id, s) for p in prompts for s in range(2)]
        assert by_name(found) == expected
    assert by_name(engine_that_stops(policy).generate(prompts[::-1], SAMPLING)) == expected
    for prompt in prompts:
        alone = by_name(engine_that_stops(policy).generate([prompt], SAMPLING))
        assert alone == {key: value for key, value in expected.items() if key[0] == prompt.id}


def test_more_samples_and_more_tokens_begin_with_the_same_ones(policy, prompts):
    few = by_name(NativeEngine(policy).generate(prompts, Sampling(max_tokens=5, samples=1)))
    many = by_name(NativeEngine(policy).generate(prompts, Sampling(max_tokens=9, samples=3)))
    assert all(many[key][0][: len(tokens)] == tokens for key, (tokens, _, _) in few.items())


def test_the_seed_decides(policy, prompts):
    first, second, again = (
        by_name(NativeEngine(policy).generate(prompts, Sampling(max_tokens=6, seed=seed))) for seed in (1, 2, 1)
    )
    assert first == again != second


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("reference", [False, True])
def test_logprobs_of_the_sampler_are_those_of_the_policy(policy, prompts, temperature, reference):
    engine = engine_that_stops(policy, reference=reference)
    completions = engine.generate(prompts, Sampling(max_tokens=24, samples=2, temperature=temperature))
    heads = [engine.renderer.prompt_ids(p.messages)[0] for p in prompts for _ in range(2)]
    rows = [head + list(c.token_ids) for head, c in zip(heads, completions, strict=True)]
    ids, lengths = pad_rows(rows, 0)
    starts = torch.tensor([len(head) for head in heads])
    mask = torch.arange(int((lengths - starts).max()))[None] < (lengths - starts)[:, None]
    expected, _ = policy.logprobs(SharedRows.of(ids, starts, mask), reference=reference, temperature=temperature)
    found = torch.tensor(list(itertools.chain(*(c.token_logprobs for c in completions))))
    torch.testing.assert_close(found, expected[mask].detach(), atol=1e-4, rtol=0)


def test_policy_and_reference_answer_differently(policy, prompts):
    policy.version = 4
    sampling = Sampling(max_tokens=12, temperature=0)
    acting = NativeEngine(policy).generate(prompts, sampling)
    reference = NativeEngine(policy, reference=True).generate(prompts, sampling)
    assert by_name(acting) != by_name(reference)
    assert {c.policy_version for c in acting} == {4}
    assert {c.policy_version for c in reference} == {0}


def test_greedy_is_what_transformers_generates(policy, prompts):
    engine = NativeEngine(policy)
    completions = engine.generate(prompts, Sampling(max_tokens=20, temperature=0))
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([engine.renderer.prompt_ids(prompt.messages)[0]])
        with policy.policy_mode():
            whole = policy.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=0
            )
        assert whole[0, ids.shape[1] :].tolist() == list(completion.token_ids)


def prefilled_shapes(monkeypatch):
    """The shapes of the prompts of every prefill from now on."""
    shapes = []
    for kind in (FusedForward, LayerForward):

        def recording(self, ids, *rest, prefill=kind.prefill):
            shapes.append(tuple(ids.shape))
            return prefill(self, ids, *rest)

        monkeypatch.setattr(kind, "prefill", recording)
    return shapes


def test_prompts_enter_while_others_are_in_progress_and_change_nothing(policy, prompts, monkeypatch):
    expected = by_name(engine_that_stops(policy).generate(prompts, SAMPLING))
    assert len({len(tokens) for tokens, _, _ in expected.values()}) > 2
    shapes, steps, begin_step = prefilled_shapes(monkeypatch), [], RowCache.begin_step

    def counting(self):
        steps.append(self.count)
        begin_step(self)

    monkeypatch.setattr(RowCache, "begin_step", counting)
    assert by_name(engine_that_stops(policy, batch_size=4).generate(prompts, SAMPLING)) == expected
    assert len(shapes) > 2
    assert max(steps) == 4
    needed = sum(len(tokens) - 1 for tokens, _, _ in expected.values())
    assert sum(steps) == needed, "a row that has ended was computed"


@pytest.mark.parametrize("model", ["random:llama", "random:qwen"])
def test_steps_of_few_shapes_draw_the_same(model, prompts, monkeypatch):
    policy = load_policy(model)
    expected = by_name(engine_that_stops(policy, batch_size=6).generate(prompts, SAMPLING))
    shapes, look = set(), RowCache.look

    def recording(self, span, width, *, masked=True):
        shapes.add((span, width))
        look(self, span, width, masked=masked)

    def static(self, decoder, columns, dtype):
        return StaticForward(decoder, adapter=policy.adapter, dtype=dtype, columns=columns)

    monkeypatch.setattr(RowCache, "look", recording)
    monkeypatch.setattr(NativeEngine, "_forward", static)
    assert by_name(engine_that_stops(policy, batch_size=6).generate(prompts, SAMPLING)) == expected
    assert {span for span, _ in shapes} <= {1, 2, 4, 6}
    assert len({width for _, width in shapes}) <= 3


def test_a_group_of_samples_is_prefilled_once(policy, prompts, monkeypatch):
    shapes = prefilled_shapes(monkeypatch)
    engine = NativeEngine(policy)
    engine.generate(prompts[:3], Sampling(max_tokens=3, samples=5))
    assert shapes == [(3, max(len(engine.renderer.prompt_ids(p.messages)[0]) for p in prompts[:3]))]


def test_finish_says_whether_the_turn_was_ended(policy, prompts):
    completions = engine_that_stops(policy, share=20).generate(prompts, Sampling(max_tokens=16, samples=4))
    assert {c.finish for c in completions} == {"stop", "length"}
    for completion in completions:
        ends = [token < 20 for token in completion.token_ids]
        assert not any(ends[:-1])
        assert ends[-1] == (completion.finish == "stop")
        assert completion.finish == "stop" or len(ends) == 16
        assert len(completion.token_logprobs) == len(ends)


def test_a_stop_text_ends_a_completion_and_is_cut_off(policy, prompts):
    free = NativeEngine(policy).generate(prompts, Sampling(max_tokens=20))
    stops = tuple({c.text[8:10] for c in free if "\ufffd" not in c.text[8:10] and len(c.text) > 9})
    assert stops
    stopped = NativeEngine(policy).generate(prompts, Sampling(max_tokens=20, stop=stops))
    assert any(c.finish == "stop" for c in stopped)
    for before, after in zip(free, stopped, strict=True):
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        assert before.text.startswith(after.text)
        assert not any(stop in after.text for stop in stops)
        assert (after.finish == "stop") == (before.finish == "stop" or any(stop in before.text for stop in stops))


def test_choices_are_weighed_exactly_and_the_likeliest_is_given(policy, prompts):
    engine, choices = NativeEngine(policy), ("yes", "no", "I do not know", "n")
    completions = engine.generate(prompts, Sampling(choices=choices, samples=2))
    for index, completion in enumerate(completions):
        prompt = prompts[index // 2]
        assert (completion.prompt_id, completion.sample) == (prompt.id, index % 2)
        head = engine.renderer.prompt_ids(prompt.messages)[0]
        for choice, value in completion.choice_logprobs.items():
            tail = engine.renderer.response_ids(choice, finished=False)[0]
            with torch.no_grad(), policy.policy_mode():
                logits = policy.model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(tail)[:, None]).sum().item()
            assert value == pytest.approx(expected, abs=1e-4)
        assert tuple(completion.choice_logprobs) == choices
        assert completion.text == max(choices, key=completion.choice_logprobs.__getitem__)


def test_an_empty_choice_is_refused(policy, prompts):
    with pytest.raises(EngineError, match="an empty choice has no tokens to compare"):
        NativeEngine(policy).generate(prompts, Sampling(choices=("yes", "")))


def test_a_group_larger_than_the_batch_is_still_made_whole(policy, prompts):
    completions = NativeEngine(policy, batch_size=2).generate(prompts[:2], Sampling(max_tokens=3, samples=5))
    assert len(completions) == 10


def test_a_prompt_given_twice_is_answered_twice_as_two_samples_of_it_would_be(policy):
    first, second = NativeEngine(policy).generate([Prompt.of("Hello")] * 2, Sampling(max_tokens=5))
    samples = NativeEngine(policy).generate([Prompt.of("Hello")], Sampling(max_tokens=5, samples=2))
    assert first.token_ids != second.token_ids
    assert [first.token_ids, second.token_ids] == [sample.token_ids for sample in samples]


def test_long_prompts_are_shortened_as_the_renderer_does(policy):
    engine = NativeEngine(policy, max_prompt_tokens=64)
    prompt = Prompt.of("x" * 500)
    assert len(engine.renderer.prompt_ids(prompt.messages)[0]) <= 64
    assert len(engine.generate([prompt], Sampling(max_tokens=2))) == 1


def test_a_completion_that_could_leave_the_context_is_refused(policy):
    engine, prompt = NativeEngine(policy, max_prompt_tokens=2000), Prompt.of("x" * 1990)
    length = len(engine.renderer.prompt_ids(prompt.messages)[0])
    with pytest.raises(ConfigError, match=r"exceed the model's context of 2048 tokens: lower max_tokens"):
        engine.generate([prompt], Sampling(max_tokens=2049 - length))
    assert len(engine.generate([prompt], Sampling(max_tokens=2048 - length, stop=tuple("abcdefgh")))) == 1


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_row(policy, batch_size):
    with pytest.raises(ConfigError, match="batch_size"):
        NativeEngine(policy, batch_size=batch_size)


def test_every_end_token_of_the_generation_config_ends_an_answer(policy: Policy, tmp_path):
    config = policy.backbone.model.generation_config
    before, config.eos_token_id = config.eos_token_id, [0, *range(100, 180)]
    try:
        engine = NativeEngine(policy)
        found = engine.generate([Prompt.of("Hello"), Prompt.of("Bye")], Sampling(max_tokens=40, samples=4))
        policy.save_pretrained(tmp_path, merge=True)
    finally:
        config.eos_token_id = before
    ends = {0, *range(100, 180)}
    assert all(completion.finish == "stop" for completion in found)
    assert all(completion.token_ids[-1] in ends for completion in found)
    assert not any(ends & set(completion.token_ids[:-1]) for completion in found)
    assert load_backbone(str(tmp_path)).renderer().stop_ids == ends
