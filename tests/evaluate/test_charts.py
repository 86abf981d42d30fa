from __future__ import annotations

import re

from poise.evaluate import charts

STAGES = [{"name": "base", "label": "base model"}, {"name": "final", "label": "final policy"}]


def hrefs_and_ids(svg: str) -> tuple[set[str], list[str]]:
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    return used, re.findall(r' id="([^"]+)"', svg)


def test_charts_take_their_colours_and_font_from_the_page(example):
    svg = charts.curve(example["curves"], "cost", "cost", {"limit": 0.0, "held in training": -0.1})
    assert "var(--last)" in svg
    assert "DejaVu" not in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert svg.startswith('<svg role="img" aria-label="cost over 60 training steps" viewBox=')
    assert ">limit</text>" in svg and ">held in training</text>" in svg


def test_ids_are_defined_and_do_not_meet_those_of_another_chart(example):
    drawings = list(charts.scatter(example["scatter"], STAGES, 0.0).values())
    drawings += [charts.curve(example["curves"], name, name) for name in ("cost", "reward")]
    everything: list[str] = []
    for svg in drawings:
        used, ids = hrefs_and_ids(svg)
        assert used <= set(ids)
        everything += ids
    assert len(everything) == len(set(everything))


def test_both_scatters_have_the_same_axes(example):
    both = charts.scatter(example["scatter"], STAGES)
    ticks = [re.findall(r"<text[^>]*>([−\d.]+)</text>", svg) for svg in both.values()]
    assert ticks[0] == ticks[1]
    assert charts.scatter({"base": []}, STAGES, 0.0) == {}


def test_a_curve_is_smoothed_only_when_long(example):
    assert charts.curve(example["curves"][:10], "kl", "KL").count("stroke: var(--last)") == 1
    assert charts.curve(example["curves"], "kl", "KL").count("stroke: var(--last)") == 2


def test_a_moving_mean_keeps_a_straight_line():
    line = [float(i) for i in range(100)]
    assert charts._smoothed(line)[10:-10] == line[10:-10]


def test_categories_stand_worst_first(example):
    rows = charts.worst_first(example["categories"])
    values = [row["values"]["base"]["value"] for row in rows]
    assert values == sorted(values, reverse=True)
    svg = charts.category_bars(rows, STAGES)
    assert all(row["category"].replace("_", " ") in svg for row in rows)


def test_a_tradeoff_needs_both_figures():
    assert charts.tradeoff([{"label": "x", "harm_rate": None, "over_refusal": None}], "over_refusal", "x") == ""


def test_every_stage_has_a_colour_and_a_marker_of_its_own(example):
    stages = [STAGES[0], {"name": "sft", "label": "SFT start"}, STAGES[1]]
    rows = [row | {"values": row["values"] | {"sft": row["values"]["base"]}} for row in example["categories"]]
    svg = charts.category_bars(rows, stages)
    assert all(f"var(--{colour})" in svg for colour in ("first", "middle", "last"))
    assert all(stage["label"] in svg for stage in stages)
