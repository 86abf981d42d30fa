"""What is wrong with a data set, or worth knowing before training on it: named findings with counts and places.

errors    rows that were not read, prompts on both sides of a split
warnings  judgements that contradict each other, duplicates, pairs without a choice, empty responses
info      what is no mistake and still moves a model: long responses, balance, a preference for length
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median, quantiles

from poise.data.lint_checks import CHECKS, Finding, Severity, leaks_between
from poise.data.splits import prompts_of
from poise.types import Dataset, Prompt

_ORDER: Mapping[Severity, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long the responses of one group are, in characters."""

    group: str
    n: int
    mean: float
    median: float
    p95: float

    def __str__(self) -> str:
        figures = f"mean {self.mean:.0f}, median {self.median:.0f}, 95th percentile {self.p95:.0f}"
        return f"{self.group}: {figures} characters (n={self.n})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """All findings on one data set; those with a count of 0 say what was looked for and not found."""

    dataset: str
    findings: tuple[Finding, ...]
    lengths: tuple[Lengths, ...]
    sizes: Mapping[str, int]

    def __getitem__(self, code: str) -> Finding:
        """The first finding of this code; KeyError if nothing of the kind was looked for."""
        for finding in self.findings:
            if finding.code == code:
                return finding
        raise KeyError(f"no finding {code!r}; there are {sorted({finding.code for finding in self.findings})}")

    def lines(self) -> list[str]:
        """The report as lines of plain text, the gravest findings first."""
        lines = [f"{self.dataset}: " + ", ".join(f"{count} {name}" for name, count in self.sizes.items())]
        for finding in sorted(self.findings, key=lambda each: _ORDER[each.severity]):
            if finding.is_found:
                lines += [str(finding), *(f"    {example}" for example in finding.examples)]
        lines += [f"lengths of {lengths}" for lengths in self.lengths]
        found = {finding.code for finding in self.findings if finding.is_found}
        clean = [finding.code for finding in self.findings if finding.code not in found]
        return [*lines, f"looked for and not found: {', '.join(clean)}"] if clean else lines

    def to_json(self) -> str:
        """The report as a JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def lint(dataset: Dataset) -> LintReport:
    """Look a data set over; nothing is changed.

    >>> lint(Dataset(name="one", prompts=(Prompt.of("Hello"),)))["near_identical_prompts"].count
    0
    """
    by_split: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts_of(dataset):
        by_split[str(prompt.tags.get("split", ""))].append(prompt)
    by_split.pop("", None)
    return LintReport(
        dataset=dataset.name,
        findings=tuple(finding for check in CHECKS for finding in check(dataset)) + leaks_between(by_split),
        lengths=tuple(_lengths(dataset)),
        sizes={
            "prompts": len(dataset.prompts),
            "demonstrations": len(dataset.demonstrations),
            "comparisons": len(dataset.comparisons),
            "labels": len(dataset.labels),
            **({"verdicts": len(dataset.verdicts)} if dataset.verdicts else {}),
            "bad rows": len(dataset.bad_rows),
        },
    )


def lint_splits(parts: Mapping[str, Dataset]) -> tuple[Finding, ...]:
    """Prompts that stand in more than one of these data sets, as they are and but for case, spacing and punctuation."""
    return leaks_between({name: list(prompts_of(part)) for name, part in parts.items()})


def _lengths(dataset: Dataset) -> Iterator[Lengths]:
    groups: dict[str, list[int]] = defaultdict(list)
    for demonstration in dataset.demonstrations:
        groups["demonstrations"].append(len(demonstration.response))
    for each in dataset.comparisons:
        for index, text in enumerate(each.responses):
            if each.winner is not None:
                groups[f"{each.criterion}, {'preferred' if index == each.winner else 'rejected'}"].append(len(text))
    for label in dataset.labels:
        groups["labelled safe" if label.safe else "labelled unsafe"].append(len(label.response))
    for verdict in dataset.verdicts:
        groups["desirable" if verdict.desirable else "undesirable"].append(len(verdict.response))
    for group, lengths in sorted(groups.items()):
        p95 = quantiles(lengths, n=20)[-1] if len(lengths) > 1 else float(lengths[0])
        yield Lengths(group=group, n=len(lengths), mean=fmean(lengths), median=median(lengths), p95=p95)
