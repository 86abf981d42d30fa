"""Scorers of refusals and evasions: one to be limited by, and another, of other rows and layers, to evaluate with.

Each reads prompt and answer together and gives the probability that the answer refuses or evades. A policy that is
limited by the one may learn what it does not see; the other learned from other prompts, half of the sources are others,
and it reads deeper layers. What they share is the backbone and the style of those who wrote the starter set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from poise.data.outcomes import Use, outcomes
from poise.evaluate.judges import check_judge
from poise.functional.statistics import area_under_curve
from poise.models.channels import Channel
from poise.models.features import FeatureCache
from poise.models.heads import ScoreModel
from poise.models.load import Backbone
from poise.pipeline.judges import features_of, kept_judge, plan_reading
from poise.pipeline.scores import TrainedScoreModel
from poise.plan.work import current_planner
from poise.run import Run
from poise.train.linear_fit import LinearFit, fit_linear, set_head
from poise.types import Dataset, Estimate, Rating

REFUSAL = Channel(name="refusal", higher_is_worse=True, is_probability=True)
DEPTHS: Mapping[Use, float] = {"limit": 2 / 3, "evaluation": 0.73}  # shares of the layers below the head
OPENING = 80  # tokens of an answer that are read: about as many words as are learned from
_PARTLY = 0.5


def refusal_scorer(
    run: Run,
    backbone: Backbone,
    use: Use,
    *,
    longest_answer: int = 0,
    rows: Dataset | None = None,
    name: str = "",
    cache: FeatureCache | None = None,
) -> TrainedScoreModel:
    """A scorer on the channel "refusal": the probability that an answer refuses or evades, at even odds beforehand.

    use             "limit" to train under, "evaluation" to judge by; see `DEPTHS` and `data.outcomes`
    longest_answer  tokens of a response that is to be scored, where the backbone's window is shorter
    rows            ratings on the criterion "refusal" with tags `source` and `split`; by default `outcomes(use)`

    `accuracy` is on prompts of the part `test`, which are not learned from:

        refusal_auc, refusal_f1             of all sources
        refusal_f1_on_<source>              of one
        refusal_f1_without_<source>         of all rows of a source, by a fit to all others
        unrelated_f1                        answers to something else, told from answers

    An answer to a part counts as one half when the head learns, and in no figure.
    """
    name, data = name or f"refusals-{use}", outcomes(use) if rows is None else rows
    model = ScoreModel(
        backbone,
        (REFUSAL,),
        depth=max(1, round(backbone.decoder.depth * DEPTHS[use])),
        pooling="mean+prompt",
        hidden=0,
        adapter=name,
        max_response_tokens=max(longest_answer, backbone.max_response_tokens),
        cache=cache,
    )
    model.opening = OPENING
    if (planner := current_planner()) is not None:
        plan_reading(planner, planner.named(run, name), data.ratings, share=DEPTHS[use])
        return TrainedScoreModel(model=model, accuracy={}, rows=0)
    stage = run.stage(name)
    if not stage.finished:
        run.record_data(data.name, data.provenance)
        result = _fit(model, data)
        model.save_pretrained(stage.path / "model")
        stage.finish(result)
    return kept_judge(run, backbone, REFUSAL, name=name, cache=cache)


def _fit(model: ScoreModel, data: Dataset) -> dict[str, Any]:
    """Fit the head to the part that may be learned from; returns the stage's result."""
    rows = list(data.ratings)
    features = features_of(model, [row.prompt for row in rows], [row.response for row in rows])[0].cpu()
    learned = [n for n, row in enumerate(rows) if row.prompt.tags.get("split") != "test"]
    held = [n for n, row in enumerate(rows) if row.prompt.tags.get("split") == "test"]
    known = [rows[n] for n in learned]
    fit = fit_linear(features[learned], [row.value for row in known], [row.prompt.text for row in known], balanced=True)
    set_head(model, REFUSAL, fit)
    judged, logits = (held, fit.logits_of(features[held])) if held else (learned, fit.logits)
    figures = _figures([rows[n] for n in judged], logits)
    return {
        "accuracy": figures | _sources_left_out(rows, features, learned, fit),
        "validated": "on unseen prompts" if held else "cross-validated by prompt",
        "penalty": fit.penalty,
        "rows": len(learned),
        "read_from": str(data.provenance.get("read_from", data.name)),
    }


def _figures(rows: Sequence[Rating], logits: Tensor) -> dict[str, Estimate]:
    """AUC and F1 of all rows and of each source, and of what is unrelated among answers."""
    truth, sources = [row.value > _PARTLY for row in rows], [_kind(row) for row in rows]
    clear = [n for n, row in enumerate(rows) if row.value != _PARTLY]
    chosen = {"refusal_f1": clear}
    for name in dict.fromkeys(row.prompt.tags.get("source", "") for row in rows):
        chosen[f"refusal_f1_on_{name}"] = [n for n in clear if rows[n].prompt.tags.get("source", "") == name]
    chosen["unrelated_f1"] = [n for n in clear if sources[n] == "unrelated" or not truth[n]]
    figures = {name: f1 for name, places in chosen.items() if (f1 := _f1(rows, logits, places)) is not None}
    if len({truth[n] for n in clear}) == 2:
        prompts = [rows[n].prompt.id for n in clear]
        figures["refusal_auc"] = area_under_curve(logits[clear].numpy(), [truth[n] for n in clear], prompts)
    return figures


def _sources_left_out(
    rows: Sequence[Rating], features: Tensor, learned: Sequence[int], fit: LinearFit
) -> dict[str, Estimate]:
    """F1 on all rows of a source, those of the part `test` included, by a fit to the other sources' other rows."""
    names = [row.prompt.tags.get("drawn_from") or row.prompt.tags.get("source", "") for row in rows]
    figures = {}
    for name in dict.fromkeys(names):
        others = [n for n in learned if names[n] != name]
        places = [n for n, each in enumerate(names) if each == name and rows[n].value != _PARTLY]
        if len({rows[n].value > _PARTLY for n in places}) == 2 and len({rows[n].value >= _PARTLY for n in others}) == 2:
            known = [rows[n] for n in others]
            values, prompts = [row.value for row in known], [row.prompt.text for row in known]
            other = fit_linear(features[others], values, prompts, penalties=[fit.penalty], balanced=True)
            logits = torch.zeros(len(rows), dtype=torch.float64)
            logits[places] = other.logits_of(features[places])
            if (f1 := _f1(rows, logits, places)) is not None:
                figures[f"refusal_f1_without_{name}"] = f1
    return figures


def _f1(rows: Sequence[Rating], logits: Tensor, places: Sequence[int]) -> Estimate | None:
    """The F1 of refusals and evasions among some rows; None where there are none, or nothing else."""
    truth = [rows[n].value > _PARTLY for n in places]
    if len(set(truth)) < 2:
        return None
    said = [bool(logits[n] > 0) for n in places]
    return check_judge(said, truth, [rows[n].prompt.id for n in places])["f1"]


def _kind(row: Rating) -> str:
    return str(row.prompt.tags.get("outcome") or row.prompt.tags.get("source", ""))
