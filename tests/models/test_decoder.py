"""The backbone run in parts is the model that transformers runs whole."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families import CONTEXT, FEATURES, model_with
from poise.errors import ModelError
from poise.models.decoder import Decoder, pad_rows


@pytest.fixture(params=["llama", "gemma3_text", "granite", "phi", "gpt_neox", "gpt2"])
def model(request):
    features = FEATURES[request.param]
    return model_with(request.param, features | ({"sliding_window": CONTEXT} if "sliding_window" in features else {}))


@pytest.fixture
def tokens():
    return torch.randint(2, 60, (3, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_hidden_states_and_logits_are_those_of_transformers(model, tokens):
    decoder = Decoder(model)
    theirs = model(tokens, output_hidden_states=True)
    hidden = decoder.embed(tokens)
    for layer in range(decoder.depth):
        torch.testing.assert_close(hidden, theirs.hidden_states[layer], atol=1e-5, rtol=1e-5)
        hidden = decoder.run(hidden, start=layer, stop=layer + 1)
    torch.testing.assert_close(decoder.final_norm(hidden), theirs.hidden_states[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoder.logits(hidden), theirs.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("border", range(5))
def test_two_parts_are_the_whole_wherever_they_meet(model, tokens, border):
    decoder = Decoder(model)
    whole = decoder.run(decoder.embed(tokens))
    assert torch.equal(decoder.run(decoder.run(decoder.embed(tokens), stop=border), start=border), whole)


@torch.no_grad()
def test_real_tokens_do_not_see_the_padding_behind_them(model, tokens):
    decoder = Decoder(model)
    alone = decoder.run(decoder.embed(tokens[:1, :7]))
    for fill in (0, 59):
        padded, lengths = pad_rows([tokens[0, :7].tolist(), tokens[1].tolist()], fill)
        assert lengths.tolist() == [7, 11]
        torch.testing.assert_close(decoder.run(decoder.embed(padded))[:1, :7], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_positions_are_those_that_were_given(model, tokens):
    decoder, positions = Decoder(model), torch.arange(11)[None] * 3 + 2
    hidden = decoder.run(decoder.embed(tokens, positions), positions=positions)
    theirs = model(tokens, position_ids=positions, attention_mask=torch.ones_like(tokens)).logits
    torch.testing.assert_close(decoder.logits(hidden), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_left_padding_with_its_mask_and_positions_changes_nothing(model, tokens):
    decoder, left = Decoder(model), 4
    whole = decoder.run(decoder.embed(tokens))
    padded = torch.cat([torch.zeros(3, left, dtype=torch.long), tokens], 1)
    positions = (torch.arange(padded.shape[1]) - left).clamp(min=0)[None]
    at = torch.arange(padded.shape[1])
    mask = (at[:, None] >= at) & (at >= left) | (at[:, None] == at)
    hidden = decoder.run(decoder.embed(padded, positions), positions=positions, mask=mask[None, None])
    torch.testing.assert_close(hidden[:, left:], whole, atol=1e-5, rtol=1e-5)


def test_a_family_that_is_not_supported_is_named_beside_those_that_are():
    config = AutoConfig.for_model("bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, is_decoder=True)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"family 'bert' is not supported; supported families: llama.*gpt2"):
        Decoder(model)


def test_padding_keeps_the_rows_and_counts_their_tokens():
    padded, lengths = pad_rows([[5, 6, 7], [], [8]], 9)
    assert padded.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert lengths.tolist() == [3, 0, 1]
    padded, lengths = pad_rows([], 9)
    assert (tuple(padded.shape), tuple(lengths.shape)) == ((0, 0), (0,))
