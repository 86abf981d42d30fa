"""A model is its files: features and records of one that was replaced are not those of another."""

import os
import shutil

import pytest
import torch

from poise.models import identity
from poise.models.features import FeatureCache
from poise.models.heads import ScoreModel
from poise.models.identity import identity_of
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))


def written(folder, seed):
    tiny_model("random:llama", seed=seed).save_pretrained(folder)
    tiny_tokenizer("random:llama").save_pretrained(folder)
    return str(folder)


def test_features_of_a_replaced_model_are_computed_anew(tmp_path):
    rows, found = [[5, 6, 7, 8]], []
    for seed in (1, 2):
        backbone = load_backbone(written(tmp_path / "model", seed), dtype=torch.float32)
        model = ScoreModel(backbone, cache=FeatureCache(tmp_path / "features"))
        found.append(model.features(rows, [2]))
        assert torch.equal(found[-1], model.pooled_all(rows, [2]))
    assert not torch.equal(*found)


def test_an_adapter_that_was_merged_into_the_backbone_is_part_of_what_it_is():
    policy = Policy(load_backbone("random:llama"))
    before = policy.backbone.checksum
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.1)
    policy.merge()
    assert policy.backbone.checksum != before == load_backbone("random:llama").checksum


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_any_file_that_a_result_follows_from_is_part_of_it_and_no_other(tmp_path, name):
    folder = tmp_path / "model"
    before = identity_of(written(folder, 1))
    (folder / "README.md").write_text("A model")
    assert identity_of(str(folder)) == before
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    after = identity_of(str(folder))
    assert {key for key in after["files"] if after["files"][key] != before["files"][key]} == {name}
    assert after["checksum"] != before["checksum"]


def test_a_large_file_is_read_once_until_it_is_replaced_even_by_one_of_its_size_and_time(tmp_path, monkeypatch):
    first, second = tmp_path / "m" / "model.safetensors", tmp_path / "other"
    first.parent.mkdir()
    first.write_bytes(b"a" * (1 << 20))
    before, reads = identity_of(str(first.parent)), []
    compute = identity.facts_of
    monkeypatch.setattr(identity, "facts_of", lambda path: reads.append(path) or compute(path))
    assert identity_of(str(first.parent)) == before
    assert not reads
    second.write_bytes(b"b" * (1 << 20))
    os.utime(second, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    shutil.move(second, first)
    assert identity_of(str(first.parent)) != before


def test_a_model_without_files_is_what_its_name_says():
    assert identity_of("random:llama?seed=1")["checksum"] != identity_of("random:llama?seed=2")["checksum"]
