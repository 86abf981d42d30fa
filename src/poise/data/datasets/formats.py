"""Which format a file is in, told by the names of its columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from poise.data.datasets import advbench, instructions, pku_saferlhf, xstest
from poise.data.datasets.base import Parse
from poise.data.datasets.columns import (
    ANSWERS,
    parse_completion,
    parse_instruction,
    parse_messages,
    parse_openai_preference,
    parse_pair_without_prompt,
    parse_pku,
    parse_prompt,
    parse_response,
)
from poise.data.datasets.compared import ArenaRow, SignedPreferenceRow, parse_arena, parse_beavertails, parse_signed
from poise.data.datasets.own_rows import CRITERIA, ROWS
from poise.data.datasets.scored import parse_ranked, parse_rated, parse_rating, parse_scored_preference
from poise.data.reading import RawFile
from poise.errors import DataError


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write rows: the columns that give it away ("a|b" is either), and the function that reads it."""

    name: str
    required: tuple[str, ...]
    parse: Parse

    def fits(self, columns: frozenset[str]) -> bool:
        """True if all required columns are there."""
        return all(not columns.isdisjoint(each.split("|")) for each in self.required)


# The first format whose columns are all there wins, so formats with more telling columns stand first.
FORMATS = (
    Format("decoupled pair (PKU-SafeRLHF)", tuple(sorted(pku_saferlhf.COLUMNS)), parse_pku),
    Format("XSTest completion", tuple(sorted(xstest.COMPLETION_COLUMNS)), xstest.parse),
    Format("XSTest prompt", tuple(sorted(xstest.PROMPT_COLUMNS)), xstest.parse_prompts),
    Format("OpenAI preference", ("input", "preferred_output", "non_preferred_output"), parse_openai_preference),
    Format(
        "signed preference (HelpSteer2, HelpSteer3)",
        ("prompt|context", "response_1|response1", "response_2|response2", "preference_strength|overall_preference"),
        parse_signed,
    ),
    Format("Chatbot Arena", ("conversation_a", "conversation_b", "winner"), parse_arena),
    Format("BeaverTails", ("prompt", "response", "category", "is_safe"), parse_beavertails),
    Format("preference", ("prompt|conversations|instruction", "chosen", "rejected"), parse_scored_preference),
    Format("preference without prompt", ("chosen", "rejected"), parse_pair_without_prompt),
    Format("ranked responses", ("prompt|instruction", "completions|responses", "ranks|ranking"), parse_ranked),
    Format("rated completions (UltraFeedback)", ("prompt|instruction", "completions"), parse_rated),
    Format("rated responses", ("prompt|instruction", "responses", "scores|ratings|rewards"), parse_rated),
    Format("rated response (HelpSteer)", ("prompt", "response|completion", "|".join(CRITERIA)), parse_rating),
    Format("rated response", ("prompt", "response|completion", "ratings"), parse_rating),
    Format("rated response", ("prompt", "response|completion", "rating|score", "criterion"), parse_rating),
    Format("judged response", ("prompt", "response", "safe|unsafe|label|desirable"), parse_response),
    Format("demonstration or judged completion", ("prompt", "completion"), parse_completion),
    Format("conversation", ("messages|conversations|conversation",), parse_messages),
    Format("instruction", ("instruction",), parse_instruction),
    Format("AdvBench request", tuple(sorted(advbench.COLUMNS)), advbench.parse),
    Format("prompt", ("prompt",), parse_prompt),
)
# Every name that a format reads: what a file's own columns can be renamed to.
KNOWN = frozenset(
    name
    for record in (*ROWS, SignedPreferenceRow, ArenaRow, pku_saferlhf.PkuRow, instructions.InstructionRow)
    for field, information in record.model_fields.items()
    for name in (*getattr(information.validation_alias, "choices", ()), field)
)


def detect(file: RawFile) -> Format:
    """The format of a file, from the columns that most of its rows have.

    Raises DataError if no format fits, or if only `prompt` does although there is an answer beside it.
    """
    shapes = Counter(
        frozenset(name for name, value in row.columns.items() if value is not None)
        for row in file.rows
        if row.columns is not None
    )
    columns = shapes.most_common(1)[0][0] if shapes else frozenset()
    found = next((each for each in FORMATS if each.fits(columns)), None)
    if found is not None and not (found.name == "prompt" and columns & ANSWERS):
        return found
    if not shapes and file.rows:
        row = file.rows[0]
        raise DataError(f"{file.path}: none of its {len(file.rows)} rows can be read. Line {row.line}: {row.problem}")
    answers = sorted(columns & ANSWERS)
    keep = f" If {answers[0]} is what a reward function compares with, keep it: keep={answers[0]}." if answers else ""
    known = "; ".join(f"{each.name}: {', '.join(each.required)}" for each in FORMATS)
    raise DataError(
        f"{file.path}: its columns {sorted(columns)} are none of the formats that can be read ({known}). "
        "Rename the columns, or say which is which with --columns prompt=...,chosen=...,rejected=... (in Python "
        f"`load(..., columns=...)`); docs/data.md shows an example of each format.{keep}"
    )
