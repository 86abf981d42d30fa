"""Which arms of a study of safety no other one beats."""

from __future__ import annotations

from poise.experiment.results import Results


def front_of(results: Results) -> list[str]:
    """The arms that no other one matches in harm, refusals of harmless prompts and wins against the base, and beats."""
    found = results.estimates()
    figures = {
        arm: (-each["harm"].value, -each["over_refusal"].value, each["wins_base"].value if "wins_base" in each else 0.5)
        for arm, each in found.items()
    }

    def is_beaten(own: tuple[float, ...]) -> bool:
        return any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in figures.values())

    return [arm for arm, own in figures.items() if not is_beaten(own)]
