"""Which data sets have a name and under which licence they may be used; `load` reads them, and files by path.

A set is looked for in this order: the path itself; the folder that POISE_DATA names; the Hugging Face hub.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

from poise.data.collect import Collector, write_quarantine
from poise.data.datasets.base import Parse
from poise.data.hub import read_hub
from poise.data.locate import Licence, Source, files_of, holds
from poise.data.reading import RawFile, data_files, is_data_file, known_suffixes, read_file
from poise.data.splits import merge
from poise.errors import DataError
from poise.types import Dataset

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


def load(name_or_path: str | Path, *, quarantine: Path | None = None, strict: bool = False) -> Dataset:
    """Read a data set by name, a file or folder by path, or several joined with `+`.

    Rows that cannot be read become `bad_rows`, each with its file, line and reason; with `quarantine` they are also
    written to that JSONL file. A row whose labels contradict each other is not bad: see `poise.data.lint`.

    Raises DataError if nothing is found, if every row is bad, or on the first bad row if `strict`.

    >>> load("starter").provenance["licence"]
    'CC0-1.0'
    """
    text = os.fspath(name_or_path)
    parts = [text] if Path(text).exists() else [part.strip() for part in text.split("+")]
    single = dict.fromkeys(name for part in parts for name in GROUPS.get(part, (part,)))  # each once
    datasets = [_load_one(name, strict=strict) for name in single]
    dataset = datasets[0] if len(datasets) == 1 else merge(datasets, name=text)
    if quarantine is not None:
        write_quarantine(quarantine, dataset.bad_rows)
    for each in datasets:
        _require_good_rows(each)
    return dataset


def _load_one(name: str, *, strict: bool) -> Dataset:
    if name in SOURCES:
        return _load_source(SOURCES[name], strict=strict)
    if Path(name).exists():
        return _load_path(Path(name), strict=strict)
    on_hub = [source for source in SOURCES.values() if source.hub_id == name]
    if on_hub:
        grouped = {part for parts in GROUPS.values() for part in parts}
        chosen = [source for source in on_hub if source.name in grouped] or on_hub
        return merge([_load_source(source, strict=strict) for source in chosen], name=name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _load_hub_id(name, strict=strict)
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known names: {', '.join(names())}."
    raise DataError(f"data set {name!r} is not found: no file or folder of this path, and no known name. {hint}")


def _load_source(source: Source, *, strict: bool) -> Dataset:
    files = files_of(source)
    collector = Collector(source.name, strict=strict)
    for file in files:
        _read(collector, file, source)
    return collector.dataset(revision=source.revision if files[0].path.startswith("hub:") else None)


def _read(collector: Collector, file: RawFile, source: Source) -> None:
    module, function = source.parser.split(".")
    parse: Parse = getattr(import_module(f"poise.data.datasets.{module}"), function)
    collector.read(
        file, parse, source=source.name, licence=source.licence.name, non_commercial=source.licence.non_commercial
    )


def _load_path(path: Path, *, strict: bool) -> Dataset:
    """A file, or all files below a folder; a file that lies in the folder of a named set is read as that set."""
    files = data_files(path) if path.is_dir() else [path]
    if not files or not all(map(is_data_file, files)):
        raise DataError(
            f"{path} is no data file and holds none: the name must end in {known_suffixes()}, or .gz after it"
        )
    root = path.absolute() if path.is_dir() else path.absolute().parent
    collector = Collector(path.absolute().stem, strict=strict)
    for file, source in sorted(((file, _source_of(file.absolute())) for file in files), key=_reading_order):
        raw = read_file(file, f"{root.name}/{file.absolute().relative_to(root).as_posix()}")
        if source is not None:
            _read(collector, raw, source)
        elif raw.rows:
            _read_by_columns(collector, raw)
    return collector.dataset(revision=None)


def _reading_order(found: tuple[Path, Source | None]) -> tuple[int, Path]:
    """Files of a named set in the order of its patterns, others by name."""
    file, source = found
    patterns = source.files if source is not None else ()
    return next((index for index, pattern in enumerate(patterns) if fnmatch(file.name, pattern)), 0), file


def _source_of(file: Path) -> Source | None:
    return next((source for source in SOURCES.values() if holds(source, file)), None)


def _load_hub_id(hub_id: str, *, strict: bool) -> Dataset:
    collector = Collector(hub_id, strict=strict)
    try:
        files = read_hub(hub_id, revision="main", arguments={})
    except DataError as error:
        raise DataError(
            f"data set {hub_id!r} is not found. Tried 1. a path: there is none; 2. POISE_DATA: it is no known name; "
            f"3. the hub: {error}"
        ) from error
    for file in files:
        _read_by_columns(collector, file)
    return collector.dataset(revision="main")


def _read_by_columns(collector: Collector, file: RawFile) -> None:
    from poise.data.datasets.columns import detect

    licence = NOT_STATED
    parse = detect(file).parse
    collector.read(file, parse, source=collector.name, licence=licence.name, non_commercial=licence.non_commercial)


def _require_good_rows(dataset: Dataset) -> None:
    rows_read = dataset.provenance["rows_read"]
    if rows_read == 0:
        raise DataError(f"data set {dataset.name!r} holds no rows: {[f['path'] for f in dataset.provenance['files']]}")
    if len(dataset.bad_rows) == rows_read:
        shown = "; ".join(f"{row.path}:{row.line}: {row.reason}" for row in dataset.bad_rows[:3])
        raise DataError(f"data set {dataset.name!r}: none of its {rows_read} rows can be read. The first: {shown}")
