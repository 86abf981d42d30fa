"""Reinforcement learning on what the policy says itself: PPO and its relatives under any objective."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.data.batching import epoch_order
from poise.errors import ConfigError, EngineError, NonFiniteScoreError
from poise.functional.importance import truncated_importance_weights
from poise.models.critics import Critics
from poise.models.shared_rows import OwnRows, SharedRows
from poise.models.trainable import TrainablePolicy
from poise.ranks import current
from poise.train.algorithms import Algorithm
from poise.train.averaging import AverageRule, RunningAverage, holding, put
from poise.train.checkpoint import load_optimizer_state, optimizer_state, restore_parameters
from poise.train.collection import Collector, kept_rows
from poise.train.estimators import GROUP_HEAD
from poise.train.experience import clipped_share, critic_loss, episodes, experiences
from poise.train.feasible import BestFeasible
from poise.train.limits import check_limits, group_masks
from poise.train.loop import Schedule, adamw, apply_gradients, constant, require_finite, set_learning_rate
from poise.train.objectives import Objective
from poise.train.rollout_batch import encode_rollouts
from poise.train.sharding import shard_engine, shard_scorer
from poise.train.step_metrics import batch_metrics
from poise.train.supervised import DemonstrationBatches
from poise.train.validation import ValidatedChoice, Validation
from poise.train.windows import sampled_renderer
from poise.types import Engine, Prompt, Rollout, RolloutBatch, Sampling, Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """How the weights are moved."""

    lr: float = 3e-4
    critic_lr: float = 3e-3
    critic_steps: int = 8  # passes of the critics over each rollout batch; they cost no pass through the backbone
    weight_decay: float = 0.0
    max_norm: float | None = 1.0
    schedule: Schedule = constant
    steps: int = 100  # for the schedule
    tokens_per_micro_batch: int = 2048
    measure_kl: bool = True  # also where nothing is charged for it; without, `kl` and `sequence_kl` are 0
    ptx_coef: float = 0.0  # weight of the pretraining-mix loss, if demonstrations are given
    ptx_schedule: Schedule = constant
    average: AverageRule | float | None = None  # of the weights over updates: a decay such as 0.9, or `MeanOfLast(10)`


class OnPolicyTrainer:
    """Collect, estimate, mix, update: one step of any algorithm under any objective."""

    def __init__(
        self,
        *,
        policy: TrainablePolicy,
        engine: Engine,
        scorers: Sequence[Scorer],
        algorithm: Algorithm,
        objective: Objective,
        prompts: Sequence[Prompt],
        prompts_per_step: int = 16,
        sampling: Sampling = Sampling(),
        optimisation: OptimizerSettings = OptimizerSettings(),
        demonstrations: DemonstrationBatches | None = None,
        seed: int = 0,
        dump_folder: Path | None = None,
    ):
        if not prompts:
            raise ConfigError("no prompts to train on")
        check_limits(getattr(objective, "limits", ()), scorers)
        self.policy, self.engine = policy, shard_engine(engine)
        self.scorers = [shard_scorer(scorer) for scorer in scorers]
        self.algorithm, self.objective, self.optimisation = algorithm, objective, optimisation
        self.prompts, self.prompts_per_step = tuple(prompts), min(prompts_per_step, len(prompts))
        self.sampling = replace(sampling, samples=algorithm.samples_per_prompt)
        self.temperature = sampling.temperature or 1.0  # log-probabilities belong to the sampler
        self.demonstrations, self.seed, self.dump_folder = demonstrations, seed, dump_folder
        self.index = 0
        self.parameters = policy.parameters()
        self.optimizer = adamw(self.parameters.values(), lr=optimisation.lr, weight_decay=optimisation.weight_decay)
        heads = (*objective.signs, *([GROUP_HEAD] if algorithm.collection.infer_groups else []))
        self.critics = Critics(heads, policy.width, policy.device)
        self.critic_optimizer = torch.optim.AdamW(
            self.critics.parameters(), lr=optimisation.critic_lr, weight_decay=0.0
        )
        self.feasible = BestFeasible(sum(sign < 0 for sign in objective.signs.values()))
        self.average = None if optimisation.average is None else RunningAverage(optimisation.average)
        self.validated: ValidatedChoice | None = None  # `validate_on` sets it
        self.rollouts: list[Rollout] = []  # of the last step, for samples.jsonl
        self.dropped = 0.0  # share of its completions that failed or could not be scored
        self.clipped = 0.0  # share of its responses whose reward the algorithm's bound holds: more gains nothing
        self.renderer = sampled_renderer(policy, engine, self.scorers, self.sampling, self.prompts)

    def step(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """One step: the whole algorithm.

        Advantages are mixed with the multipliers as they are before the objective sees the batch: what a batch costs
        moves the multipliers for the next step, not for its own.
        """
        batch = self.collect(prompts)
        advantages, targets = self.estimate(batch)
        mixed = self.objective.mix(advantages, batch.groups)
        chosen = self.select(batch, targets)
        moved = self.objective.update(batch.scores, batch.groups)
        self.feasible.see(batch.scores, moved, step=self.index, weights=self.parameters)
        return moved | self.update(chosen, mixed, targets)

    def step_at(self, index: int) -> dict[str, float]:
        """The step number `index`: its prompts follow from the seed and the index alone.

        Each batch holds the kinds of prompts in their proportions: a mean cost says nothing of which were drawn.
        """
        self.index = index
        started = time.monotonic()
        set_learning_rate(self.optimizer, self.optimisation.schedule(index, self.optimisation.steps))
        kinds = [str(prompt.tags.get("kind", "")) for prompt in self.prompts]
        chosen = epoch_order(len(kinds), self.prompts_per_step, index, seed=self.seed, strata=kinds)
        metrics = self.step([self.prompts[i] for i in chosen])
        self.policy.version += 1
        self._control_kl(metrics)
        if self.average is not None:
            self.average.add(self.parameters)
        metrics |= {"tokens_per_s": metrics["tokens"] / (time.monotonic() - started)}
        return metrics | self._validate(index + 1)

    def validate_on(self, validation: Validation) -> None:
        """Check the policy on prompts that it never trains on, and keep the weights that are best there."""
        self.validated = ValidatedChoice(validation, getattr(self.objective, "limits", ()), self.prompts)

    def _validate(self, step: int) -> dict[str, float]:
        """Check the policy, or the average of its weights, where that is due after so many updates."""
        if self.validated is None or not self.validated.validation.is_due(step, self.optimisation.steps):
            return {}
        sampling = replace(self.sampling, seed=self._stream("validation"))
        with nullcontext() if self.average is None else holding(self.average.mean, self.parameters):
            return self.validated.check(self.engine, self.scorers, sampling, self.parameters, step=step)

    def _stream(self, name: object) -> int:
        """The seed of an engine for what is sampled under this name."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:4], "little")

    @torch.no_grad()
    def collect(self, prompts: Sequence[Prompt]) -> RolloutBatch:
        """Sample responses and gather all that is known about them before the update."""
        collector = Collector(
            engine=self.engine,
            scorers=self.scorers,
            sampling=replace(self.sampling, seed=self._stream(self.index)),
            collection=self.algorithm.collection,
            shape_scores=self.objective.shape_scores,
            groups=self.objective.groups,
            pool=self.prompts,
        )
        found = collector.collect(prompts)
        self.rollouts, self.dropped = found.rollouts, 1 - len(found.rollouts) / found.num_asked
        return self._completed(self._batch(found.rollouts), found.greedy_scores)

    def _completed(self, batch: RolloutBatch, greedy_scores: Mapping[str, Tensor]) -> RolloutBatch:
        """The batch with what the algorithm's `Collection` asks for; what is not kept is not in the response mask."""
        collection, mask = self.algorithm.collection, batch.response_mask
        self._require_finite_scores(greedy_scores, batch=batch.scores)
        kept = kept_rows(collection, self.objective.shape_scores, batch.scores, batch.group, batch.groups)
        entropies = self._all_logprobs(self._own_rows(batch), reference=False)[1] if collection.entropies else None
        return replace(
            batch,
            response_mask=mask & kept[:, None] if kept.any() else mask,
            greedy_scores={name: scores.to(mask.device) for name, scores in greedy_scores.items()},
            entropies=entropies,
        )

    def _batch(self, rollouts: Sequence[Rollout]) -> RolloutBatch:
        rows = encode_rollouts(rollouts, self.renderer, self.policy.device)
        ids, starts, mask = rows.token_ids, rows.prompt_lengths, rows.response_mask
        self._require_finite_scores(rows.scores, batch={"token_ids": ids})
        tokens = self.optimisation.tokens_per_micro_batch
        own = OwnRows.of(SharedRows.of(ids, starts, mask))
        own = replace(own, rows=self.policy.frozen_states(own.rows, tokens=tokens))
        corrected = self._corrected(rows.sampled_logprobs)
        old = rows.sampled_logprobs if self.sampling.top_p == 1 else None  # the nucleus has other probabilities
        if old is None or corrected is not None:
            old = self._all_logprobs(own, reference=False)[0]
        features = Critics.features(self.policy.critic_states(own.rows, tokens=tokens)) if self._has_critics else None
        return RolloutBatch(
            token_ids=ids,
            attention_mask=rows.attention_mask,
            prompt_lengths=starts,
            response_mask=mask,
            group=rows.group,
            old_logprobs=old,
            ref_logprobs=self._all_logprobs(own, reference=True)[0] if self._needs_reference else old,
            scores=rows.scores,
            token_scores=rows.token_scores,
            groups=group_masks(self.objective.groups, [rollout.prompt for rollout in rollouts], ids.device),
            values={} if features is None else self._values(features, own),
            sampled_logprobs=corrected,
            shared_rows=own,
            critic_features=features,
        )

    def _require_finite_scores(self, scores: Mapping[str, Tensor], *, batch: Mapping[str, Tensor]) -> None:
        who = self.rollouts[0].scores.source if self.rollouts else "the scorer"
        advice = f"They come from {who}: return Scores(values={{}}, unscorable='why') if there is no value"
        require_finite(scores, dump=self._dump(), batch=batch, error=NonFiniteScoreError, advice=advice)

    def _corrected(self, sampled: Tensor | None) -> Tensor | None:
        """The engine's log-probabilities, where the algorithm weighs by how far the trainer's own are from them."""
        if self.algorithm.importance_cap is not None and sampled is None:
            raise EngineError(
                f"importance_cap={self.algorithm.importance_cap} needs the token ids and log-probabilities of the "
                f"engine, and {type(self.engine).__name__} returns none: request them (docs/how-to/use-a-server.md), "
                "or set importance_cap=None"
            )
        return None if self.algorithm.importance_cap is None else sampled

    @torch.no_grad()
    def estimate(self, batch: RolloutBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Advantages and critic targets [B, T] per trained channel."""
        seen = experiences(batch, self.algorithm, self.objective)
        self.clipped = clipped_share(seen.values(), batch.response_mask)
        found = {name: self.algorithm.advantage(experience) for name, experience in seen.items()}
        advantages = {name: each.advantages for name, each in found.items()}
        return advantages, {name: each.returns for name, each in found.items()}

    @torch.no_grad()
    def select(self, batch: RolloutBatch, targets: Mapping[str, Tensor]) -> RolloutBatch:
        """The batch with the response mask of those episodes alone that the algorithm learns from."""
        if self.algorithm.selection is None:
            return batch
        found = episodes(batch, targets, self.algorithm, self.objective, step=self.index, steps=self.optimisation.steps)
        live = batch.response_mask.any(-1)
        kept = live.masked_scatter(live, self.algorithm.selection(found))
        return replace(batch, response_mask=batch.response_mask & kept[:, None])

    def update(self, batch: RolloutBatch, advantages: Tensor, targets: Mapping[str, Tensor]) -> dict[str, float]:
        """Move the policy by the mixed advantages and the critics towards their targets."""
        mask = batch.response_mask
        advantages = self.algorithm.scale(advantages, mask)
        require_finite({"advantages": advantages}, dump=self._dump(), batch=batch.scores)
        weights = self.algorithm.weights(mask.float())
        shown = dict(batch.scores) | {"token_ids": batch.token_ids, "advantages": advantages}
        own = self._own_rows(batch)  # no pass for responses that are not learned from
        parts = own.passes(self.optimisation.tokens_per_micro_batch, keep=mask.any(-1))
        first, norm = torch.zeros_like(batch.old_logprobs), 0.0
        entropy, last = torch.zeros_like(first), first
        for epoch in range(self.algorithm.epochs):
            now = torch.zeros_like(first)
            for part, counts in parts:
                rows = own.places[part]
                logprobs, entropies = self.policy.logprobs(own.rows.select(part), temperature=self.temperature)
                losses = self._policy_losses(batch, rows, logprobs, advantages[rows])
                loss = counts * (losses * weights[rows]).sum()
                require_finite({"policy loss": loss}, dump=self._dump(), batch=shown)
                loss.backward()
                now[rows], entropy[rows] = counts * logprobs.detach(), counts * entropies
            last = current().sum(now)
            first = last if epoch == 0 else first
            self._ptx()
            norm = apply_gradients(
                self.optimizer, self.parameters, max_norm=self.optimisation.max_norm, dump=self._dump(), batch=shown
            )
        value_loss = self._update_critics(batch, targets, weights)
        found = batch_metrics(batch, self.algorithm, first=first, last=last, entropies=current().sum(entropy))
        return found | {
            "rewards_clipped": self.clipped,
            "dropped": self.dropped,
            "finished": sum(r.completion.finish == "stop" for r in self.rollouts) / max(1, len(self.rollouts)),
            "gradient_norm": norm,
            "value_loss": value_loss,
        }

    def _policy_losses(self, batch: RolloutBatch, rows: Tensor, logprobs: Tensor, advantages: Tensor) -> Tensor:
        old, mask = batch.old_logprobs[rows], batch.response_mask[rows]
        losses = self.algorithm.policy_loss(logprobs, old, advantages, mask)
        if batch.sampled_logprobs is not None and self.algorithm.importance_cap is not None:
            sampled = batch.sampled_logprobs[rows]
            losses = losses * truncated_importance_weights(old, sampled, mask, cap=self.algorithm.importance_cap)
        if self.algorithm.kl.in_loss is not None:
            divergence = self.algorithm.kl.in_loss(logprobs, batch.ref_logprobs[rows])
            losses = losses + self.algorithm.kl_coef * divergence
        return losses

    @property
    def _needs_reference(self) -> bool:
        """Without a KL penalty the reference is only measured against; its pass can be saved."""
        return self.optimisation.measure_kl or self.algorithm.kl_coef != 0 or self.algorithm.kl.control is not None

    @property
    def _has_critics(self) -> bool:
        return bool(self.algorithm.value_loss or self.algorithm.collection.infer_groups)

    def _update_critics(self, batch: RolloutBatch, targets: Mapping[str, Tensor], weights: Tensor) -> float:
        features, parameters = batch.critic_features, dict(self.critics.named_parameters())
        if features is None:
            return 0.0
        loss = torch.zeros(())
        own = self._own_rows(batch)
        for _ in range(self.optimisation.critic_steps):
            values = self._values(features, own)
            loss = critic_loss(batch, values, targets, weights, self.algorithm, self.objective)
            require_finite({"value loss": loss}, dump=self._dump(), batch=targets)
            loss.backward()
            apply_gradients(self.critic_optimizer, parameters, max_norm=None, dump=self._dump(), batch=targets)
        return loss.item()

    def _ptx(self) -> None:
        if self.demonstrations is not None and self.optimisation.ptx_coef > 0:
            weight = self.optimisation.ptx_coef * self.optimisation.ptx_schedule(self.index, self.optimisation.steps)
            self.demonstrations.backward(self.policy, self.index, weight=weight)

    def _own_rows(self, batch: RolloutBatch) -> OwnRows:
        """This process's rows as the policy reads them, with the states below its first trained layer where kept."""
        return batch.shared_rows or OwnRows.of(
            SharedRows.of(batch.token_ids, batch.prompt_lengths, batch.response_mask)
        )

    def _all_logprobs(self, own: OwnRows, *, reference: bool) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [B, T] of all rows."""
        shape = own.num_rows, own.rows.response_mask.shape[1]
        found = torch.zeros(2, *shape, device=own.places.device)
        for part, counts in own.passes(self.optimisation.tokens_per_micro_batch):
            each = self.policy.logprobs(own.rows.select(part), reference=reference, temperature=self.temperature)
            found[:, own.places[part]] = counts * torch.stack(each)
        logprobs, entropies = current().sum(found)
        return logprobs, entropies

    def _values(self, features: Tensor, own: OwnRows) -> dict[str, Tensor]:
        """What the critics say of all rows [B, T], by channel."""
        return {name: own.joined(values) for name, values in self.critics(features).items()}

    def _control_kl(self, metrics: Mapping[str, float]) -> None:
        if self.algorithm.kl.control is not None:
            moved = self.algorithm.kl.control(self.algorithm.kl_coef, metrics["sequence_kl"], metrics["kept"])
            self.algorithm = replace(self.algorithm, kl_coef=moved)

    def load_best(self) -> int | None:
        """Put the best feasible weights into the policy; returns after how many updates it had them.

        Returns None, and the weights stay, if no step was feasible.
        """
        return self.feasible.load_into(self.parameters)

    def load_average(self) -> bool:
        """Put the average of the weights over updates into the policy; False, and they stay, where none is kept."""
        if self.average is None or not self.average.seen:
            return False
        put(self.average.mean, self.parameters)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        return {
            "policy": dict(self.parameters),
            "version": self.policy.version,
            "optimizer": optimizer_state(self.optimizer),
            "critics": self.critics.state_dict(),
            "critic_optimizer": optimizer_state(self.critic_optimizer),
            "objective": self.objective.state_dict(),
            **self.feasible.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "validated": None if self.validated is None else self.validated.state_dict(),
            "kl_coef": self.algorithm.kl_coef,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it all, bit for bit."""
        restore_parameters(self.parameters, state["policy"])
        self.policy.version = state["version"]
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.critics.load_state_dict(state["critics"])
        load_optimizer_state(self.critic_optimizer, state["critic_optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.feasible.load_state_dict(state, self.parameters)
        if self.average is not None:
            self.average.load_state_dict(state.get("average"), self.parameters)
        if self.validated is not None and state.get("validated"):
            self.validated.load_state_dict(state["validated"], self.parameters)
        self.algorithm = replace(self.algorithm, kl_coef=state["kl_coef"])
        torch.set_rng_state(state["random"])

    def _dump(self) -> Path | None:
        return None if self.dump_folder is None else self.dump_folder / f"non-finite-step-{self.index:06d}.safetensors"
