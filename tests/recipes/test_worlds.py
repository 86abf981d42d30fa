"""The recipes on small worlds: a copy of each runs elsewhere, gives the figures of before, and tests its claims."""

import json
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
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

    shaped = zvp(0.5, base=GRPO)
    whole, half, plain = (learn(each, 0, 256).curves["success"] for each in (shaped, positives_only(shaped), GRPO))
    assert whole[-1] != half[-1] != plain[-1]
    assert learn(zvp(0.0, base=GRPO), 0, 256) == learn(GRPO, 0, 256)


def test_group_invariance_as_it_ships_earns_more_in_the_hard_domain_than_ppo():
    from poise.recipes.group_invariant import BASE, group_invariance, learn

    assert learn(group_invariance(base=BASE), 0, 60).metrics["hard"] > learn(BASE, 0, 60).metrics["hard"] + 0.1


def test_the_best_policy_under_five_limits_meets_each_and_no_penalty_or_single_limit_is_needed_for_it():
    from poise.recipes.multi_limit import RULES, best_under_limits, toy

    best = best_under_limits(toy.table(), [(rule.weights, rule.limit.at_most) for rule in RULES.values()])
    free = np.eye(toy.table().num_arms)[toy.table().channels["reward"].argmax(-1)]

    def excess(policy):
        return [float((r.weights * policy).sum() - r.limit.at_most) / r.tolerance for r in RULES.values()]

    assert max(excess(best.policy)) <= 1e-6
    assert sum(each > 1 for each in excess(free)) >= 4
    assert toy.table().mean_of(best.policy, "reward") == pytest.approx(best.reward)


def test_the_exact_front_covers_more_than_any_policy_on_it_alone():
    from poise.recipes.reward_shaping_frontier import front, volume

    costs, rewards = front("cost")["exact front"]
    assert rewards == sorted(rewards)
    assert volume(costs[30:31], rewards[30:31], "cost") < volume(costs, rewards, "cost")
