"""Text of others is shown and not obeyed, on every way to a terminal or page."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from poise.cli import main
from poise.data.lint import lint
from poise.data.sources import load
from poise.evaluate.report import render, write_report
from poise.experiment.compliance import answers_text
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.text import in_markdown, one_line, say, visible, without_passwords
from poise.types import Completion, Prompt, Rollout, Scores

OBEYED = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
OBEYED += [chr(code) for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x2070), 0xFEFF, 0xFFF9)]
ATTACK = (
    "\x1b[2J\x1b]0;owned\x07\x1b]52;c;AAAA\x9c\rHarm rate 0 %\x9b31m\u202egnp.exe\u2066\u2028\x00\x08[bold]hi[/bold]"
)


def assert_harmless(text):
    found = [character for character in OBEYED if character in text]
    assert not found, f"{found!r} in {text!r:.300}"


def test_no_character_that_a_terminal_obeys_is_left_and_all_other_text_is():
    assert_harmless(visible("".join(OBEYED)))
    kept = "Grüße, 你好, مرحبا, 👩\u200d🚀\n\tline \u00a0two \u200e\u200f"
    assert visible(kept) == kept
    assert visible("one\r\ntwo\rthree") == "one\ntwo\\rthree"
    assert visible("\ud800").isascii()


def test_json_stays_the_same_json():
    content = {"text": "".join(OBEYED) + "\ud800 ü"}
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False)):
        assert json.loads(visible(text)) == content


def test_a_line_of_others_is_one_line_and_short():
    line = one_line(f"no\n\nError: {ATTACK}" + "x" * 10**6)
    assert_harmless(line)
    assert "\n" not in line
    assert len(line) == 300


def test_markdown_and_html_of_others_are_text():
    text = in_markdown("</details><script>a</script>\n# head\n- [x](javascript:y) `z` &lt; *b* |c| ~~d~~ " + ATTACK)
    assert_harmless(text)
    assert "\n" not in text
    assert r"\</details\>\<script\>" in text
    assert r"\[x\](javascript:y) \`z\` \&lt; \*b\* \|c\| \~\~d\~\~" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:80/v1", "http://***@host:80/v1"),
        ("--engine=https://t0ken@host failed", "--engine=https://***@host failed"),
        ("https://a:p@ss@host", "https://***@host"),
        ("https://host/@user and me@host.org", "https://host/@user and me@host.org"),
    ],
)
def test_passwords_of_addresses_are_hidden(text, shown):
    assert without_passwords(text) == shown


def test_what_the_terminal_cannot_write_is_spelled(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    say("Grüße \ud800")
    assert stream.buffer.getvalue() == b"Gr\\xfc\\xdfe \\ud800\n"


def test_a_model_in_chat_moves_no_cursor(monkeypatch, capsys):
    lines = iter(["Hello"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    monkeypatch.setattr(
        NativeEngine, "generate", lambda self, prompts, sampling: [Completion(prompt_id=prompts[0].id, text=ATTACK)]
    )
    main_exits_well("chat", "random:llama")
    out = capsys.readouterr().out
    assert_harmless(out)
    assert "[bold]hi[/bold]" in out


def main_exits_well(*words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code in (0, None)


def data_of_an_attacker(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [{"prompt": f"{ATTACK} {i}", "chosen": ATTACK, "rejected": "no"} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows, {f"odd {ATTACK}": ATTACK}]))
    return path


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_a_data_set_moves_no_cursor(tmp_path, capsys, option):
    path = data_of_an_attacker(tmp_path)
    main_exits_well("data", "lint", str(path), *option)
    out = capsys.readouterr().out
    assert_harmless(out)
    if option:
        assert json.loads(out) == json.loads(lint(load(str(path))).to_json())


def test_a_row_adds_no_line_to_the_findings_about_it(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + '\n{"x\\nerror: forged": 1}\n')
    main_exits_well("data", "lint", str(path))
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: forged")]


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_an_error_that_quotes_a_file_moves_no_cursor(tmp_path, debug):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"recipe": ATTACK, "arguments": {}}))
    command = [sys.executable, "-m", "poise", "run", "--from", str(folder / "run.json"), *debug]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == (1 if debug else 2)
    assert_harmless(done.stdout.decode())
    assert_harmless(done.stderr.decode())
    assert "gnp.exe" in done.stderr.decode()


def test_a_report_obeys_no_text(tmp_path):
    answer = {"text": f"{ATTACK}<script>alert(1)</script>", "cost": -1.0, "reward": 0.0, "outcome": "safe"}
    report = {
        "title": ATTACK,
        "samples": [{"prompt": ATTACK, "kind": "benign", "category": ATTACK, "answers": {ATTACK: answer}}],
        "stages": [{"name": ATTACK, "label": ATTACK}],
        "verdict": {"text": ATTACK},
        "categories": [{"category": ATTACK, "values": {ATTACK: ESTIMATE}}],
        "notes": [ATTACK],
        "settings": {ATTACK: ATTACK, "list": [ATTACK]},
    }
    page = render(report)
    assert_harmless(page)
    assert "<script>alert(1)" not in page
    write_report(tmp_path, {"settings": {"engine": "http://me:secret@host"}})
    assert not [file for file in tmp_path.iterdir() if "secret" in file.read_text()]


def test_samples_in_markdown_obey_no_text():
    prompt = Prompt.of(f"# {ATTACK}\n<b>a</b>", kind="harmful")
    answer = Completion(prompt_id=prompt.id, text=f"</details>\n- *start model* (declines): {ATTACK}")
    said = [Rollout(prompt=prompt, completion=answer, scores=Scores(values={}))]
    text = answers_text({"start model": said}, seed=0)
    assert_harmless(text)
    assert text.count("</details>") == 1
    assert text.count("\n- ") == 1


ESTIMATE = {"value": 0.5, "n": 4, "unit": "share", "low": 0.1, "high": 0.9, "level": 0.95, "method": ATTACK}


def test_no_password_is_recorded_by_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["poise", "run", "x", "--engine", "http://me:secret@host"])
    arguments = {"engine": "http://me:secret@host:8000", "urls": ["https://tok3n@host"]}
    for _ in range(2):  # the same arguments continue it
        with Run.open(tmp_path / "run", recipe="x", arguments=arguments):
            pass
    record = (tmp_path / "run" / "run.json").read_text()
    assert "secret" not in record
    assert "tok3n" not in record
    assert json.loads(record)["arguments"]["engine"] == "http://***@host:8000"
