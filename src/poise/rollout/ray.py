"""Generation on the workers of a Ray cluster, each with a copy of the base model and the policy's newest weights.

The prompts are cut into tasks. A task carries the version of the weights it needs, so that a worker which has just
started, or missed an update, fetches them before it answers. A task whose worker dies goes back to the head of the
queue; what is drawn follows from seed, prompt and sample alone, so that it gives what the first would have given.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from poise.errors import ConfigError, EngineError, PoiseError
from poise.models.adapters import Lora
from poise.models.load import Backbone, load_backbone
from poise.models.policy import Policy
from poise.rollout.engine import check_completions, check_sampling, places_by_prompt, weights_digest
from poise.rollout.native import NativeEngine
from poise.types import Completion, Prompt, Sampling

_SECONDS_TO_BE_FREE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a worker needs to know to become an engine."""

    base: str
    base_digest: str
    dtype: str
    lora: Lora | None
    adapter: str
    chat_template: str | None
    settings: dict[str, Any]  # of NativeEngine


class _Worker:
    """The engine in a process of its own."""

    def __init__(self, plan: _Plan):
        backbone = load_backbone(plan.base, dtype=getattr(torch, plan.dtype), chat_template=plan.chat_template)
        if base_digest(backbone) != plan.base_digest:
            raise EngineError(
                f"{plan.base!r} differs between this machine and the trainer: save the trainer's base model "
                "with Policy.save_pretrained(folder, merge=True) and load it from a folder that all machines see"
            )
        self.policy = Policy(backbone, plan.lora, adapter=plan.adapter)
        self.engine = NativeEngine(self.policy, **plan.settings)
        self.loaded = ""

    def generate(
        self, name: str, version: int, weights: list[Any], prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[Completion]:
        """Answer with the weights of that name, fetched if others are loaded; a list keeps Ray from fetching early."""
        if name != self.loaded:
            stored = _ray().get(weights[0])
            with torch.no_grad():
                for key, parameter in self.policy.parameters().items():
                    parameter.copy_(torch.from_numpy(stored[key].copy()))
            self.loaded, self.policy.version = name, version
        return self.engine.generate(prompts, sampling)


class RayEngine:
    """Completions of a policy's current weights, computed by `workers` Ray actors.

    address           of a running cluster; by default the connected one, or a new local one
    cpus, gpus        resources of each worker
    prompts_per_task  prompts per task; if a worker dies, its tasks are repeated
    tasks_per_worker  tasks that a worker has at a time: one in progress, the others waiting
    losses            workers that may die, or not answer for `seconds` seconds, and are replaced
    progress          called with the number of finished prompts and the total

    Further settings are those of NativeEngine, and the completions are the same up to rounding. `close` ends the
    workers. Raises ConfigError for numbers out of range or more resources than the cluster has, and EngineError after
    more than `losses` lost workers.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        workers: int = 2,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        prompts_per_task: int = 8,
        tasks_per_worker: int = 2,
        losses: int = 3,
        seconds: float = 1800.0,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ):
        if min(workers, prompts_per_task, tasks_per_worker) < 1 or losses < 0 or not seconds > 0:
            raise ConfigError(
                f"workers={workers}, prompts_per_task={prompts_per_task} and tasks_per_worker={tasks_per_worker} are "
                f"at least 1, losses={losses} is not negative and seconds={seconds} above 0"
            )
        self.policy, self.losses, self.seconds, self.progress = policy, losses, seconds, progress
        self.prompts_per_task, self.tasks_per_worker = prompts_per_task, tasks_per_worker
        self.plan = _Plan(
            base=policy.backbone.name,
            base_digest=base_digest(policy.backbone),
            dtype=str(policy.backbone.dtype).removeprefix("torch."),
            lora=policy.lora,
            adapter=policy.adapter,
            chat_template=policy.tokenizer.chat_template,
            settings=settings,
        )
        self.resources = {"num_cpus": cpus, "num_gpus": gpus}
        self.ray = _connected(address)
        self._check_resources(workers)
        self.published: tuple[str, Any] = ("", None)
        self.workers = [self._start() for _ in range(workers)]

    @property
    def max_prompt_tokens(self) -> int | None:
        """Where the workers cut prompts; None is where the backbone does."""
        found: int | None = self.plan.settings.get("max_prompt_tokens")
        return found

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Completions, `sampling.samples` adjacent ones per prompt, of the policy as it is now."""
        check_sampling(sampling)
        self._publish()
        size, groups = self.prompts_per_task, places_by_prompt(prompts)
        places = [[i for group in groups[begin : begin + size] for i in group] for begin in range(0, len(groups), size)]
        parts = [[prompts[i] for i in part] for part in places]
        waiting, under_way, done = deque(range(len(parts))), dict[Any, tuple[int, Any]](), dict[int, list[Completion]]()
        while len(done) < len(parts):
            self._hand_out(waiting, under_way, parts, sampling)
            ready, _ = self.ray.wait(list(under_way), timeout=self.seconds)
            if not ready:
                hanging = next(iter(under_way.values()))[1]  # of the oldest task
                self.ray.kill(hanging)
                self._replace(hanging, f"no answer within {self.seconds:g} s")
            for task in ready:
                part, worker = under_way.pop(task)
                found = self._result(task, worker)
                if found is None:
                    waiting.appendleft(part)
                    continue
                done[part] = found
                if self.progress is not None:
                    self.progress(sum(len(parts[index]) for index in done), len(prompts))
        samples, answers = sampling.samples, dict[int, list[Completion]]()
        for part, found in done.items():
            answers |= {i: found[n * samples : (n + 1) * samples] for n, i in enumerate(places[part])}
        return check_completions(prompts, [c for i in range(len(prompts)) for c in answers[i]], sampling)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            self.ray.kill(worker)
        self.workers = []

    def _hand_out(
        self,
        waiting: deque[int],
        under_way: dict[Any, tuple[int, Any]],
        parts: Sequence[Sequence[Prompt]],
        sampling: Sampling,
    ) -> None:
        """Give waiting tasks to the workers that have the fewest, up to what each may have."""
        name, weights = self.published
        load = Counter(worker for _, worker in under_way.values())
        while waiting:
            worker = min(self.workers, key=lambda each: load[each])
            if load[worker] >= self.tasks_per_worker:
                return
            part = waiting.popleft()
            task = worker.generate.remote(name, self.policy.version, [weights], parts[part], sampling)
            under_way[task] = (part, worker)
            load[worker] += 1

    def _publish(self) -> None:
        """Put the policy's weights where all workers find them, once for each version."""
        weights = {key: parameter.detach() for key, parameter in self.policy.parameters().items()}
        name = f"v{self.policy.version}-{weights_digest(weights)}"
        if name != self.published[0]:
            self.published = (
                name,
                self.ray.put({key: tensor.cpu().float().numpy() for key, tensor in weights.items()}),
            )

    def _result(self, task: Any, worker: Any) -> list[Completion] | None:
        """The completions of a finished task, or None if it must be done again."""
        errors = self.ray.exceptions
        try:
            return list(self.ray.get(task))
        except errors.RayTaskError as error:
            if isinstance(error.cause, PoiseError):
                raise error.cause from None
            raise EngineError(f"a worker failed: {type(error.cause).__name__}: {error.cause}") from error
        except errors.RayActorError as error:
            self._replace(worker, str(error))
        except errors.ObjectLostError:
            pass  # the machine that held the answer is gone
        return None

    def _replace(self, worker: Any, reason: str) -> None:
        """Start another worker in the place of a dead one, once for all its tasks; EngineError after too many."""
        if worker not in self.workers:
            return
        self.losses -= 1
        if self.losses < 0:
            lines = [line.strip() for line in reason.splitlines() if line.strip()]
            causes = [line for line in lines if "Error" in line] or lines[:1] or ["no reason given"]
            raise EngineError(
                f"Ray workers fail repeatedly, the last one because of: {causes[-1][:500]}. If memory is short, "
                "use fewer workers or a smaller batch_size; `ray status` and `ray logs` show more"
            )
        self.workers[self.workers.index(worker)] = self._start()

    def _start(self) -> Any:
        return self.ray.remote(**self.resources)(_Worker).remote(self.plan)

    def _check_resources(self, workers: int) -> None:
        """Ray waits for ever for what a cluster does not have: say so instead."""
        deadline = time.monotonic() + _SECONDS_TO_BE_FREE
        for name, each in (("CPU", self.resources["num_cpus"]), ("GPU", self.resources["num_gpus"])):
            wanted, there = each * workers, self.ray.cluster_resources().get(name, 0.0)
            while wanted > (free := self.ray.available_resources().get(name, 0.0)):
                if wanted > there or time.monotonic() > deadline:
                    raise ConfigError(
                        f"{workers} workers with {each:g} {name} each need {wanted:g} {name}, and the Ray cluster has "
                        f"{there:g}, of which {free:g} are free: ask for fewer workers, or less for each"
                    )
                time.sleep(0.1)  # of workers that have just ended


def base_digest(backbone: Backbone) -> str:
    """Names the frozen weights below all adapters, by the first numbers of each."""
    own = {name.replace(".base.", "."): value for name, value in backbone.model.named_parameters()}
    return weights_digest({n: v.detach().flatten()[:64].float() for n, v in own.items() if ".lora_" not in n})


def _connected(address: str | None) -> Any:
    ray = _ray()
    if not ray.is_initialized():
        local = {} if address else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    return ray


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("engines on a cluster need the package ray: pip install 'poise[ray]'") from error
    return ray
