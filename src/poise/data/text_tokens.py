"""Text to tokens and back, with nothing in it read as a control token.

A tokenizer reads `<|im_end|>` as the end of a turn wherever it stands. What a person or a model wrote must not have
that power: texts are tokenised with control tokens split, and the template's own are told from those that a text
spells out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from poise.errors import ModelError

_PRIVATE_USE = range(0xE000, 0xF900)  # characters that no script has
# What a text is tokenised behind and freed of again: some tokenizers begin every text with a space of their own.
_ANCHORS = ("", "\n", "a\n")


class TextTokens:
    """How a tokenizer reads texts that are only text.

    `controls` are the tokens, by id, that a text may spell out and never be: the tokenizer's special ones and `ends`.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int] = ()):
        self.tokenizer = tokenizer
        self.anchor = ""
        added = tokenizer.added_tokens_decoder.items()
        self.controls = {i: str(token) for i, token in added if token.special} | {
            i: text for i, text in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        }
        self._split: Any = None
        self.add_controls(ends)

    def add_controls(self, ids: Iterable[int]) -> None:
        """Split these tokens too wherever a text spells them out."""
        self.controls |= {i: str(self.tokenizer.convert_ids_to_tokens(i)) for i in ids}
        texts = sorted((text for text in self.controls.values() if text), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self._beginnings = {text[:size] for text in texts for size in range(1, len(text))}
        self._endings = {text[size:] for text in texts for size in range(1, len(text))}
        self._split = None
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        plain = {i for i in self.tokenizer.added_tokens_decoder if i in self.controls} - special
        if plain and self.tokenizer.is_fast:
            self._split = _splitting(self.tokenizer, plain)

    def anchored(self, anchor: str) -> TextTokens:
        """The same behind another anchor."""
        self.anchor = anchor
        return self

    def ids(self, text: str) -> list[int]:
        """Ids of a text that goes on behind others."""
        return self._behind(self.anchor, text)

    def text(self, ids: Sequence[int]) -> str:
        """What ids say; special tokens among them say nothing."""
        if not ids:
            return ""
        before = self._all_ids(self.anchor)
        return self._decoded([*before, *ids])[len(self._decoded(before)) :]

    def spelt(self, ids: Iterable[int]) -> dict[int, str]:
        """How the tokens of these ids are written; without those that the vocabulary lacks or that are only space."""
        known = {i: self.tokenizer.convert_ids_to_tokens(i) for i in ids}
        texts = {
            i: str(self.tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for i, token in known.items()
            if token is not None
        }
        return {i: text for i, text in texts.items() if text.strip()}

    def parsed(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are control tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def masked(self, texts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The texts with one character in place of each control token they spell out, and what the characters mean.

        A text that only begins or ends as a control token does is masked there too: its neighbour may complete it.
        """
        marks: dict[str, str] = {}
        taken = set().union(*texts)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        return [self._mask(text, marks, free) for text in texts], {mark: text for text, mark in marks.items()}

    def masked_in(self, value: Any) -> tuple[Any, dict[str, str]]:
        """The same for all texts within lists and mappings, keys that hold a control token among them."""
        masks, meaning = self.masked(list(self._texts_in(value)))
        return (_with_texts(value, iter(masks), self._spells_control) if meaning else value), meaning

    def _texts_in(self, value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if self._spells_control(key):
                    yield key
                yield from self._texts_in(item)
        elif isinstance(value, Sequence):
            for item in value:
                yield from self._texts_in(item)

    def _spells_control(self, key: Any) -> bool:
        return isinstance(key, str) and self._pattern.search(key) is not None

    def unmasked(self, text: str, meaning: dict[str, str]) -> list[int]:
        """Ids of a text with control tokens parsed, and those that `meaning` has for a character of it as text.

        Raises ModelError if the tokenizer cannot tell such a text from its control token.
        """
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"a prompt contains the text of a control token ({', '.join(meaning.values())}), which tokenizer "
                f"{self.tokenizer.name_or_path!r} cannot distinguish from a real one: use a tokenizer with a "
                "tokenizer.json"
            )
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        result: list[int] = []
        section: list[int] = []
        start = 0
        for token, (begin, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if token in self.controls and self.controls[token] in text[begin:end]:
                result += [*self._section(text[start:begin], section, meaning), token]
                section, start = [], end
            else:
                section.append(token)
        return result + self._section(text[start:], section, meaning)

    def _section(self, text: str, ids: list[int], meaning: dict[str, str]) -> list[int]:
        """Ids of what stands between two control tokens, as the tokenizer had it where nothing is masked."""
        if not any(mark in text for mark in meaning):
            return ids
        anchor = next((each for each in _ANCHORS if self._behind(each, text) == ids), self.anchor)
        return self._behind(anchor, "".join(meaning.get(character, character) for character in text))

    def _mask(self, text: str, marks: dict[str, str], free: Iterator[str]) -> str:
        def mark(spelling: str) -> str:
            if spelling and spelling not in marks:
                marks[spelling] = next(free)
            return marks.get(spelling, "")

        kept = self._pattern.sub(lambda match: mark(match[0]), text)
        # templates may strip a text, so that what counts is where it begins and ends without space
        inner = kept.strip()
        begin = kept.find(inner)
        tail = _longest(inner, self._beginnings, at_end=True)
        head = _longest(inner[: len(inner) - len(tail)], self._endings, at_end=False)
        middle = inner[len(head) : len(inner) - len(tail)]
        return kept[:begin] + mark(head) + middle + mark(tail) + kept[begin + len(inner) :]

    def _behind(self, anchor: str, text: str) -> list[int]:
        return self._all_ids(anchor + text)[len(self._all_ids(anchor)) :]

    def _all_ids(self, text: str) -> list[int]:
        if not text:
            return []
        if self._split is not None:
            return list(self._split.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _decoded(self, ids: Sequence[int]) -> str:
        # cleaning up would delete spaces before punctuation
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _with_texts(value: Any, texts: Iterator[str], is_text: Callable[[Any], bool]) -> Any:
    """The same value with other texts in the order of `_texts_in`; keys are taken from them where `is_text` says so."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, Mapping):
        return {
            (next(texts) if is_text(key) else key): _with_texts(item, texts, is_text) for key, item in value.items()
        }
    if isinstance(value, Sequence):
        return [_with_texts(item, texts, is_text) for item in value]
    return value


def anchors() -> tuple[str, ...]:
    """What a text may be tokenised behind, the plainest first."""
    return _ANCHORS


def _longest(text: str, parts: set[str], *, at_end: bool) -> str:
    """The longest of the parts that the text ends, or begins, with."""
    longest = min(len(text), max(map(len, parts), default=0))
    pieces = (text[-size:] if at_end else text[:size] for size in range(longest, 0, -1))
    return next((piece for piece in pieces if piece in parts), "")


def _splitting(tokenizer: Any, ids: set[int]) -> Any:
    """The tokenizer's own machinery with these added tokens made special, and all special ones split."""
    from tokenizers import Tokenizer

    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in stored["added_tokens"]:
        token["special"] = token["special"] or token["id"] in ids
    machinery = Tokenizer.from_str(json.dumps(stored))
    machinery.no_truncation()
    machinery.no_padding()
    machinery.encode_special_tokens = True
    return machinery
