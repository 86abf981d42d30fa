"""The first stage: the model that a run starts from, and features of it that are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from poise.models.features import FeatureCache
from poise.models.load import Backbone, load_backbone, read_template
from poise.plan.work import current_planner
from poise.run import Run
from poise.train.loop import progress_bar

DType = Literal["auto", "float32", "bfloat16"]
STAND_IN = "random:llama?layers=3"  # for the real model, where a run is only planned
_START_S = 12.0  # until data are read and a model is asked for
_LOADED_PER_S = 1e9  # bytes


def start_model(
    run: Run,
    name: str,
    *,
    seed: int = 0,
    continues_text: bool = False,
    chat_template: str | None = None,
    dtype: DType = "auto",
) -> Backbone:
    """Load the model that a run starts from, in the dtype that the run chose when it first loaded it.

    name            hub id, folder, smollm2-135m or random:llama
    continues_text  prompts are beginnings of texts, not turns of a chat
    chat_template   a file with a template that replaces the tokenizer's; its text is stored in the run
    dtype           what the weights are computed in; auto: what is faster here

    A resumed run keeps its dtype, even on a machine where another one is faster. Raises ModelError for a model that
    cannot be loaded or used.
    """
    if (planner := current_planner()) is not None:
        compute = planner.compute
        size = compute.model.parameters * compute.machine.element_bytes
        planner.add(planner.named(run, "model"), seconds=_START_S + size / _LOADED_PER_S, memory=0.0, work="load")
        return replace(load_backbone(STAND_IN, seed=seed), continues_text=continues_text)
    stage = run.stage("model")
    if stage.finished:
        kept, template = getattr(torch, stage.result["dtype"]), stage.result.get("chat_template")
        backbone = load_backbone(name, seed=seed, dtype=kept, chat_template=template)
    else:
        template = None if chat_template is None else read_template(chat_template)
        wanted = None if dtype == "auto" else getattr(torch, dtype)
        backbone = load_backbone(name, seed=seed, dtype=wanted, chat_template=template)
        facts = {"dtype": str(backbone.dtype).removeprefix("torch."), "device": str(backbone.device)}
        stage.finish(facts | ({} if template is None else {"chat_template": template}))
    run.record_model(name, backbone.identity)
    return replace(backbone, continues_text=continues_text)


def feature_cache(run: Run) -> FeatureCache:
    """A cache for features of the frozen backbone, in the run's folder: each row is computed once."""
    return FeatureCache(run.stage("features").path, track=_with_progress)


def _with_progress(parts: Sequence[Sequence[int]]) -> Iterable[Sequence[int]]:
    with progress_bar("features", len(parts), 0, ()) as show:
        for part in parts:
            yield part
            show({})
