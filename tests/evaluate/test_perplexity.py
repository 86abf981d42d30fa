"""Perplexity and KL both ways, against log-probabilities that are summed by hand."""

import math

import pytest
import torch

from poise.errors import DataError
from poise.evaluate.divergence import forward_sequence_kl, sequence_kl
from poise.evaluate.perplexity import perplexity, sample_perplexity
from poise.models.adapters import Lora
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.rollout.native import NativeEngine
from poise.train.responses import sequence_logprobs
from poise.types import Completion, Demonstration, Prompt, Rollout, Sampling, Scores

SAMPLES = 48
TEXTS = [
    Demonstration(prompt=Prompt.of("Once"), response=end) for end in (" upon a time", " more", " or twice, it said")
]


@pytest.fixture(scope="module")
def policy():
    found = Policy(load_backbone("random:llama?layers=2"), Lora(top=0.5), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.5, generator=generator)
    return found


@pytest.fixture(scope="module")
def answers(policy):
    """Of the policy, and of its start."""
    prompts = [Prompt.of("Why?"), Prompt.of("How so?")]
    sampling = Sampling(max_tokens=8, samples=SAMPLES, seed=1)
    owners = [prompt for prompt in prompts for _ in range(SAMPLES)]
    return [
        [
            Rollout(prompt=prompt, completion=each, scores=Scores(values={}))
            for prompt, each in zip(
                owners, NativeEngine(policy, reference=side).generate(prompts, sampling), strict=True
            )
        ]
        for side in (False, True)
    ]


def test_perplexity_is_a_mean_over_texts_of_their_own_perplexities(policy):
    renderer = policy.backbone.renderer()
    rows = [renderer.encode(text.prompt, text.response, finished=False) for text in TEXTS]
    sums = sequence_logprobs(policy, rows, tokens=4096).tolist()
    own = [math.exp(-each / (len(row.ids) - row.prompt_length)) for each, row in zip(sums, rows, strict=True)]
    assert perplexity(policy, TEXTS) == pytest.approx(sum(own) / 3)
    assert perplexity(policy, TEXTS) != pytest.approx(math.exp(-sum(sums) / sum(len(r.ids) for r in rows)), rel=1e-3)


def test_samples_are_as_strange_as_the_start_finds_them_and_empty_ones_say_nothing(policy, answers):
    said, of_start = answers
    by_start = [-sum(r.completion.token_logprobs) / len(r.completion.token_ids) for r in of_start]
    assert sample_perplexity(policy, of_start) == pytest.approx(sum(map(math.exp, by_start)) / (2 * SAMPLES), rel=1e-4)
    empty = Rollout(prompt=said[0].prompt, completion=Completion(prompt_id="", text=""), scores=Scores(values={}))
    assert sample_perplexity(policy, [*said, empty]) == pytest.approx(sample_perplexity(policy, said))
    with pytest.raises(DataError, match="every continuation is empty"):
        sample_perplexity(policy, [empty])


def test_either_kl_is_above_zero_where_the_policy_has_moved_and_zero_for_the_start_itself(policy, answers):
    said, of_start = answers
    assert sequence_kl(policy, said, 1.0).value > 0 < forward_sequence_kl(policy, of_start).value
    start = Policy(policy.backbone, Lora(top=0.5), adapter="untrained")
    assert forward_sequence_kl(start, of_start).value == pytest.approx(0, abs=1e-4)
