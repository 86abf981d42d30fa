"""What a scorer answers, checked before anything is made of it: one record per completion, every value a number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from numbers import Real
from typing import Any

from poise.errors import ConfigError, FeedbackError, PoiseError
from poise.text import one_line
from poise.types import Completion, Prompt, Scorer, Scores


def name_of(scorer: Any) -> str:
    """How errors and records call a scorer: its own name, if it has one, or that of its class."""
    own = getattr(scorer, "name", "")
    return own if isinstance(own, str) and own else type(scorer).__name__


def ask(
    scorer: Scorer, prompts: Sequence[Prompt], completions: Sequence[Completion], *, name: str = ""
) -> list[Scores]:
    """The scores of completions, one each and in their order, with every value a float and the scorer as the source.

    Integers, booleans and scalars of numpy and torch are numbers. NaN and infinity are let through: who asks
    knows what to do about them.

    Raises:
        FeedbackError: the scorer failed, gave another number of scores, something else than `Scores`, or values that
            are no numbers; it names the scorer and counts.

    >>> from poise.feedback.rules import RefusalScorer
    >>> ask(RefusalScorer(), [Prompt.of("Hello")], [Completion(prompt_id="", text="No.")])[0].values
    {'refusal': 1.0}
    """
    called = name or name_of(scorer)
    found = _given(scorer, prompts, completions, called)
    _require_records(found, called)
    return [
        replace(each, values=row, source=each.source or called)
        for each, row in zip(found, _floats(found, called), strict=True)
    ]


def merged(given: Sequence[tuple[str, Scores]]) -> Scores:
    """One record of what several scorers, each with its name, say of a completion.

    Where some of them have no value the others' are kept, and the explanation says who had none and why; it is
    unscorable where nobody has one. Raises ConfigError if two scorers fill one channel.
    """
    owners: dict[str, str] = {}
    for name, scores in given:
        if taken := owners.keys() & scores.values.keys():
            others = ", ".join(sorted({owners[channel] for channel in taken}))
            raise ConfigError(
                f"scorer {name!r} fills {sorted(taken)}, which another scorer also fills ({others}): give it "
                "other channels, or remove one of the two"
            )
        owners |= dict.fromkeys(scores.values, name)
    reasons = [f"{name}: {scores.unscorable}" for name, scores in given if scores.unscorable]
    explanations = [scores.explanation for _, scores in given if scores.explanation]
    return Scores(
        values={channel: value for _, scores in given for channel, value in scores.values.items()},
        source=" + ".join(scores.source or name for name, scores in given),
        explanation="\n".join(explanations + (reasons if owners else [])),
        spans={channel: spans for _, scores in given for channel, spans in scores.spans.items()},
        token_values={channel: each for _, scores in given for channel, each in scores.token_values.items()},
        unscorable="" if owners else "; ".join(reasons),
    )


def _given(scorer: Scorer, prompts: Sequence[Prompt], completions: Sequence[Completion], name: str) -> list[Any]:
    """What the scorer gives, one each; FeedbackError if it fails or gives another number."""
    due = len(completions)
    try:
        answer = scorer.score(prompts, completions)
        if isinstance(answer, (str, bytes, Mapping)) or not isinstance(answer, Iterable):
            if hasattr(answer, "close"):  # a coroutine, which would be said to have been forgotten
                answer.close()
            raise FeedbackError(f"scorer {name!r} gave {answer!r:.80}, expected a list of Scores, one per completion")
        found = list(islice(answer, due + 1))
    except PoiseError:
        raise
    except Exception as error:
        raise FeedbackError(
            f"scorer {name!r} failed on {due} completions: {type(error).__name__}: {one_line(str(error), 200)}. "
            "For what cannot be scored, return Scores(values={}, unscorable='why'); --debug shows where it "
            "failed"
        ) from error
    if len(found) != due:
        number = len(answer) if isinstance(answer, Sized) else len(found) if len(found) < due else f"more than {due}"
        raise FeedbackError(
            f"scorer {name!r} gave {number} scores for {due} completions; expected one each, in order: for what "
            "cannot be scored, return Scores(values={}, unscorable='why')"
        )
    return found


def _is_record(each: Any) -> bool:
    """Whether it is Scores with channels by name and texts in words; a text may be missing."""
    if not isinstance(each, Scores) or not isinstance(each.values, Mapping):
        return False
    texts = (each.source, each.explanation, each.unscorable)
    return all(isinstance(name, str) for name in each.values) and all(isinstance(text or "", str) for text in texts)


def _require_records(found: Sequence[Any], name: str) -> None:
    wrong = [each for each in found if not _is_record(each)]
    if wrong:
        raise FeedbackError(
            f"scorer {name!r}: {len(wrong)} of {len(found)} answers are not Scores with values by channel, the "
            f"first is {wrong[0]!r:.80}. Return Scores(values={{'reward': 0.5}}), or Scores(values={{}}, "
            "unscorable='why')"
        )


def _floats(found: Sequence[Scores], name: str) -> list[dict[str, float]]:
    """The values as floats; FeedbackError if some are no numbers."""
    rows = [{channel: as_float(value) for channel, value in each.values.items()} for each in found]
    wrong = Counter(channel for row in rows for channel, value in row.items() if value is None)
    if wrong:
        channel, count = wrong.most_common(1)[0]
        value = next(
            each.values[channel] for each, row in zip(found, rows, strict=True) if row.get(channel, 0.0) is None
        )
        raise FeedbackError(
            f"scorer {name!r}: {count} of {len(found)} values on channel {channel!r} are not numbers, the first is "
            f"{value!r:.80}. Give floats; if there is no value, return Scores(values={{}}, unscorable='why')"
        )
    return [{channel: value for channel, value in row.items() if value is not None} for row in rows]


def as_float(value: Any) -> float | None:
    """A number as a float; None for what is none."""
    if isinstance(value, (Real, Decimal)):
        try:
            return float(value)
        except OverflowError:  # an integer beyond all floats
            return math.inf
        except (TypeError, ValueError):  # a span of time of numpy, a signalling NaN
            return None
    # a scalar of numpy or torch: one entry, and no text or object inside
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) in ((), (1,)):
        inner = value.item()
        return as_float(inner) if isinstance(inner, Real) else None
    return None
