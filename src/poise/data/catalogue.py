"""Which data sets have a name, where their files lie, who reads them, and under which licence they may be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from poise.data.locate import Licence, Source

_MIT, _APACHE = Licence("MIT"), Licence("Apache-2.0")
_CC0, _CC_BY, _CC_BY_SA = Licence("CC0-1.0"), Licence("CC-BY-4.0"), Licence("CC-BY-SA-3.0")
_CC_BY_SA_4 = Licence("CC-BY-SA-4.0")
_CC_BY_NC = Licence("CC-BY-NC-4.0", non_commercial=True)
NOT_STATED = Licence("not stated", non_commercial=None)

_HH = Source(
    name="hh-rlhf",
    summary="dialogues with two last answers",
    parser="hh_rlhf.parse",
    licence=_MIT,
    folders=("hh_rlhf",),
    hub_id="Anthropic/hh-rlhf",
)
_INSTRUCTIONS = Source(
    name="instructions", summary="", parser="instructions.parse", licence=_APACHE, folders=("instructions",)
)
_REDTEAM = Source(name="redteam", summary="", parser="", licence=_MIT, folders=("redteam_prompts",))


def _hh(part: str, corpus: str, summary: str) -> Source:
    files, arguments = (f"{corpus}[./]*",), {"data_dir": corpus}
    return replace(_HH, name=f"hh-rlhf:{part}", summary=summary, files=files, hub_arguments=arguments)


_TABLE = (
    Source(
        name="starter",
        summary="decoupled pairs written for this project, split into train, judge and test",
        parser="starter.parse",
        licence=_CC0,
        folders=("starter",),
        files=("starter.jsonl",),
        embedded=True,
    ),
    Source(
        name="pku-saferlhf",
        summary="decoupled pairs: which response helps more, which is safer, and whether each is safe",
        parser="pku_saferlhf.parse",
        licence=_CC_BY_NC,
        folders=("pku_saferlhf", "pku_saferlhf_32"),
        hub_id="PKU-Alignment/PKU-SafeRLHF",
    ),
    Source(
        name="pku-safety-pairs",
        summary="a safe and an unsafe response to each prompt; noisy, with many duplicates",
        parser="pku_safety_pairs.parse",
        licence=_CC_BY_NC,
        folders=("pku_saferlhf_safety_pairs",),
    ),
    _hh("helpful", "helpful-base", "dialogues: which last answer helps more"),
    _hh("harmless", "harmless-base", "dialogues: which last answer is less harmful"),
    _hh("helpful-online", "helpful-online", "later helpful dialogues, with a policy that was being trained"),
    _hh("helpful-rejection-sampled", "helpful-rejection-sampled", "helpful dialogues with best-of-n answers"),
    replace(
        _INSTRUCTIONS,
        name="instructions:alpaca",
        summary="instructions with answers written by a model",
        licence=_CC_BY_NC,
        files=("alpaca*",),
        hub_id="tatsu-lab/alpaca",
    ),
    replace(
        _INSTRUCTIONS,
        name="instructions:dolly",
        summary="instructions with answers written by people",
        licence=_CC_BY_SA,
        files=("*dolly*",),
        hub_id="databricks/databricks-dolly-15k",
    ),
    replace(
        _INSTRUCTIONS,
        name="instructions:self-instruct",
        summary="seed and evaluation tasks written by people",
        files=("self_instruct*",),
    ),
    Source(
        name="safety-tuned-llamas",
        summary="safe answers to red-team instructions, and lists of instructions for evaluation",
        parser="safety_tuned_llamas.parse",
        licence=_CC_BY_NC,
        folders=("safety_tuned_llamas",),
    ),
    Source(
        name="xstest",
        summary="completions judged by two people: labels for harmful prompts, prompts that only look harmful",
        parser="xstest.parse",
        licence=_CC_BY,
        folders=("xstest_annotations",),
    ),
    Source(
        name="xstest:completions",
        summary="the same, with every completion and its verdicts as a demonstration of weight 0",
        parser="xstest.parse_completions",
        licence=_CC_BY,
        folders=("xstest_annotations",),
    ),
    replace(
        _REDTEAM,
        name="xstest-prompts",
        summary="250 prompts that only look harmful and 200 harmful contrasts",
        parser="xstest.parse_prompts",
        licence=_CC_BY,
        files=("xstest_prompts.csv",),
    ),
    replace(
        _REDTEAM,
        name="advbench",
        summary="520 harmful requests",
        parser="advbench.parse",
        files=("advbench_harmful_behaviors.csv",),
    ),
    Source(
        name="movie-reviews",
        summary="film reviews with their sentiment, as prompts with a tag",
        parser="texts.parse_sentiment",
        licence=_CC_BY,
        folders=("movie_reviews_sample",),
    ),
    Source(
        name="sentence-polarity",
        summary="sentences of film reviews with their sentiment, as prompts with a tag",
        parser="texts.parse_sentiment",
        licence=_CC_BY,
        folders=("sentence_polarity",),
    ),
    Source(
        name="jigsaw",
        summary="comments that people called toxic or not, as prompts with a tag",
        parser="texts.parse_comment",
        licence=_CC_BY_SA,
        folders=("jigsaw_toxicity_sample",),
    ),
    Source(
        name="realtoxicityprompts",
        summary="halves of sentences to continue, with Perspective's toxicity of both halves",
        parser="realtoxicityprompts.parse",
        licence=_CC_BY_SA_4,
        folders=("realtoxicityprompts_sample",),
    ),
    Source(
        name="odpo-sentiment",
        summary="ten sampled continuations of each film review's beginning, with a classifier's reward",
        parser="odpo.parse_continuation",
        licence=_APACHE,
        folders=("odpo_rewards",),
        files=("imdb*",),
    ),
    Source(
        name="odpo-toxicity",
        summary="five sampled continuations of each beginning, with a classifier's reward for not being toxic",
        parser="odpo.parse_continuation",
        licence=_APACHE,
        folders=("odpo_rewards",),
        files=("toxicity*",),
    ),
    Source(
        name="tldr-ratings",
        summary="summaries of posts compared by their points from 1 to 7; the margin is the difference",
        parser="odpo.parse_ratings",
        licence=_APACHE,
        folders=("tldr_human_ratings",),
    ),
)
SOURCES: Mapping[str, Source] = {source.name: source for source in _TABLE}
# A name for several sources. The sampled parts of HH-RLHF are left out: their publisher has replaced them since.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "hh-rlhf": ("hh-rlhf:helpful", "hh-rlhf:harmless"),
    "instructions": ("instructions:alpaca", "instructions:dolly", "instructions:self-instruct"),
    "alpaca": ("instructions:alpaca",),
}


def names() -> list[str]:
    """Every name that `load` knows.

    >>> "starter" in names()
    True
    """
    return sorted([*SOURCES, *GROUPS])


def describe() -> list[str]:
    """One line for each name: what it holds and under which licence."""
    lines = []
    for name in names():
        if name in GROUPS:
            lines.append(f"{name}: {' + '.join(GROUPS[name])}")
        else:
            licence = SOURCES[name].licence
            terms = f"{licence.name}, non-commercial" if licence.non_commercial else licence.name
            lines.append(f"{name}: {SOURCES[name].summary} ({terms})")
    return lines
