"""A score model of your own: any channels from comparisons, labels, ratings and rankings, calibrated and measured.

    judgements -> heads, or an adapter with them -> calibration -> accuracy on held-out prompts -> two folders

`--channels reward:bradley-terry,cost:signs` is the pair of Safe RLHF: signs adds the loss by which a cost is above 0
for harm. The first folder is what `--reward RUN` of the other recipes takes. The second, where --pooling classifier
reads all layers, is a sequence classifier that transformers loads, with the same scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

from poise.data import first_prompts, held_out
from poise.data.datasets.base import ScoresAs
from poise.experiment import Claim, MethodCard, Metric, Study, Trial, recipe
from poise.experiment.results import Results
from poise.models.adapters import Lora
from poise.models.heads import Pooling
from poise.models.runs import CLASSIFIER_FOLDER, SCORES_FOLDER
from poise.pipeline import ScoreModelSpec, fit_scores, start_model
from poise.pipeline.model import DType
from poise.pipeline.own_scores import accuracy_on, channels_named, judged_for, kept_classifier
from poise.pipeline.safety import read_feedback
from poise.pipeline.settings import check
from poise.run import Run

CARD = MethodCard(
    title="A score model with channels of your own", paper="after arXiv:2310.12773, with any channels",
    feedback="people, or an AI judge", form="comparisons, labels, ratings, rankings",
    signal="the judgements themselves", optimiser="Bradley-Terry, signs, Plackett-Luce or squared error",
    model="heads on any causal language model, or an adapter with them", data="any feedback",
)  # fmt: skip
QUICK = {"model": "random:llama?layers=3", "epochs": 2.0, "most_prompts": 60, "seeds": 1}
FIGURES = {"pair_accuracy": "pairs ordered as judged", "sign_accuracy": "signs as labelled",
           "calibration_error": "calibration error", "rating_error": "mean distance to ratings"}  # fmt: skip
HEAD_EPOCHS, ADAPTER_EPOCHS = 40.0, 3.0


@recipe(CARD, quick=QUICK, seeds=1, workers=1)
def score_model(
    *,
    model: str = "smollm2-135m",
    chat_template: str | None = None,
    dtype: DType = "auto",
    data: str = "starter",
    columns: str = "",
    scores: ScoresAs = "margins",
    channels: tuple[str, ...] = (),
    train: Literal["head", "lora"] = "head",
    depth: float = 1.0,
    pooling: Pooling = "classifier",
    hidden: int = 0,
    rank: int = 16,
    alpha: float = 32.0,
    epochs: float | None = None,
    steps: int | None = None,
    response_tokens: int = 512,
    most_prompts: int = 0,
) -> Study:
    """Train a score model on judgements, calibrate it, and measure it on prompts that it never saw.

    Args:
        model: hub id, folder (of an adapter too), run of another recipe, smollm2-135m or random:llama.
        chat_template: file with a Jinja template to use in place of the tokenizer's.
        dtype: what the frozen weights are computed in; auto takes what is faster here.
        data: names or paths of feedback, joined by +.
        columns: names of the columns of your files, as prompt=question,chosen=better; ignore=score leaves one out.
        scores: what several scores of a prompt's responses are read as.
        channels: NAME[:LOSS[:CRITERION]], joined by commas; the loss is bradley-terry, signs (a cost: higher is worse),
            regression or plackett-luce. A channel reward learns from helpful, cost from safe, any other from its name.
            By default reward, and cost where the data judge harm.
        train: the head alone on frozen features, or a LoRA adapter with it.
        depth: share of the layers that are read.
        pooling: classifier, what a sequence classifier of transformers reads; or means and last tokens of a layer.
        hidden: width of a hidden layer of the head; 0 is a linear one.
        rank: rank of the LoRA adapter.
        alpha: its scale is alpha / rank.
        epochs: how often each prompt is learned from; by default 40 times by a head, and 3 times by an adapter.
        steps: exactly so many updates instead.
        response_tokens: longest response that is scored, in tokens.
        most_prompts: prompts of either side; 0 takes all.
    """
    check(
        locals(),
        at_least_one=("rank", "steps", "response_tokens"),
        above_zero=("depth", "alpha", "epochs"),
        not_negative=("hidden", "most_prompts"),
    )
    channels_named(channels)  # what cannot be read fails here
    names = list(dict.fromkeys([*(text.split(":")[0].strip() for text in channels)] or ["reward", "cost"]))
    metrics = [Metric(name=f"{name}_{figure}", label=f"{name}: {label}", over="facts",
                      unit="share" if "accuracy" in figure else "",
                      summary="smallest" if "accuracy" in figure else "largest")
               for name in names for figure, label in FIGURES.items()]  # fmt: skip
    return Study(
        arms={"scores": None},
        trial=partial(trial, SimpleNamespace(**locals())),
        metrics=metrics,
        claims=[Claim(text=f"{name} orders held-out pairs better than chance", metric=f"{name}_pair_accuracy",
                      higher="scores", lower=0.5, source="ours") for name in names],
        notes="Accuracy on prompts that were held out, with intervals over prompts.",
        threads=None,
        report=partial(report, model=model, data=data),
    )  # fmt: skip


def trial(given: SimpleNamespace, arm: None, seed: int, part: Run) -> Trial:
    """One score model from one seed: what is held out and the new weights follow from it."""
    whole = read_feedback(part, given.data, columns=given.columns, scores=given.scores)
    channels, losses = channels_named(given.channels, whole)
    splits = {side: judged_for(channels, each) for side, each in held_out(whole, seed=seed).items()}
    if given.most_prompts:
        splits = {side: first_prompts(each, given.most_prompts) for side, each in splits.items()}
    backbone = start_model(part, given.model, seed=seed, chat_template=given.chat_template, dtype=given.dtype)
    lora = Lora(rank=given.rank, alpha=given.alpha) if given.train == "lora" else None
    spec = ScoreModelSpec(
        depth=given.depth, channels=channels, losses=losses, steps=given.steps, seed=seed,
        epochs=given.epochs or (ADAPTER_EPOCHS if lora else HEAD_EPOCHS),
        reading={"pooling": given.pooling, "hidden": given.hidden, "lora": lora,
                 "max_response_tokens": min(given.response_tokens, backbone.renderer().max_response_tokens)},
    )  # fmt: skip
    found = fit_scores(part, backbone, splits["train"], spec, measure=partial(accuracy_on, splits["test"]))
    classifier = kept_classifier(part, found.model, found.accuracy)
    paths = {"scores": f"{part.path.name}/scores/model"}
    return Trial(
        facts=found.accuracy,
        paths=paths | ({"classifier": f"{part.path.name}/{classifier}"} if classifier else {}),
    )


def report(run: Run, results: Results, **facts: Any) -> Mapping[str, Any]:
    """The summary: every figure, and where the score model of the first seed lies, in either form."""
    paths = results.trials["scores"][0].paths
    places = {SCORES_FOLDER: paths["scores"], CLASSIFIER_FOLDER: paths.get("classifier")}
    return {**results.estimates()["scores"], **places, **facts}
