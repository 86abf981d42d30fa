"""Scorers by name: what `--reward` and `--cost` of a recipe say, as one scorer that fills the channels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.errors import ConfigError
from poise.feedback.asking import ask
from poise.feedback.rules import RefusalScorer
from poise.feedback.scorer_names import GRAMMAR, ScorerName, read_scorer_names
from poise.files import expanded
from poise.types import Completion, Prompt, Scorer, Scores

if TYPE_CHECKING:
    from poise.models.load import Backbone

TOKEN_VARIABLE = "POISE_SCORER_TOKEN"
RULES: Mapping[str, Callable[[], Scorer]] = {"refusal": RefusalScorer}
_HIGHER_IS_WORSE = frozenset({"cost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A scorer, the names of what it gives and which way each points: True where higher is worse, None if unstated."""

    scorer: Scorer
    outputs: Mapping[str, bool | None]
    must_say: bool = False  # whether an output that points no stated way may not be a cost without a word

    def output_of(self, name: ScorerName, channel: str) -> str:
        """The output that a name means: the one it says, that of the channel's name, or the only one.

        Raises ConfigError with the outputs that there are.
        """
        if name.output in self.outputs:
            return name.output
        if not name.output and channel in self.outputs:
            return channel
        if not name.output and len(self.outputs) == 1:
            return next(iter(self.outputs))
        found = ", ".join(self.outputs)
        asked = (
            f"has no output {name.output!r}" if name.output else f"has several outputs, and none is called {channel!r}"
        )
        raise ConfigError(
            f"{name.text}: it {asked}. It has {found}; say which, as in {name.place}#{next(iter(self.outputs))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One addend of a channel: an output of a source, times a weight."""

    source: int
    output: str
    weight: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedScorer:
    """A scorer that fills channels with weighted sums of what other scorers give; each is asked once.

        value of a channel = sum of weight * output over its terms

    A completion for which one of the terms has no value has none in that channel, and the explanation says why.
    """

    sources: Sequence[Scorer]
    terms: Mapping[str, Sequence[Term]]  # by channel
    channels: Mapping[str, bool]  # whether higher is worse, by channel

    @property
    def name(self) -> str:
        """The channels with the terms that fill them."""
        return "; ".join(f"{channel} = {' + '.join(t.text for t in terms)}" for channel, terms in self.terms.items())

    @property
    def max_response_tokens(self) -> int | None:
        """The longest response that every scorer reads, in tokens of its own; None where none has a window."""
        windows = [getattr(source, "max_response_tokens", None) for source in self.sources]
        return min((window for window in windows if isinstance(window, int)), default=None)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Between what the values of a channel lie, for channels of which every term has bounds."""
        found = {}
        for channel, terms in self.terms.items():
            ends = [_ends(self.sources[term.source], term) for term in terms]
            known = [each for each in ends if each is not None]
            if len(known) == len(ends):
                found[channel] = (sum(low for low, _ in known), sum(high for _, high in known))
        return found

    def record(self) -> dict[str, Any]:
        """What fills each channel and which way it points, for the record of a run."""
        return {
            channel: {
                "higher_is_worse": self.channels[channel],
                "terms": [{"scorer": t.text, "output": t.output, "weight": t.weight} for t in terms],
            }
            for channel, terms in self.terms.items()
        }

    def with_sources(self, change: Callable[[Scorer], Scorer]) -> NamedScorer:
        """The same sums over other scorers, each made from one of these."""
        return NamedScorer(sources=[change(each) for each in self.sources], terms=self.terms, channels=self.channels)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """The channels of each completion: the Scorer protocol."""
        given = [ask(source, prompts, completions) for source in self.sources]
        return [self._combined([rows[i] for rows in given]) for i in range(len(completions))]

    def _combined(self, given: Sequence[Scores]) -> Scores:
        values, reasons = {}, []
        for channel, terms in self.terms.items():
            missing = [term for term in terms if term.output not in given[term.source].values]
            if not missing:
                values[channel] = sum(term.weight * given[term.source].values[term.output] for term in terms)
            reasons += [f"{channel}: {t.text}: {given[t.source].unscorable or 'gave no value'}" for t in missing]
        return Scores(
            values=values,
            source=self.name,
            explanation="\n".join(
                [each.explanation for each in given if each.explanation] + (reasons if values else [])
            ),
            unscorable="" if values else "; ".join(reasons),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Where and how scorers are loaded, unless a name says otherwise."""

    device: str | None = None  # None: the first GPU, or the CPU
    batch_size: int = 16  # completions of a pass of `hf:` and `guard:`
    max_tokens: int | None = None  # of prompt and response together; None: what the model and its tokenizer can read
    backbone: Backbone | None = None  # that score models which name it as their base share
    sources: dict[Any, Source] = field(default_factory=dict)  # that were loaded, and are not loaded again


def named_scorers(
    names: str | Sequence[str], *, channel: str, higher_is_worse: bool | None = None, loading: Loading | None = None
) -> list[Scorer]:
    """The scorers that fill one channel, by name: `scorers_by_channel` for a single channel.

    >>> scorer = named_scorers("-rule:refusal", channel="reward")[0]
    >>> prompt = Prompt.of("Hello")
    >>> scorer.score([prompt], [Completion(prompt_id=prompt.id, text="I can't help with that.")])[0].values
    {'reward': -1.0}
    """
    worse = {} if higher_is_worse is None else {channel: higher_is_worse}
    return scorers_by_channel({channel: names}, higher_is_worse=worse, loading=loading)


def scorers_by_channel(
    names: Mapping[str, str | Sequence[str]],
    *,
    higher_is_worse: Mapping[str, bool] | None = None,
    loading: Loading | None = None,
) -> list[Scorer]:
    """One scorer, in a list, that fills each channel with the sum of the scorers that are named for it.

    A scorer is named as `feedback.scorer_names.GRAMMAR` says: `hf:folder`, `0.7*hf:org/judge#toxic?batch=8`,
    `RUN/scores/model#cost`. A text has one term or several joined by ` + `. Without #OUTPUT it is the output that has
    the channel's name, or the only one.

    The sign. In the channel "cost", and those that `higher_is_worse` says so of, higher is worse; in all others higher
    is better. What a folder, server, guard or `?sign=` says of an output must agree with that, or the weight be
    negative: `-RUN/scores/model#reward` is a cost. A classifier (`hf:`) seldom says, so as a cost it needs the word.

    A scorer that is named twice is loaded once and asked once.

    Raises:
        ConfigError: a name is not in the grammar, or means an output that is not there or points the other way.
        ModelError: a model cannot be loaded.
        FeedbackError: a server does not answer.
    """
    how = loading or Loading()
    directions = {channel: (higher_is_worse or {}).get(channel, channel in _HIGHER_IS_WORSE) for channel in names}
    read = {channel: read_scorer_names(texts) for channel, texts in names.items()}
    keys: list[Any] = []
    terms: dict[str, list[Term]] = {channel: [] for channel in names}
    for channel, found in read.items():
        for name in found:
            if name.source not in how.sources:
                how.sources[name.source] = _LOADERS[name.kind](name, how)
            if name.source not in keys:
                keys.append(name.source)
            source = how.sources[name.source]
            output = source.output_of(name, channel)
            _require_direction(name, source, output, channel, directions[channel])
            terms[channel].append(
                Term(source=keys.index(name.source), output=output, weight=name.weight, text=name.text)
            )
    return [NamedScorer(sources=[how.sources[key].scorer for key in keys], terms=terms, channels=directions)]


def _require_direction(name: ScorerName, source: Source, output: str, channel: str, worse: bool) -> None:
    """Raise ConfigError where an output points the other way than the channel, or may and nothing says so."""
    stored, said = source.outputs[output], name.higher_is_worse
    if None not in (stored, said) and stored != said:
        raise ConfigError(
            f"{name.text}: {_way(said)}, says the name, but of output {output!r} it is stored that {_way(stored)}. "
            "Leave sign= out"
        )
    known = stored if said is None else said
    due = "worse" if worse else "better"
    if known is None:
        if source.must_say and worse and name.weight > 0:
            say = f"{name.text}{'&' if '?' in name.text else '?'}sign=higher_is_worse"
            raise ConfigError(
                f"{name.text} as {channel!r}, where higher is {due}: nothing says which way its output {output!r} "
                f"points. Say {say}, or -{name.text} to flip an output of which higher is better"
            )
        return
    if (known == worse) != (name.weight > 0):
        fix = "a negative weight flips it, as in -" + name.text if name.weight > 0 else "give it a positive weight"
        raise ConfigError(
            f"{name.text} as {channel!r}, where higher is {due}: of its output {output!r} {_way(known)}, so the weight "
            f"{name.weight:g} has the wrong sign; {fix}"
        )


def _way(worse: bool | None) -> str:
    return f"higher is {'worse' if worse else 'better'}"


def _ends(source: Scorer, term: Term) -> tuple[float, float] | None:
    ends = getattr(source, "bounds", {}).get(term.output)
    return (
        None if ends is None else (min(term.weight * each for each in ends), max(term.weight * each for each in ends))
    )


def _rule(name: ScorerName, how: Loading) -> Source:
    if name.place not in RULES:
        raise ConfigError(f"{name.text}: there is no rule {name.place!r}; there is {', '.join(RULES)}")
    return Source(scorer=RULES[name.place](), outputs={name.place: None})


def _python(name: ScorerName, how: Loading) -> Source:
    from poise.feedback.python_rewards import FORMATS, python_reward

    scorer = python_reward(name.place, form=name.choice("format", FORMATS, ""))
    return Source(scorer=scorer, outputs={scorer.output: None})


def _server(name: ScorerName, how: Loading) -> Source:
    from poise.feedback.remote import RemoteScorer

    token = os.environ.get(TOKEN_VARIABLE, "")
    scorer = RemoteScorer(name.place, token=token, batch_size=name.integer("batch", 32))
    return Source(scorer=scorer, outputs=scorer.health().channels)


def _folder(name: ScorerName, how: Loading) -> Source:
    from poise.models.heads import load_score_model
    from poise.models.runs import SCORE_MODEL_CARD, score_model_of

    folder = score_model_of(expanded(name.place))
    if not folder.is_dir():
        raise ConfigError(f"{name.text}: there is no folder {folder}. A scorer is named by\n{GRAMMAR}")
    if not (folder / SCORE_MODEL_CARD).is_file():
        is_foreign = (folder / "config.json").is_file()
        hint = f"Say hf:{name.place} for a sequence classifier" if is_foreign else "Give the folder that holds it"
        raise ConfigError(f"{name.text}: {folder} is not a score model of poise, it has no {SCORE_MODEL_CARD}. {hint}")
    shared = how.backbone if how.backbone is not None and _is_base(how.backbone, folder / SCORE_MODEL_CARD) else None
    model = load_score_model(folder, backbone=shared, adapter=f"named score {len(how.sources)}")
    return Source(scorer=model, outputs={channel.name: channel.higher_is_worse for channel in model.channels})


def _classifier(name: ScorerName, how: Loading) -> Source:
    from poise.feedback.classifiers import VALUES, ClassifierOptions, load_classifier

    options = ClassifierOptions(
        device=name.options.get("device", how.device),
        dtype=name.options.get("dtype", "auto"),
        batch_size=name.integer("batch", how.batch_size),
        max_tokens=name.integer("max_tokens", 0) or how.max_tokens,
        template=name.options.get("template", ""),
        value=name.choice("value", VALUES, ""),
    )
    scorer = load_classifier(name.place, options)
    return Source(scorer=scorer, outputs=scorer.ways, must_say=True)


def _guard(name: ScorerName, how: Loading) -> Source:
    from poise.feedback.guard_layouts import layout_of
    from poise.feedback.guards import load_guard

    asked = {option: name.options.get(option, "") for option in ("layout", "guideline", "risk")}
    scorer = load_guard(
        name.place,
        layout_of(name.place, **asked),
        device=name.options.get("device", how.device),
        dtype=name.options.get("dtype", "auto"),
        batch_size=name.integer("batch", how.batch_size),
        max_tokens=name.integer("max_tokens", 0) or how.max_tokens,
    )
    return Source(scorer=scorer, outputs={"unsafe": True})


def _is_base(backbone: Backbone, card: Path) -> bool:
    """Whether a score model reads exactly this backbone: its weights, and its template."""
    stored = json.loads(card.read_text("utf-8"))
    template = stored.get("chat_template", backbone.tokenizer.chat_template)
    return bool(stored["base_model"] == backbone.name and template == backbone.tokenizer.chat_template)


_LOADERS: Mapping[str, Callable[[ScorerName, Loading], Source]] = {
    "rule": _rule,
    "py": _python,
    "http": _server,
    "folder": _folder,
    "hf": _classifier,
    "guard": _guard,
}
