"""The recipes on small worlds: a copy of each runs elsewhere, gives the figures of before, and tests its claims."""

import json
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
import torch

from poise.cli import main
from poise.cli.recipes import read_card, recipe_files

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "worlds.json").read_text("utf-8"))
# The last digits of sums depend on the library and on the instructions of the processor.
SAME_ARITHMETIC = (GOLDENS["torch"], GOLDENS["cpu"]) == (torch.__version__, torch.backends.cpu.get_cpu_capability())
NAMES = sorted(name for name in GOLDENS["recipes"] if read_card(recipe_files()[name]).method)


def call(*words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code


@pytest.fixture(scope="module", params=NAMES)
def quick(request, tmp_path_factory):
    """The name of a recipe, and the folder of a quick run of a copy of it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    call("copy", request.param, str(folder / "mine.py"))
    call("run", str(folder / "mine.py"), "--quick", "--folder", str(folder / "run"))
    return request.param, folder / "run"


def test_a_quick_run_of_a_copy_gives_the_figures_of_before_bit_for_bit(quick):
    name, run = quick
    exact = (lambda x: x) if SAME_ARITHMETIC else (lambda x: pytest.approx(x, rel=1e-3, abs=1e-6))
    stages = {path.parent.name.lower(): json.loads(path.read_text())["trial"] for path in run.glob("*/stage.json")}
    assert len(stages) == sum(map(len, GOLDENS["recipes"][name].values()))
    for arm, rows in GOLDENS["recipes"][name].items():
        for seed, row in enumerate(rows):
            found = stages[f"{arm}-seed-{seed}"]
            for kind in ("metrics", "curves"):
                assert {each: found[kind].get(each) for each in row[kind]} == {
                    each: exact(value) for each, value in row[kind].items()
                }


def test_its_page_has_a_verdict_on_every_claim_and_its_pictures(quick):
    name, run = quick
    page, found = (run / f"{name}.md").read_text("utf-8"), json.loads((run / "results.json").read_text())
    assert "A smoke test" in page
    for claim in found["claims"]:
        assert claim["text"] in page and f"{claim['outcome']}" in page
    assert len(found["claims"]) == len(json.loads((run / "summary.json").read_text())["claims"])
    for plot in found["plots"]:
        assert f"![{plot['title']}](" in page
    for picture in run.glob("*.svg"):
        assert f"]({picture.name})" in page
        assert xml.fromstring(picture.read_text("utf-8")).tag.endswith("svg")


def test_without_all_wrong_prompts_rl_zvp_leaves_these_to_grpo():
    from poise.recipes.rl_zvp import GRPO, learn, positives_only, zvp

    whole, half, plain = (
        learn(each, 0, 256).curves["success"]
        for each in (zvp(0.5, base=GRPO), positives_only(zvp(0.5, base=GRPO)), GRPO)
    )
    assert whole[-1] != half[-1] != plain[-1]
    assert learn(zvp(0.0, base=GRPO), 0, 256) == learn(GRPO, 0, 256)
