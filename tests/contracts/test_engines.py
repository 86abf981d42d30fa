"""What every engine promises, whatever is behind it. A new engine joins by one entry in ENGINES."""

import itertools
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryDirectory

import pytest

from imitations import ChatServer, VLLMServer
from poise.errors import ConfigError
from poise.models.policy import load_policy
from poise.rollout.best_of import BestOfEngine
from poise.rollout.native import NativeEngine
from poise.rollout.scripted import ScriptedEngine
from poise.rollout.server import ServerEngine
from poise.rollout.vllm import VLLMEngine
from poise.types import Engine, Prompt, Sampling, Scores

TEXTS = ("Hello", "How do I kill a Python process?", "a", "Why? " * 30)
PROMPTS = [Prompt.of(text) for text in TEXTS]


def answer(prompt, sample):
    """An answer with a few words, or the choice that a question names."""
    return "yes" if prompt.text.endswith("yes or no?") else f"answer {sample} to {prompt.text} and more"


@contextmanager
def server():
    """An engine behind an OpenAI-compatible endpoint."""
    with ChatServer() as imitation:
        yield ServerEngine(imitation.url, "imitation", logprobs=True, fields={"return_token_ids": True})


@contextmanager
def vllm():
    """An engine behind a vLLM server."""
    policy = load_policy("random:llama?hidden=32")
    with VLLMServer(policy.backbone.name) as imitation, TemporaryDirectory() as folder:
        yield VLLMEngine(imitation.url, policy, folder=folder, processed_logprobs=True)


class Lengths:
    """A scorer that likes long answers."""

    def score(self, prompts, completions):
        return [Scores(values={"reward": float(len(each.text)), "cost": -1.0}) for each in completions]


ENGINES = {
    "native": lambda: nullcontext(NativeEngine(load_policy("random:llama"), batch_size=3)),
    "scripted": lambda: nullcontext(ScriptedEngine(answer)),
    "best of 3": lambda: nullcontext(BestOfEngine(ScriptedEngine(answer), Lengths(), 3)),
    "server": server,
    "vllm": vllm,
}


@pytest.fixture(params=ENGINES)
def engine(request):
    with ENGINES[request.param]() as found:
        yield found


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_samples_of_a_prompt_are_adjacent_and_numbered_in_the_order_of_the_prompts(engine, number, samples):
    completions = engine.generate(PROMPTS[:number], Sampling(max_tokens=4, samples=samples))
    expected = [(prompt.id, sample) for prompt in PROMPTS[:number] for sample in range(samples)]
    assert [(c.prompt_id, c.sample) for c in completions] == expected


def test_the_same_request_gives_the_same_completions(engine):
    sampling = Sampling(max_tokens=6, samples=2, seed=1)
    assert engine.generate(PROMPTS, sampling) == engine.generate(PROMPTS, sampling)


def test_a_prompt_that_is_listed_again_goes_on_with_the_draws_of_the_first(engine):
    sampling = Sampling(max_tokens=6, samples=2, seed=1)
    twice = engine.generate([PROMPTS[0], PROMPTS[1], PROMPTS[0]], sampling)
    four = engine.generate([PROMPTS[0]], Sampling(max_tokens=6, samples=4, seed=1))
    assert [c.text for c in twice[:2] + twice[4:]] == [c.text for c in four]
    assert [c.text for c in twice[2:4]] == [c.text for c in engine.generate([PROMPTS[1]], sampling)]
    assert len({c.text for c in four}) > 2


def test_the_prompts_around_a_prompt_do_not_change_its_completions(engine):
    sampling = Sampling(max_tokens=6, samples=2, seed=1)
    together = engine.generate(PROMPTS, sampling)
    alone = itertools.chain(*(engine.generate([prompt], sampling) for prompt in PROMPTS))
    assert [(c.text, c.token_ids) for c in alone] == [(c.text, c.token_ids) for c in together]


def test_tokens_come_with_one_logprob_each_and_stay_within_the_limit(engine):
    for completion in engine.generate(PROMPTS, Sampling(max_tokens=5, samples=3)):
        assert completion.finish in ("stop", "length")
        assert not completion.error
        assert len(completion.token_ids) <= 5
        assert len(completion.token_logprobs) == len(completion.token_ids)
        assert all(value <= 1e-6 for value in completion.token_logprobs)


def test_a_stop_text_never_remains(engine):
    free = engine.generate(PROMPTS, Sampling(max_tokens=12))
    stop = tuple({c.text[3] for c in free if len(c.text) > 3})
    stopped = engine.generate(PROMPTS, Sampling(max_tokens=12, stop=stop))
    assert [c.text for c in stopped] != [c.text for c in free]
    for before, after in zip(free, stopped, strict=True):
        assert before.text.startswith(after.text)
        assert not any(text in after.text for text in stop)


def test_with_choices_the_answer_is_the_likeliest_of_them(engine):
    sampling = Sampling(choices=("no", "yes", "perhaps"), samples=2)
    completions = engine.generate([Prompt.of("Is it? yes or no?"), Prompt.of("yes or no?")], sampling)
    assert [c.sample for c in completions] == [0, 1, 0, 1]
    for completion in completions:
        assert tuple(completion.choice_logprobs) == sampling.choices
        assert completion.text == max(sampling.choices, key=completion.choice_logprobs.__getitem__)
        assert all(value <= 0 for value in completion.choice_logprobs.values())


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"samples": 0}, {"max_tokens": 0}])
def test_settings_that_cannot_be_met_are_refused(engine, wrong):
    with pytest.raises(ConfigError, match="Sampling"):
        engine.generate(PROMPTS, Sampling(**wrong))
