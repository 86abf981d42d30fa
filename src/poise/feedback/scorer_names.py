"""What `--reward` and `--cost` say: the grammar of a scorer's name, and nothing that loads or asks one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from poise.errors import ConfigError

GRAMMAR = """\
    [WEIGHT*]SCORER[#OUTPUT][?OPTION=VALUE&OPTION=VALUE...]

    SCORER
      RUN/scores/model          a folder of a score model that poise trained, or a run of `poise run score-model`
      hf:ID_OR_FOLDER           a sequence classifier of transformers, or a reward or cost model of PKU's Beaver
      guard:ID_OR_FOLDER        a generative guard (Llama-Guard, ShieldGemma, WildGuard, Granite-Guardian): P(unsafe)
      py:FILE.py:FUNCTION       a function with the signature of TRL's reward functions
      http://HOST:PORT          a `poise serve-scorer`; POISE_SCORER_TOKEN opens it
      rule:NAME                 a rule of poise (refusal)
    WEIGHT*   what the output is multiplied by in the sum; `-` alone is -1*
    #OUTPUT   which output of a scorer with several, by its name or label
    OPTION    of all: sign=higher_is_worse|higher_is_better, which way the output points
              hf: device, dtype, batch, max_tokens, template=chat|pair|response|FILE, value=logit|probability
              guard: device, dtype, batch, max_tokens, layout, guideline or risk
              py: format=text|messages
              http: batch"""

WAYS = {"higher_is_worse": True, "higher_is_better": False}
_COMPUTED = ("device", "dtype", "batch", "max_tokens")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "folder": (),
    "hf": (*_COMPUTED, "template", "value"),
    "guard": (*_COMPUTED, "layout", "guideline", "risk"),
    "py": ("format",),
    "http": ("batch",),
    "rule": (),
}
_WEIGHT = re.compile(r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*|(?P<minus>-))\s*")
_KIND = re.compile(r"([A-Za-z][A-Za-z0-9_+.]+):(?!//)")
_JOINED = re.compile(r"\s+\+\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerName:
    """One term of a channel: which scorer, which of its outputs, with which weight and options."""

    text: str  # as it was given, for errors
    kind: str
    place: str  # folder, id, address, or file and function
    weight: float = 1.0
    output: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """What tells one scorer from another: terms that share it share one loaded scorer."""
        return self.kind, self.place, tuple(sorted(item for item in self.options.items() if item[0] != "sign"))

    @property
    def higher_is_worse(self) -> bool | None:
        """Which way the output points, where the name says so."""
        return WAYS[self.options["sign"]] if "sign" in self.options else None

    def integer(self, option: str, default: int) -> int:
        """An option that is a number of rows or tokens. Raises ConfigError for one that is none, or below 1."""
        given = self.options.get(option)
        if given is None:
            return default
        if not given.isdecimal() or int(given) < 1:
            raise ConfigError(f"{self.text}: {option}={given} must be a whole number of at least 1")
        return int(given)

    def choice(self, option: str, choices: Sequence[str], default: str) -> str:
        """An option that is one of some words. Raises ConfigError for another."""
        given = self.options.get(option, default)
        if given not in (*choices, default):
            raise ConfigError(f"{self.text}: {option}={given}: choose {', '.join(choices)}")
        return given


def read_scorer_name(text: str) -> ScorerName:
    """One term of the grammar, read.

    Raises ConfigError for an unknown kind, an option that the kind does not have, or a weight that weighs nothing.

    >>> name = read_scorer_name("0.7*hf:org/judge#toxic?batch=8")
    >>> name.weight, name.kind, name.place, name.output, dict(name.options)
    (0.7, 'hf', 'org/judge', 'toxic', {'batch': '8'})
    """
    found = _WEIGHT.match(text)
    rest = text[found.end() :].strip() if found else text.strip()
    weight = 1.0 if found is None else -1.0 if found["minus"] else float(found["number"])
    if not math.isfinite(weight) or weight == 0:
        raise ConfigError(f"{text!r}: the weight is {weight:g}; give a finite number other than 0, or leave it out")
    body, options = _options_of(text, rest)
    body, _, output = body.partition("#")
    kind, place = _kind_of(text, body)
    if not place:
        raise ConfigError(f"{text!r} names no scorer. A scorer is named by\n{GRAMMAR}")
    if strange := sorted(options.keys() - {"sign", *OPTIONS[kind]}):
        allowed = ", ".join(("sign", *OPTIONS[kind]))
        raise ConfigError(f"{text!r}: no option {', '.join(strange)} of this kind of scorer; it has {allowed}")
    name = ScorerName(text=text.strip(), kind=kind, place=place, weight=weight, output=output, options=options)
    name.choice("sign", tuple(WAYS), "higher_is_worse")
    return name


def read_scorer_names(texts: str | Sequence[str]) -> tuple[ScorerName, ...]:
    """The terms of a channel: several texts, each with one term or several joined by ` + `.

    >>> [name.weight for name in read_scorer_names("0.7*hf:a/b + -0.3*py:rewards.py:length")]
    [0.7, -0.3]
    """
    given = [texts] if isinstance(texts, str) else list(texts)
    terms = [term for text in given for term in _JOINED.split(text.strip())]
    if not terms:
        raise ConfigError(f"no scorer is named. A scorer is named by\n{GRAMMAR}")
    return tuple(read_scorer_name(term) for term in terms)


def _options_of(text: str, rest: str) -> tuple[str, dict[str, str]]:
    """What stands before the options, and the options."""
    body, _, query = rest.partition("?")
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if query else []
    except ValueError as error:
        raise ConfigError(
            f"{text!r}: {query!r} after the ? is not OPTION=VALUE; several are joined by &, as in ?batch=8&device=cpu"
        ) from error
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ConfigError(f"{text!r} gives an option twice: {query!r}. Give each once")
    return body, options


def _kind_of(text: str, body: str) -> tuple[str, str]:
    if body.startswith(("http://", "https://")):
        return "http", body.rstrip("/")
    found = _KIND.match(body)
    if found is None:
        return "folder", body
    if found[1] not in OPTIONS or found[1] in ("folder", "http"):
        raise ConfigError(f"{text!r}: no kind of scorer is called {found[1]!r}. A scorer is named by\n{GRAMMAR}")
    return found[1], body[found.end() :]
