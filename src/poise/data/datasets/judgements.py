"""Columns that judge an answer, told by their names: what is not understood must not be passed over.

An answer with a low score is no answer to imitate. A column beside an answer whose name speaks of a judgement is an
error unless its format reads it, or the reader was told to leave it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from poise.data.datasets.base import is_unknown
from poise.data.kept_columns import KEPT
from poise.errors import DataError

_JUDGING = frozenset(
    """
    label labels score scores scored scoring rating ratings rated rate rank ranks ranked ranking reward
    rewards cost costs chosen choice rejected reject rejects preferred prefers preference preferences prefer
    better best worse worst winner winners win wins won loser losers lose tie verdict verdicts judge judged
    judgement judgements judgment judgments grade grades graded grading vote votes voted voting upvote
    upvotes downvote downvotes upvoted downvoted thumb thumbs star stars like liked likes dislike disliked
    dislikes points desirable undesirable accept accepted acceptable approve approved approval disapproved
    unacceptable pass passed fail failed failure correct incorrect correctness wrong valid invalid good bad
    ok okay keep discard quality helpful helpfulness unhelpful honest honesty harmless harmlessness truthful
    truthfulness hallucinated hallucination hallucinations safe safety unsafe harm harmful harms harmfulness
    toxic toxicity nontoxic offensive offensiveness hate hateful abusive insult threat obscene profanity nsfw
    violation violations violates violating severity danger dangerous risk risky moderation flag flagged
    flags refusal refused refuses jailbreak jailbroken malicious bias biased annotation annotations
    evaluation evaluations eval evals feedback critique assessment kto sentiment elo reliable satisfaction
    satisfied useful usefulness success successful solved gold moderated reviewed
    """.split()
)
# What a column of any name says where it judges; texts about a subject do not consist of one of these alone.
_VERDICTS = frozenset(
    """
    accept accepted reject rejected approved disapproved denied pass passed fail failed good bad wrong correct
    incorrect valid invalid safe unsafe harmful harmless toxic nontoxic offensive helpful unhelpful desirable
    undesirable acceptable unacceptable better worse best worst upvote upvoted downvote downvoted preferred
    flagged refused jailbroken thumbsup thumbsdown notsafe nottoxic
    """.split()
)
# Words that turn a column into a remark on where a response comes from, such as chosen_model.
_OF_ORIGIN = frozenset(
    """
    model models source url sha256 hash md5 tokens token length len chars author date time timestamp name lang
    language annotator generator provider path file version
    """.split()
)
_OF_RESPONSES = frozenset("chosen rejected response responses answer completion prompt messages".split())
_DEEPEST = 3  # levels of objects and lists that are searched for names
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def speaks_of_judgement(name: str) -> bool:
    """Whether a column's name says that its value judges something.

    >>> [speaks_of_judgement(name) for name in ("is_safe", "qualityScore", "chosen_model", "category", "text")]
    [True, True, False, False, False]
    """
    words = {word.lower() for word in _WORD.findall(name)}
    if _is_of_origin(name):
        return False
    return bool(words & _JUDGING) or re.sub(r"[^a-z]", "", name.lower()) in _JUDGING


def _is_of_origin(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _OF_ORIGIN) and words - _OF_ORIGIN <= _OF_RESPONSES


def _is_verdict(name: str, value: Any) -> bool:
    said = isinstance(value, str) and re.sub(r"[^a-z]", "", value.lower()) in _VERDICTS
    return said and not _is_of_origin(name)


def require_understood(*records: BaseModel | None) -> None:
    """Raise DataError for the first column of these records that judges an answer and that they do not read."""
    for record in records:
        for path, value in _judging((record and record.model_extra) or {}):
            *_, name = path.split(".")
            means = f"label={path} if true means desirable, safe={path} or unsafe={path} if it is about safety"
            raise DataError(
                f"the column {path!r} ({value!r:.40}) seems to judge the answer, but its meaning is unknown. "
                f"Define it with --columns ({means}), or drop it with --columns ignore={name}"
            )


def _judging(columns: Mapping[str, Any], depth: int = 0, before: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of what judges, in the columns and in the objects and lists that they hold."""
    for name, value in columns.items():
        if is_unknown(value) or name == KEPT:
            continue
        path = f"{before}{name}"
        if speaks_of_judgement(name) or _is_verdict(name, value):
            yield path, value
        elif depth < _DEEPEST:
            inside = value if isinstance(value, list) else [value]
            for each in inside:
                if isinstance(each, Mapping):
                    yield from _judging(each, depth + 1, f"{path}.")
