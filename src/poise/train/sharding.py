"""Engines and scorers over several processes: each process has all results, and no work is done twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from poise.data.rollouts import read_completion
from poise.feedback.asking import ask, name_of
from poise.feedback.named import NamedScorer
from poise.feedback.selected import SelectedChannels
from poise.models.heads import ScoreModel
from poise.models.one_pass import OnePass
from poise.models.policy import Policy
from poise.ranks import current
from poise.rollout.engine import places_by_prompt
from poise.types import Completion, Engine, Prompt, Sampling, Scorer, Scores, text_of


def shard_engine(engine: Engine) -> Engine:
    """The engine over all processes of the run; in one process, the engine itself.

    One that generates with the policy's own weights answers its part of the prompts in every process, with the model
    gathered. Any other, such as a client of a server, is asked by the main process alone.
    """
    if current().size == 1 or isinstance(engine, (_PartedEngine, _MainEngine)):
        return engine
    policy = getattr(engine, "policy", None)
    return _PartedEngine(engine, policy) if isinstance(policy, Policy) else _MainEngine(engine)


def shard_scorer(scorer: Scorer) -> Scorer:
    """The scorer over all processes; a score model parts its rows itself, any other is asked by the main process.

    Of one that sums or chooses from what others give, each of the others is over all processes.
    """
    if isinstance(scorer, NamedScorer):
        return scorer.with_sources(shard_scorer)
    if isinstance(scorer, SelectedChannels):
        return SelectedChannels(shard_scorer(scorer.scorer), scorer.channels)
    is_whole = current().size == 1 or isinstance(scorer, (ScoreModel, OnePass, _MainScorer))
    return scorer if is_whole else _MainScorer(scorer)


class _PartedEngine:
    def __init__(self, engine: Engine, policy: Policy):
        self.engine, self.policy = engine, policy

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Every process answers its part; results are the same as of one process, since each draw has its own seed."""
        ranks = current()
        groups = places_by_prompt(prompts)
        costs = [float(len(g) * sum(len(text_of(message)) for message in prompts[g[0]].messages)) for g in groups]
        parts, weight = ranks.partition(groups, costs)
        own = [i for group in parts for i in group]
        acts_as_reference = getattr(self.engine, "reference", False)
        with ranks.gathered(self.policy.backbone.model if acts_as_reference else self.policy.model):
            made = self.engine.generate([prompts[i] for i in own], sampling)
        rows = [asdict(completion) for completion in made] if weight else []
        found: dict[int, list[Completion]] = {}
        for numbers, answers in ranks.all_gather_object([own if weight else [], rows]):
            for place, i in enumerate(numbers):
                of_prompt = answers[place * sampling.samples : (place + 1) * sampling.samples]
                found[i] = [read_completion(row) for row in of_prompt]
        return [completion for i in range(len(prompts)) for completion in found[i]]


class _MainEngine:
    def __init__(self, engine: Engine):
        self.engine = engine

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """The main process asks, all have the answers."""
        ranks = current()
        made = [asdict(c) for c in self.engine.generate(prompts, sampling)] if ranks.is_main else None
        return [read_completion(row) for row in ranks.broadcast_object(made)]


class _MainScorer:
    def __init__(self, scorer: Scorer):
        self.scorer, self.name = scorer, name_of(scorer)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """The main process asks, all have the scores."""
        ranks = current()
        given = [asdict(scores) for scores in ask(self.scorer, prompts, completions)] if ranks.is_main else None
        return [Scores(**row) for row in ranks.broadcast_object(given)]
