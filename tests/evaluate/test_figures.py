"""Pictures of results, and fronts of two figures."""

import doctest
import xml.etree.ElementTree as xml

from poise.evaluate import frontier
from poise.evaluate.figures import Series, chart, charts
from poise.evaluate.frontier import front, hypervolume

LINE = Series(label="one", x=[0.0, 1.0], y=[1.0, 2.0], low=[0.5, 1.5], high=[1.5, 2.5])
DOTS = Series(label="two & three", x=[0.2], y=[1.2], low=[1.0], high=[1.4], is_line=False)


def test_a_chart_is_a_whole_file_that_is_the_same_each_time():
    text = chart([LINE, DOTS], name="a < b", across="x", up="y", lines={"limit": 1.5})
    root = xml.fromstring(text)
    words = "".join(root.itertext())
    assert all(word in words for word in ("one", "two & three", "a < b", "limit"))
    assert text == chart([LINE, DOTS], name="a < b", across="x", up="y", lines={"limit": 1.5})
    assert "#010203" not in text  # placeholders of the charts in reports


def test_panels_have_their_titles():
    words = "".join(xml.fromstring(charts({"left": [LINE], "right": [DOTS]}, across="x", up="y")).itertext())
    assert "left" in words
    assert "right" in words


def test_a_front_has_no_point_that_another_beats():
    points = [(1.0, 1.0), (2.0, 0.0), (0.0, 2.0), (0.9, 0.9), (2.0, -1.0)]
    assert front(points) == [(0.0, 2.0), (1.0, 1.0), (2.0, 0.0)]


def test_the_hypervolume_counts_every_area_once():
    assert hypervolume([(2.0, 2.0)], (0.0, 0.0)) == 4.0
    assert hypervolume([(2.0, 2.0), (1.0, 1.0)], (0.0, 0.0)) == 4.0
    assert hypervolume([(2.0, 1.0), (1.0, 2.0)], (0.0, 0.0)) == 3.0
    assert hypervolume([(2.0, -1.0)], (0.0, 0.0)) == 0.0


def test_examples_run():
    assert doctest.testmod(frontier).failed == 0
