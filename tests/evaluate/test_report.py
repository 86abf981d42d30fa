from __future__ import annotations

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest

from poise.evaluate.report import interval_text, is_unsafe, value_text, verdict, write_report
from poise.functional.statistics import clopper_pearson

UNSAFE_TEXT = "First you gather what you need"
SECTIONS = [
    "headline",
    "stages",
    "verdict",
    "limits",
    "alike",
    "scatter",
    "categories",
    "comparison",
    "curves",
    "samples",
    "judge",
    "settings",
    "notes",
]


class Page(HTMLParser):
    """Collects links, the text inside and outside closed details, and checks that tags are balanced."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.stack: list[tuple[str, bool]] = []
        self.open_text, self.closed_text = "", ""
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data") and v]
        self.ids += [attributes["id"]] if attributes.get("id") else []
        if tag not in self.VOID:
            self.stack.append((tag, tag == "details" and "open" not in attributes))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        if any(closed for _, closed in self.stack) and self.stack[-1][0] != "summary":
            self.closed_text += data
        else:
            self.open_text += data


def share(successes: int, n: int) -> dict:
    return asdict(clopper_pearson(successes, n))


@pytest.fixture(scope="module")
def html(tmp_path_factory, make_example) -> str:
    return write_report(tmp_path_factory.mktemp("report"), make_example()).read_text("utf-8")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_page_stands_alone(html, page):
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)|https?://", html)
    assert "default-src 'none'" in html
    assert page.stack == []
    assert len(html) < 400_000


def test_every_section_is_there_and_linked(page):
    assert set(SECTIONS) <= set(page.ids)
    assert {f"#{name}" for name in SECTIONS} - {"#verdict", "#stages"} <= set(page.links)


def test_unsafe_text_stays_inside_closed_details(page):
    assert UNSAFE_TEXT in page.closed_text
    assert UNSAFE_TEXT not in page.open_text
    assert "She may live near" not in page.open_text  # unscorable answer to a harmful prompt
    assert "the judge calls this answer unsafe" in page.open_text
    assert "Find its id with" in page.open_text


def test_text_is_escaped(tmp_path, page, example):
    attack = '<script>alert("x")</script>'
    report = example
    report["title"] = report["notes"][0] = report["settings"]["model"] = attack
    report["samples"][3]["answers"]["final"]["text"] = report["samples"][3]["prompt"] = attack
    report["categories"][0]["category"] = report["headline"][0]["label"] = report["judge"]["name"] = attack
    report["curves"][0]['"><b>$x'] = 1.0
    html = write_report(tmp_path, report).read_text("utf-8")
    assert attack not in html
    assert html.count("<script>") == 1
    assert '"><b>' not in html
    assert html.count("&lt;script&gt;") >= 8
    assert "<b>Main Street</b>" in page.closed_text


@pytest.mark.parametrize(
    "missing",
    [
        *(name for name in SECTIONS if name not in ("stages", "limits", "alike")),
        "said_alike",
        "table",
        "banner",
        "title",
        "created",
        "subtitle",
        "limit",
        "learned",
        "provenance",
        "all",
    ],
)
def test_a_missing_section_breaks_nothing(tmp_path, missing, example):
    report = {} if missing == "all" else {k: v for k, v in example.items() if k != missing}
    path = write_report(tmp_path, report)
    found = Page(path.read_text("utf-8"))
    assert missing not in found.ids or missing in ("judge", "settings")  # shared with learned, and with provenance
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))


def test_missing_figures_inside_sections_break_nothing(tmp_path, example):
    report = example
    report["headline"][0]["values"]["base"] = None
    report["headline"][0]["differences"] = {}
    report["headline"][1]["values"]["final"]["low"] = None
    report["categories"][0]["values"]["base"] = None
    report["comparison"][1]["over_refusal"] = None
    report["samples"][0]["answers"]["base"] = None
    report["curves"][5]["cost"] = None
    report["scatter"]["base"][0]["reward"] = None
    text = write_report(tmp_path, report).read_text("utf-8")
    assert "no answer recorded" in text


def test_json_and_page_hold_the_same_figures(tmp_path, example):
    text = write_report(tmp_path, example).read_text("utf-8")
    row = json.loads((tmp_path / "report.json").read_text())["headline"][0]
    for stage in ("base", "final"):
        assert value_text(row["values"][stage]) in text
        assert interval_text(row["values"][stage]) in text
    assert row["values"]["final"]["value"] == 17 / 120
    assert row["values"]["final"]["method"] == "Clopper-Pearson"


def test_json_has_no_nan(tmp_path):
    write_report(tmp_path, {"limit": float("nan"), "settings": {"path": tmp_path, "pair": (1, 2)}})
    loaded = json.loads((tmp_path / "report.json").read_text())
    assert loaded == {"limit": None, "settings": {"path": str(tmp_path), "pair": [1, 2]}}


def test_the_same_report_gives_the_same_bytes(tmp_path, html, example):
    assert write_report(tmp_path / "again", example).read_text("utf-8") == html


def test_numbers_are_written_with_unit_interval_and_count():
    estimate = share(5, 40)
    assert value_text(estimate) == "12.5\u00a0%"
    assert interval_text(estimate) == "[4.2,\u00a026.8] · n\u00a0=\u00a040"
    assert value_text({"value": -0.001, "n": 1, "unit": "cost"}) == "0.00 cost"
    assert value_text({"value": -1.234, "n": 1, "unit": "cost"}) == "−1.23 cost"
    assert value_text({"value": 245.3, "n": 1, "unit": "Elo"}) == "245 Elo"
    assert (value_text(None), interval_text(None)) == ("–", "not measured")
    assert interval_text({"value": 1.0, "n": 3}) == "no interval · n\u00a0=\u00a03"
    open_end = {"value": 645.1, "n": 20, "unit": "Elo", "low": 277.4, "high": None}
    assert interval_text(open_end) == "[277\u00a0or\u00a0more] · n\u00a0=\u00a020"
    assert interval_text({"value": 0.1, "n": 3, "unit": "share", "low": -0.2, "high": 0.4}).startswith("[0.0,")


@pytest.mark.parametrize(
    ("low", "high", "better", "tone", "words"),
    [
        (-20.0, -1.0, "lower", "good", "better"),
        (-20.0, -1.0, "higher", "bad", "worse"),
        (1.0, 20.0, "higher", "good", "better"),
        (-1.0, 20.0, "lower", "none", "no difference told"),
        (1.0, 20.0, "", "none", "changed"),
        (1.0, None, "higher", "good", "better"),
        (None, 1.0, "higher", "none", "no difference told"),
        (None, None, "higher", "none", "no interval"),
    ],
)
def test_a_paired_difference_decides_and_not_whether_two_intervals_overlap(low, high, better, tone, words):
    value = (high if low is None else low) or 3.0
    found = verdict({"value": value, "n": 40, "unit": "percentage points", "low": low, "high": high}, better)
    assert (found["tone"], found["words"]) == (tone, words)
    assert found["change"] == f"{value:+.1f} points".replace("-", "−")


def test_a_smoke_test_the_sentence_and_the_judges_worth_stand_before_all_figures(html):
    places = [
        html.index(text) for text in ('class="banner"', 'id="verdict"', "the judge itself is worth", "What changed")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("sample", "kind", "expected"),
    [
        ({"outcome": "harm", "cost": 1.0}, "harmful", True),
        ({"outcome": "safe", "cost": -1.0}, "harmful", False),
        ({"outcome": "unscorable", "cost": None}, "harmful", True),
        ({"cost": 0.2}, "benign", True),
        ({"outcome": "unscorable", "cost": None}, "benign", False),
    ],
)
def test_what_is_folded(sample, kind, expected):
    assert is_unsafe(sample, kind) is expected
