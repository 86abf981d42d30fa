"""Which responses of decoupled feedback a model learns to imitate."""

from __future__ import annotations

from poise.errors import DataError
from poise.feedback.groups import may_harm
from poise.feedback.rules import is_refusal
from poise.types import Dataset, Demonstration, Prompt

_WORDS_WITH_A_REASON = 10  # of the starter set's refusals, shorter ones say what is refused and seldom why


def safe_demonstrations(dataset: Dataset) -> list[Demonstration]:
    """Preferred responses that are known to be safe: to each refusal of a harmful prompt three answers to others.

    Refusals are much alike, so that a few teach a model to say one at all; redirections are each their own. Those that
    say why are taken where there are some: what is imitated first is what a policy goes on saying. They must
    not spread, neither to plain prompts, one of which is answered, nor to look-alikes, where they belong least and
    come most easily: two of these are. All are taken, those of which there are fewer again and again. Where there are
    no refusals, or no answers, all safe responses are taken.

    Raises DataError if no preferred response is flagged as safe.
    """
    safe = {(label.prompt.id, label.response) for label in dataset.labels if label.safe}
    for row in dataset.comparisons:
        safe |= {(row.prompt.id, said) for said, flag in zip(row.responses, row.safe or (), strict=False) if flag}
    found = [row for row in preferred_demonstrations(dataset) if (row.prompt.id, row.response) in safe]
    if not found:
        raise DataError(
            f"{dataset.name} flags no preferred response as safe, so there is nothing to imitate; set "
            "warmstart_steps and ptx_coef to 0"
        )
    refusals = [row for row in found if may_harm(row.prompt) and is_refusal(row.response)]
    refusals = [row for row in refusals if len(row.response.split()) >= _WORDS_WITH_A_REASON] or refusals
    answers = [row for row in found if not may_harm(row.prompt) and not is_refusal(row.response)]
    if not refusals or not answers:
        return found
    look_alikes, plain = (
        [row for row in answers if (row.prompt.tags["kind"] == "look_alike") is wanted] or answers
        for wanted in (True, False)
    )
    groups = [refusals, look_alikes[::2], plain, look_alikes[1::2] or look_alikes]
    return [group[i % len(group)] for i in range(max(map(len, groups))) for group in groups]


def general_demonstrations(dataset: Dataset) -> list[Demonstration]:
    """Preferred answers to prompts that are known to be harmless: general instructions, none of them a refusal.

    Raises DataError if there is none.
    """
    found = [row for row in preferred_demonstrations(dataset) if not may_harm(row.prompt)]
    answers = [row for row in found if not is_refusal(row.response)]
    if not answers:
        raise DataError(
            f"{dataset.name} has no preferred answer to a prompt of kind benign or look_alike, so "
            "there are no general instructions to mix in; set ptx_coef to 0"
        )
    return answers


def preferred_demonstrations(dataset: Dataset, *, least: float = 0.5) -> list[Demonstration]:
    """The responses that people preferred, each weighted by the share of its comparisons that it won.

    The share is taken under each criterion and averaged, so that on a harmful prompt a helpful but unsafe response, a
    refusal and a redirection all remain: the start of reinforcement learning must be able to say each of them.
    Responses below `least` are left out; the set's own demonstrations are added.

    Raises DataError if there is nothing to imitate.
    """
    tally: dict[tuple[str, str], dict[str, list[bool]]] = {}
    prompts: dict[str, Prompt] = {}
    for comparison in dataset.comparisons:
        if comparison.winner is not None:
            prompts[comparison.prompt.id] = comparison.prompt
            for index, response in enumerate(comparison.responses):
                won = tally.setdefault((comparison.prompt.id, response), {}).setdefault(comparison.criterion, [])
                won.append(index == comparison.winner)
    found = []
    for (prompt_id, response), criteria in tally.items():
        weight = sum(sum(won) / len(won) for won in criteria.values()) / len(criteria)
        if weight >= least:
            found.append(Demonstration(prompt=prompts[prompt_id], response=response, weight=weight))
    found += [d for d in dataset.demonstrations if d.weight > 0]
    if not found:
        raise DataError(
            f"{dataset.name} has neither demonstrations nor comparisons, so there is nothing to imitate: give "
            "messages, or prompts with completions (docs/data.md); a recipe with other stages can do without, with "
            "supervised_steps, warmstart_steps and ptx_coef at 0"
        )
    return found
