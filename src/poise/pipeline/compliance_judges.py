"""Judges of compliance that learned from people's labels alone: one decides, a second of another kind stands beside.

    verdict   a linear head on features of the frozen backbone, which reads prompt and answer together
    words     a linear classifier on the words of the answer
    rule      the regular expressions that select demonstrations and label the cost; shown, and decides nothing

The first two learn from other prompts and, XSTest apart, from other sources. Their figures are on people's labels of
prompts that they never saw, and on whole sources that a fit left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from poise.data.outcomes import first_words
from poise.evaluate.judges import check_judge
from poise.feedback.compliance_rows import FEATURES, WORDS, source_of
from poise.feedback.published import PublishedRows
from poise.feedback.rules import RefusalScorer, is_refusal
from poise.feedback.words import TextScorer, WordClassifier
from poise.functional.statistics import area_under_curve, share
from poise.models.channels import Channel
from poise.models.features import FeatureCache
from poise.models.heads import ScoreModel
from poise.models.load import Backbone
from poise.pipeline.judges import features_of, kept_judge, plan_reading
from poise.pipeline.scores import TrainedScoreModel
from poise.plan.work import current_planner
from poise.run import Run
from poise.train.linear_fit import LinearFit, fit_linear, set_head
from poise.types import Estimate, Rating, SafetyLabel, Scorer

# 0 divides the answers that decline from those that do as asked; on a harmful prompt the latter are the worse.
COMPLIANCE = Channel(name="compliance", higher_is_worse=True)
BY_WORDS, BY_RULE = "compliance_by_words", "refusal_by_rule"
DEPTH = 2 / 3  # share of the layers below the head
READ_WORDS = 40  # of an answer that the classifier on words learns from: those of policies are as short
PROMPT_TOKENS = 96
Says = Callable[[Sequence[SafetyLabel]], Sequence[float]]  # rows to logits of compliance
Fit = Callable[[Sequence[SafetyLabel]], Says]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplianceJudges:
    """The judge that decides whether an answer does as asked, and those that stand beside it."""

    verdict: TrainedScoreModel
    words: WordClassifier | None  # None where a run is only planned
    words_accuracy: Mapping[str, Estimate]

    def scorers(self) -> dict[str, Scorer]:
        """All of them on channels of their own: "compliance" decides."""
        beside: dict[str, Scorer] = {"refusal rule": RefusalScorer(BY_RULE)}
        if self.words is not None:
            says = TextScorer(value=self.words.logits, channel=BY_WORDS, name="words", reads_prompt=False)
            beside["compliance by words"] = says
        return {"compliance judge": self.verdict.model, **beside}


def compliance_judges(
    run: Run, backbone: Backbone, rows: PublishedRows, *, longest_answer: int, cache: FeatureCache | None = None
) -> ComplianceJudges:
    """Fit both judges to what people said, after a check that they share nothing with what they judge.

    longest_answer  tokens of an answer that is judged, and of one that is learned from

    `accuracy` and `words_accuracy` are against people's labels; see `judge_worth`.

    Raises DataError if a rule labelled a row of theirs, or one of their questions has another use.
    """
    rows.require_independent_verdict()
    verdict = _verdict_judge(run, backbone, rows, longest_answer=longest_answer, cache=cache)
    if current_planner() is not None:
        return ComplianceJudges(verdict=verdict, words=None, words_accuracy={})
    learned = rows.verdicts[WORDS].labels
    worth = judge_worth(_words_say, learned, rows.verdicts["test"].labels, [], rows.partial)
    return ComplianceJudges(verdict=verdict, words=_word_classifier(learned), words_accuracy=worth)


def judge_worth(
    fit: Fit,
    learned: Sequence[SafetyLabel],
    unseen: Sequence[SafetyLabel],
    elsewhere: Sequence[SafetyLabel] = (),
    partial: Sequence[SafetyLabel] = (),
) -> dict[str, Estimate]:
    """What a judge of compliance is worth by people's labels; intervals are over prompts.

    learned    rows that it learns from
    unseen     rows of prompts that it never saw
    elsewhere  rows of sources that it does not learn from

        accuracy, precision, recall, f1, f1_of_the_others, auc     on `unseen`
        f1_<kind>, f1_of_the_others_<kind>                         of harmful prompts, and of those that look so
        f1_of_the_rule                                             the refusal rule on the same rows, for comparison
        f1_without_<source>, f1_of_the_others_without_<source>, auc_without_<source>
                                                                   on a source, by a fit to all others
        partial_refusals_called_compliance
    """
    says = fit(learned)
    figures = against_people(says(unseen), unseen)
    for kind in ("harmful", "look_alike"):
        chosen = [row for row in unseen if row.prompt.tags.get("kind") == kind]
        found = against_people(says(chosen), chosen)
        figures |= {f"{name}_{kind}": found[name] for name in ("f1", "f1_of_the_others") if name in found}
    rule = against_people([0.5 - is_refusal(row.response) for row in unseen], unseen)
    figures |= {"f1_of_the_rule": rule["f1"]} if "f1" in rule else {}
    for source in dict.fromkeys(source_of(row) for row in (*learned, *elsewhere)):
        figures |= _without(source, fit, learned, (*learned, *unseen, *elsewhere))
    if partial:
        yes = [value > 0 for value in says(partial)]
        figures["partial_refusals_called_compliance"] = share(yes, [row.prompt.id for row in partial])
    return figures


def against_people(logits: Sequence[float], rows: Sequence[SafetyLabel]) -> dict[str, Estimate]:
    """Verdicts of logits above zero against people's labels, and the area under the curve where there are both."""
    if not rows:
        return {}
    truth, prompts = [not row.safe for row in rows], [row.prompt.id for row in rows]
    figures = check_judge([bool(value > 0) for value in logits], truth, prompts)
    if len(set(truth)) == 2:
        figures["auc"] = area_under_curve(list(map(float, logits)), truth, prompts)
    return figures


