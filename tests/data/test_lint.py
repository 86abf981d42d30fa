from __future__ import annotations

import json

import pytest

from poise.data import load, merge, split_by_prompt
from poise.data.lint import lint, lint_splits
from poise.types import Dataset, Prompt

ROW = {"prompt": "Bread?", "chosen": "Bake it well.", "rejected": "No."}


def report_on(write_rows, *rows):
    return lint(load(write_rows("mine.jsonl", rows)))


def test_repeated_rows_are_counted_exactly_and_but_for_case_and_spacing(write_rows):
    report = report_on(write_rows, ROW, ROW, ROW | {"chosen": "bake  it WELL."}, ROW | {"chosen": "Bake."})
    assert (report["duplicate_rows"].count, report["duplicate_rows"].of) == (1, 4)
    assert report["duplicate_rows"].examples[0].split(" repeats ")[0].endswith("mine.jsonl:2")
    assert report["nearly_duplicate_rows"].count == 1


def test_a_repeated_decoupled_row_counts_once(write_rows, pku_row):
    report = report_on(write_rows, pku_row, pku_row)
    assert (report["duplicate_rows"].count, report["duplicate_rows"].of) == (1, 2)


def test_repeated_prompts_of_a_prompt_file_are_counted(write_rows):
    report = report_on(write_rows, {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"})
    assert (report["duplicate_prompts"].count, report["duplicate_prompts"].of) == (1, 3)


def test_pairs_of_one_text_and_empty_and_long_responses_are_found(write_rows):
    rows = [ROW | {"chosen": "no"}, ROW | {"rejected": " "}, ROW | {"rejected": "x" * 5000}]
    report = report_on(write_rows, *rows)
    assert [report[code].count for code in ("identical_responses", "empty_responses", "long_responses")] == [1, 1, 1]
    assert "mine.jsonl:3: 5000 characters" in report["long_responses"].examples[0]


def test_a_prompt_on_both_sides_is_a_leak_and_a_reworded_one_a_near_leak(write_rows):
    rows = [
        {"prompt": "Bread?", "split": "train"},
        {"prompt": "Cake?", "split": "train"},
        {"prompt": "cake !", "split": "test"},
        {"prompt": "Tea?", "split": "test"},
    ]
    clash = ROW | {"split": "test"}
    dataset = merge([load(write_rows("a.jsonl", rows)), load(write_rows("b.jsonl", [clash]))])
    report = lint(dataset)
    assert (report["prompt_leak"].count, report["prompt_leak"].severity) == (1, "error")
    assert report["near_prompt_leak"].count == 1
    assert report["near_identical_prompts"].count == 1
    assert "train at" in report["prompt_leak"].examples[0]


def test_parts_split_by_prompt_do_not_leak_and_overlapping_ones_do():
    dataset = load("starter")
    parts = split_by_prompt(dataset, {"train": 0.5, "judge": 0.3, "test": 0.2})
    assert lint_splits(parts)[0].count == 0
    assert lint_splits({"a": dataset, "b": parts["test"]})[0].count == len(parts["test"].prompts)


def test_prompts_of_symbols_alone_are_not_alike():
    dataset = Dataset(name="symbols", prompts=(Prompt.of("??"), Prompt.of("!!")))
    assert lint(dataset)["near_identical_prompts"].count == 0


def test_the_longer_response_is_counted_for_each_criterion_and_ties_are_left_out(write_rows):
    safe = {"criterion": "safe", "chosen": "No.", "rejected": "Bake it well."}
    report = report_on(write_rows, ROW, ROW | {"chosen": "Yes", "rejected": "No."}, ROW | safe)
    found = {each.about: (each.count, each.of) for each in report.findings if each.code == "longer_is_preferred"}
    assert found == {"helpful": (1, 1), "safe": (0, 1)}
    lengths = {each.group: (each.n, each.mean) for each in report.lengths}
    assert lengths["helpful, preferred"] == (2, 8.0)  # 13 and 3 characters
    assert lengths["safe, rejected"] == (1, 13.0)


@pytest.mark.parametrize(
    ("num_unsafe", "code", "severity"),
    [(0, "one_sided_labels", "warning"), (1, "unsafe_labels", "warning"), (5, "unsafe_labels", "info")],
)
def test_the_balance_of_labels_is_told(write_rows, num_unsafe, code, severity):
    rows = [{"prompt": "p", "response": f"r{index}", "safe": index >= num_unsafe} for index in range(10)]
    finding = report_on(write_rows, *rows)[code]
    assert finding.severity == severity
    assert finding.count == (num_unsafe or 10)


def test_bad_rows_lead_the_report_and_clean_checks_end_it(write_rows):
    lines = report_on(write_rows, ROW, "{broken").lines()
    assert lines[0] == "mine: 1 prompts, 0 demonstrations, 1 comparisons, 0 labels, 1 bad rows"
    assert lines[1].startswith("error: bad_rows 1/2 (50.0 %)")
    assert "mine.jsonl:2: not JSON" in lines[2]
    assert lines[-1].startswith("looked for and not found: helpful_safe_conflict")


def test_the_json_report_holds_every_finding(write_rows):
    report = report_on(write_rows, ROW)
    content = json.loads(report.to_json())
    assert [each["code"] for each in content["findings"]] == [each.code for each in report.findings]


def test_an_unknown_code_is_named():
    with pytest.raises(KeyError, match="no finding 'spelling'"):
        lint(Dataset(name="none"))["spelling"]


def test_a_code_that_is_counted_for_each_criterion_is_found_or_not_found_and_never_both(write_rows):
    safe = {"criterion": "safe", "chosen": "No.", "rejected": "Bake it well."}
    for rows in ([ROW, ROW | safe], [ROW | safe]):
        lines = report_on(write_rows, *rows).lines()
        assert any("longer_is_preferred (safe) 0/1" in line for line in lines)  # that the shorter wins is a finding too
        assert "longer_is_preferred" not in lines[-1]


def test_verdicts_that_contradict_each_other_or_are_all_alike_are_found(write_rows):
    row = {"prompt": "p", "completion": "y", "label": True}
    alike = report_on(write_rows, row, row | {"prompt": "q"})
    assert (alike["one_sided_verdicts"].count, alike["verdict_conflict"].count) == (2, 0)
    both = report_on(write_rows, row, row | {"label": False})
    assert (both["one_sided_verdicts"].count, both["verdict_conflict"].count) == (0, 1)
    assert "1 prompts" in both.lines()[0]
    assert "2 verdicts" in both.lines()[0]
