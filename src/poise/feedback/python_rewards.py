"""Reward functions of a user's own, in the signature that TRL has for them."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.errors import ConfigError, FeedbackError
from poise.feedback.asking import as_float
from poise.files import expanded
from poise.text import one_line
from poise.types import Completion, Prompt, Scores

FORMATS = ("text", "messages")
_SIGNATURE = "def FUNCTION(prompts, completions, **columns) -> list[float | None]"
_GIVEN = ("prompts", "completions", "completion_ids")


class PythonReward:
    """A function `f(prompts, completions, **columns) -> list[float | None]` as a scorer with one output.

    The function is called by keyword with as many of these as its signature takes, each a list with one entry per
    completion: `prompts`, `completions`, `completion_ids` (token ids, where the engine says them) and every tag of the
    prompts, which the further columns of the data become; None where a row has none. It may be asynchronous.

    None says that a completion cannot be scored. A completion of which the engine failed is not given to the function.

    form    "text": prompts and completions are texts, as TRL gives them for data of plain text; "messages": both are
            lists of messages, as TRL gives them for conversations; "" is text, and an error for a prompt that is a
            conversation of several turns, which the text of its last turn does not stand for
    output  the name of the output

    >>> def length(completions, **columns):
    ...     return [float(len(completion)) for completion in completions]
    >>> prompt = Prompt.of("Hello")
    >>> PythonReward(length).score([prompt], [Completion(prompt_id=prompt.id, text="Hi!")])[0].values
    {'length': 3.0}
    """

    def __init__(self, function: Callable[..., Any], *, form: str = "", name: str = "", output: str = ""):
        called = getattr(function, "__name__", type(function).__name__)
        self.function, self.form, self.output = function, form, output or called
        self.name = name or called

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """One value per completion, or none where the function gives None.

        Raises FeedbackError where the function fails, gives another number of values, NaN, infinity or no numbers.
        """
        asked = [i for i, completion in enumerate(completions) if completion.finish != "error"]
        values = self._values([prompts[i] for i in asked], [completions[i] for i in asked]) if asked else []
        given = dict(zip(asked, values, strict=True))
        found = []
        for i, completion in enumerate(completions):
            reason = completion.unfit if i not in given else "the function gives None" if given[i] is None else ""
            value = given.get(i)
            values_by_name = {} if value is None else {self.output: value}
            found.append(Scores(values=values_by_name, source=self.name, unscorable=reason))
        return found

    def _values(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        columns = self._columns(prompts, completions)
        try:
            answer = self.function(**self._accepted(columns))
            answer = asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer
            listed = list(answer)
        except FeedbackError:
            raise
        except Exception as error:
            raise FeedbackError(self._failed(error, columns)) from error
        if len(listed) != len(completions):
            raise FeedbackError(
                f"{self.name} gave {len(listed)} values for {len(completions)} completions; expected one each, in "
                "their order, and None for what cannot be scored"
            )
        return [self._checked(value, place, len(listed)) for place, value in enumerate(listed)]

    def _columns(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, list[Any]]:
        """What TRL would give the function for these completions."""
        names = sorted({name for prompt in prompts for name in prompt.tags} - set(_GIVEN))
        columns: dict[str, list[Any]] = {name: [prompt.tags.get(name) for prompt in prompts] for name in names}
        if self.form == "messages":
            said: list[Any] = [[dict(message) for message in prompt.messages] for prompt in prompts]
            made: list[Any] = [_messages(completion) for completion in completions]
        else:
            said, made = [self._text(prompt) for prompt in prompts], [each.text for each in completions]
        return {
            **columns,
            "prompts": said,
            "completions": made,
            "completion_ids": [[*c.token_ids] for c in completions],
        }

    def _text(self, prompt: Prompt) -> str:
        if self.form == "" and len(prompt.messages) > 1:
            raise FeedbackError(
                f"{self.name}: prompt {prompt.id} is a conversation of {len(prompt.messages)} messages, and the "
                "function is given texts. Add ?format=messages if it reads messages as TRL gives them "
                "(completion[0]['content']), or ?format=text to give it the text of the last turn alone"
            )
        return prompt.text

    def _accepted(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """The columns that the signature takes; all where it takes any."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # of a function in C
            return dict(columns)
        known = {each.name: each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        due = [name for name, each in known.items() if each.default is each.empty]
        if missing := [name for name in due if name not in columns]:
            raise FeedbackError(
                f"{self.name} takes {', '.join(missing)}, and the data has no such column. It has {_listed(columns)}. "
                "Rename the column of the data (--columns), or give the parameter a default"
            )
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
        return dict(columns) if takes_all else {name: columns[name] for name in known if name in columns}

    def _checked(self, value: Any, place: int, number: int) -> float | None:
        if value is None:
            return None
        read = as_float(value)
        if read is None or not math.isfinite(read):
            raise FeedbackError(
                f"{self.name} gave {value!r:.80} for completion {place + 1} of {number}; expected a finite number, or "
                "None for what cannot be scored"
            )
        return read

    def _failed(self, error: Exception, columns: Mapping[str, list[Any]]) -> str:
        form = "messages" if self.form == "messages" else "texts"
        other = "text" if self.form == "messages" else "messages"
        return (
            f"{self.name} failed: {type(error).__name__}: {one_line(str(error), 200)}. It was called as {_SIGNATURE} "
            f"with {_listed(columns)}; prompts and completions were {form} (?format={other} gives {other} instead). "
            "--debug shows where it failed"
        )


def python_reward(place: str, *, form: str = "") -> PythonReward:
    """The function that `FILE.py:FUNCTION` names. The file is run, as Python runs any file that it imports.

    Raises ConfigError for a file or function that is not there, and for what is no function.
    """
    file, separator, called = place.rpartition(":")
    path = expanded(file)
    if not separator or path.suffix != ".py" or not called.isidentifier():
        raise ConfigError(f"py:{place} is not py:FILE.py:FUNCTION, such as py:rewards.py:brevity")
    if not path.is_file():
        raise ConfigError(
            f"py:{place}: there is no file {path}. Give its path from here ({Path.cwd()}) or from the root"
        )
    module = _module(path)
    found = getattr(module, called, None)
    if not callable(found):
        defined = [name for name, each in vars(module).items() if inspect.isfunction(each)]
        raise ConfigError(
            f"py:{place}: {path} defines no function {called!r}. It defines {', '.join(defined) or 'none'}; a reward "
            f"is {_SIGNATURE}"
        )
    return PythonReward(found, form=form, name=f"py:{place}", output=called)


def _module(path: Path) -> Any:
    """The file as a module; what it imports from beside itself is found there."""
    name = f"_poise_rewards_{path.resolve().as_posix()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported as a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise ConfigError(
            f"{path} fails when it is run: {type(error).__name__}: {one_line(str(error), 200)}"
        ) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _messages(completion: Completion) -> list[dict[str, Any]]:
    """A completion as TRL gives it for conversations: the turns after the prompt."""
    if completion.turns:
        return [dict(turn.message) for turn in completion.turns]
    return [{"role": "assistant", "content": completion.text}]


async def _awaited(answer: Any) -> Any:
    return await answer


def _listed(columns: Mapping[str, Any]) -> str:
    return ", ".join([*_GIVEN, *(name for name in columns if name not in _GIVEN)])
