"""Every arm from every seed: the one loop of all experiments.

A job is (recipe, arguments, arm, seed): what a process is sent, what names a stage, and what a resumed run skips. Its
trial gets a run of its own in that stage's folder, so that stages inside of a long trial resume as well.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from poise.errors import ConfigError
from poise.evaluate.stage_text import SAID_FIRST, closing
from poise.experiment.pages import write_page
from poise.experiment.results import Results
from poise.experiment.source import Options, Source, import_file
from poise.experiment.study import Study, Trial
from poise.files import atomic_write, to_jsonable, write_json
from poise.ranks import current
from poise.run import RECIPE_FILE, Run
from poise.run_stage import seal_stage
from poise.text import say


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, in a form that can be sent to another process."""

    file: str  # of the recipe
    recipe: str  # its name there
    arguments: Mapping[str, Any]
    arm: str
    seed: int
    folder: str  # of the whole run

    @property
    def name(self) -> str:
        """The name of its stage."""
        return f"{self.arm}-seed-{self.seed}"


def run_recipe(recipe: Source, arguments: Mapping[str, Any], options: Options) -> Run:
    """Run a recipe's study in a run folder, print its page, and write it to the folder and to `output`.

    Raises ConfigError for an output that ends neither in .md nor in .json, and RunError for a damaged run.
    """
    _require_output(options.output)
    study = recipe.build(**arguments).only(options.arms)
    recorded = {**arguments, "seeds": list(options.seeds), "arms": list(options.arms), "quick": options.quick}
    with Run.open(options.folder, recipe=recipe.name, arguments=recorded) as run:
        where: dict[str, Any] = {
            "file": str(recipe.file),
            "recipe": recipe.__name__,
            "arguments": arguments,
            "folder": str(run.path),
        }
        jobs = [Job(**where, arm=arm, seed=seed) for arm in study.arms for seed in options.seeds]
        _perform_open(run, study, jobs, options.workers)
        stages = {(job.arm, job.seed): run.stage(job.name).result for job in jobs}
        trials = {arm: [Trial.read(stages[arm, seed]["trial"]) for seed in options.seeds] for arm in study.arms}
        results = Results(study=study, seeds=options.seeds, trials=trials)
        seconds = sum(stage["seconds"] for stage in stages.values())
        told = dict(study.report(run, results)) if study.report else {}
        document = _document(recipe, run, results, seconds=seconds, is_quick=options.quick) | _said_first(told)
        _publish(run, document, options.output)
        verdicts = [{name: claim[name] for name in ("text", "outcome", "difference")} for claim in document["claims"]]
        summary = {"seeds": len(options.seeds), "claims": verdicts, "results": str(run.path / "results.json")}
        if "stages" in told and current().is_main:
            say(closing(told))
        run.finish(summary | told)
    return run


def perform(job: Job) -> float:
    """Perform a job from what was sent: import the recipe, build its study, run one trial."""
    recipe = getattr(import_file(Path(job.file)), job.recipe)
    return _run_trial(recipe.build(**job.arguments), job)


def _perform_open(run: Run, study: Study, jobs: Sequence[Job], workers: int) -> None:
    """Perform the jobs that are not finished."""
    waiting = [job for job in jobs if not run.stage(job.name).finished]
    workers = min(workers, len(waiting)) if current().size == 1 else 1  # processes of one run try the same arm together
    for number, (job, seconds) in enumerate(_performed(study, waiting, workers), start=1):
        if current().is_main:
            done = len(jobs) - len(waiting) + number
            say(f"[{done}/{len(jobs)}] {study.label(job.arm)}, seed {job.seed}: {seconds:.1f} s", error=True)


def _performed(study: Study, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, float]]:
    if workers <= 1:
        yield from ((job, _run_trial(study, job)) for job in jobs)
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        running = {executor.submit(perform, job): job for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _run_trial(study: Study, job: Job) -> float:
    """Run one trial, record what it came to as the result of its stage, and return the seconds that it took."""
    arm, wants_part = study.arms[job.arm], len(inspect.signature(study.trial).parameters) > 2
    with _threads(study.threads), _part(job) if wants_part else nullcontext() as part:
        begin = time.monotonic()
        trial = study.trial(arm, job.seed, part) if wants_part else study.trial(arm, job.seed)
        seconds = time.monotonic() - begin
    # The process that tried it records it: no trial is lost that had finished when another one failed.
    if current().is_main:
        seal_stage(Path(job.folder) / job.name, {"trial": trial, "seconds": seconds})
    current().wait()
    return seconds


@contextmanager
def _part(job: Job) -> Iterator[Run]:
    """A run of its own in the folder of the job's stage; what the user's recipe is, the whole run keeps."""
    arguments = {**job.arguments, "arm": job.arm, "seed": job.seed}
    token = RECIPE_FILE.set(None)
    try:
        with Run.open(Path(job.folder) / job.name, recipe=job.recipe, arguments=arguments) as part:
            yield part
    finally:
        RECIPE_FILE.reset(token)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads: figures in their last digits depend on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _document(recipe: Source, run: Run, results: Results, *, seconds: float, is_quick: bool) -> dict[str, Any]:
    """The results with all that they depend on."""
    run.save()  # the time that it took so far
    made = run.record
    trials = len(results.seeds) * len(results.trials)
    found: dict[str, Any] = to_jsonable(
        {
            "recipe": recipe.name,
            "card": recipe.card,
            "arguments": run.arguments,
            "given": recipe.beside_defaults(run.arguments),
            "is_quick": is_quick,
            "made": {
                "date": made["created"][:10],
                "commit": made["git"],
                "versions": made["versions"],
                "machine": made["machine"],
                "minutes": sum(session["minutes"] for session in made["sessions"]),
                "seconds_per_trial": seconds / trials,
            },
            **results.document(),
        }
    )
    return found


def _said_first(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says before all else, which pages and results say first too."""
    found: dict[str, Any] = to_jsonable({name: told[name] for name in SAID_FIRST if name in told})
    return found


def _publish(run: Run, document: Mapping[str, Any], output: str) -> None:
    """Print the page, and keep results, page and pictures in the run folder and at `output`."""
    write_json(run.path / "results.json", document)
    page = write_page(document, run.path / f"{document['recipe']}.md")
    if current().is_main:
        say(page)
    if output.endswith(".json"):
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, (run.path / "results.json").read_bytes())
    elif output:
        write_page(document, Path(output))


def _require_output(output: str) -> None:
    if output and not output.endswith((".md", ".json")):
        raise ConfigError(f"--output {output}: give a file that ends in .md (page) or .json (results)")