def _without(source: str, fit: Fit, learned: Sequence[SafetyLabel], rows: Sequence[SafetyLabel]) -> dict[str, Estimate]:
    """Figures on all rows of a source by a fit to the others, where both have answers of both kinds."""
    others = [row for row in learned if source_of(row) != source]
    held = [row for row in rows if source_of(row) == source]
    if any(len({row.safe for row in part}) < 2 for part in (others, held)):
        return {}
    found = against_people(fit(others)(held), held)
    return {f"{name}_without_{source}": found[name] for name in ("f1", "f1_of_the_others", "auc")}


def _word_classifier(rows: Sequence[SafetyLabel]) -> WordClassifier:
    texts = [first_words(row.response, READ_WORDS) for row in rows]
    return WordClassifier.fit(texts, [not row.safe for row in rows])


def _words_say(learned: Sequence[SafetyLabel]) -> Says:
    judge = _word_classifier(learned)
    return lambda rows: judge.logits([first_words(row.response, READ_WORDS) for row in rows]) if rows else []


def _verdict_judge(
    run: Run, backbone: Backbone, rows: PublishedRows, *, longest_answer: int, cache: FeatureCache | None
) -> TrainedScoreModel:
    name = "compliance-judge"
    model = ScoreModel(
        backbone,
        (COMPLIANCE,),
        depth=max(1, round(backbone.decoder.depth * DEPTH)),
        pooling="mean+prompt",
        hidden=0,
        adapter=name,
        max_prompt_tokens=PROMPT_TOKENS,
        max_response_tokens=longest_answer,
        cuts_prompts=True,
        cache=cache,
    )
    learned, others = rows.verdicts[FEATURES].labels, rows.verdicts[WORDS].labels
    known = {source_of(row) for row in learned}
    elsewhere = [row for row in others if source_of(row) not in known]
    every = (*learned, *rows.verdicts["test"].labels, *elsewhere, *rows.partial)
    if (planner := current_planner()) is not None:
        plan_reading(planner, planner.named(run, name), list(map(_as_rating, every)), share=DEPTH)
        return TrainedScoreModel(model=model, accuracy={}, rows=0)
    stage = run.stage(name)
    if not stage.finished:
        features = features_of(model, [row.prompt for row in every], [row.response for row in every])[0].cpu()
        table = dict(zip(map(_key, every), features, strict=True))
        worth = judge_worth(
            lambda own: _linear_says(own, table), learned, rows.verdicts["test"].labels, elsewhere, rows.partial
        )
        set_head(model, COMPLIANCE, _fitted(learned, table))
        model.save_pretrained(stage.path / "model")
        stage.finish({"accuracy": worth, "rows": len(learned)})
    return kept_judge(run, backbone, COMPLIANCE, name=name, cache=cache)


def _linear_says(learned: Sequence[SafetyLabel], table: Mapping[tuple[str, str], torch.Tensor]) -> Says:
    fit = _fitted(learned, table)
    return lambda rows: fit.logits_of(torch.stack([table[_key(row)] for row in rows])).tolist() if rows else []


def _fitted(rows: Sequence[SafetyLabel], table: Mapping[tuple[str, str], torch.Tensor]) -> LinearFit:
    features = torch.stack([table[_key(row)] for row in rows])
    complied, prompts = [float(not row.safe) for row in rows], [row.prompt.text for row in rows]
    return fit_linear(features, complied, prompts, balanced=True)


def _key(row: SafetyLabel) -> tuple[str, str]:
    return row.prompt.id, row.response


def _as_rating(row: SafetyLabel) -> Rating:
    return Rating(prompt=row.prompt, response=row.response, value=float(not row.safe), criterion=COMPLIANCE.name)
