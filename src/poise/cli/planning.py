"""`poise plan`: read a recipe's options, and print what each of its stages will take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poise.cli.options import parse_options
from poise.cli.recipes import came_with_a_run, find_recipe, load_recipe
from poise.errors import ConfigError, ModelError
from poise.experiment.pages import hardware, published
from poise.experiment.recipe import Recipe
from poise.files import to_jsonable
from poise.plan.compute import Compute, Setting
from poise.plan.machines import Machine, named_machine, this_machine
from poise.plan.model_sizes import MODEL_SIZES, ModelSize, model_size
from poise.plan.probe import probe
from poise.plan.work import Tokens

_GIB = 2**30
_PROBED_LAYERS = 4  # whose weights a measurement needs


def plan_lines(recipe: str, words: Sequence[str], *, machine: str | None, **layout: Any) -> Iterator[str]:
    """The lines that `poise plan` prints; none if the words asked for help.

    machine  a name such as h100x8; None measures this one
    layout   the fields of `Setting` that were given; processes 0 is one for each device

    Raises ConfigError for a quick run, a recipe that is not a study, or one stored in a run.
    """
    from poise.experiment.planning import plan_stages

    path = find_recipe(recipe)
    if came_with_a_run(path):
        raise ConfigError(f"{path} is code stored in a run, and planning would execute it: plan your own copy of it")
    function = load_recipe(path)
    given = parse_options(function, words, program=f"poise plan {recipe}")
    if given is None:
        return
    if given.get("quick"):
        raise ConfigError("a quick run takes a minute or two: plan the run without --quick")
    if not isinstance(function, Recipe):
        raise ConfigError(f"{recipe} is not a study, so its stages are unknown: see docs/how-to/add-a-paper.md")
    arguments, options = function.resolve(given)
    if "model" not in arguments:
        yield from _of_trials(function, given)
        return
    size = model_size(arguments["model"])
    on = named_machine(machine) if machine else this_machine(size)
    fits = _PROBED_LAYERS * size.layer_parameters * on.element_bytes < on.memory / 8
    found = probe(size) if on.is_measured and fits else None
    compute = Compute(model=size, machine=on, setting=_setting(on, **layout), probe=found)
    stages = plan_stages(function, given, compute, Tokens(**_tokens(arguments["model"])))
    yield from _about(size, compute)
    width = max(len(stage.name) for stage in stages) + 2
    yield f"{'stage':<{width}}{'minutes':>9}{'GiB':>8}  work"
    for stage in stages:
        yield f"{stage.name:<{width}}{stage.seconds / 60:>9.1f}{stage.memory / _GIB:>8.1f}  {stage.work}"
    peak = max(stage.memory for stage in stages)
    total = sum(stage.seconds for stage in stages) / 60
    yield f"{'one seed':<{width}}{total:>9.1f}{peak / _GIB:>8.1f}  GiB in each process at the peak"
    if (seeds := len(options.seeds)) > 1:
        yield f"{f'{seeds} seeds':<{width}}{seeds * total:>9.1f}"
    yield from _verdict(peak, compute)


def _of_trials(recipe: Recipe, given: Mapping[str, Any]) -> Iterator[str]:
    """What a study of tables will take, by the time that its published trials took."""
    arguments, options = recipe.resolve(given)
    arms = recipe.build(**arguments).only(options.arms).arms
    trials = len(arms) * len(options.seeds)
    yield f"{recipe.name}: {len(arms)} arms x {len(options.seeds)} seeds = {trials} trials, {options.workers} at a time"
    found = published(recipe.name)
    if found is None:
        yield "No published run has the duration of a trial: try `--quick`, or one arm with one seed"
        return
    seconds, made = found["made"]["seconds_per_trial"], found["made"]
    yield (
        f"A published trial took {seconds:.1f} s ({hardware(made)}, {made['date']}): "
        f"about {trials * seconds / 60 / options.workers:.1f} minutes, less than 1 GiB a process"
    )
    before = {name: found["arguments"].get(name) for name in arguments}
    if changed := [name for name, value in to_jsonable(arguments).items() if before[name] != value]:
        yield f"That was with {', '.join(f'{name} {before[name]}' for name in changed)}: allow for the difference"


def _setting(machine: Machine, *, processes: int, shard: bool, **layout: Any) -> Setting:
    number = processes or (machine.devices if machine.is_gpu else 1)
    return Setting(processes=number, is_sharded=shard and number > 1, **layout)


def _about(size: ModelSize, compute: Compute) -> Iterator[str]:
    machine, setting = compute.machine, compute.setting
    kind = "measured" if machine.is_measured else "from the maker's figures, not measured"
    yield (
        f"{size.name}: {size.parameters / 1e9:.2f} billion weights, {size.layers} layers of width {size.hidden}; "
        f"{'all weights' if setting.is_full else 'an adapter'} trained"
    )
    yield (
        f"{machine.name}: {machine.peak / 1e12:.2f} TFLOP/s, {machine.bandwidth / 1e9:.0f} GB/s, "
        f"{machine.memory / _GIB:.0f} GiB a device ({kind}); {setting.processes} "
        f"process{'es' if setting.processes > 1 else ''}{', sharded' if setting.is_sharded else ''}"
    )


def _verdict(peak: float, compute: Compute) -> Iterator[str]:
    room = compute.machine.memory / (1 if compute.machine.is_gpu else compute.setting.processes)
    if peak > room:
        yield (
            f"This does not fit: it needs {peak / _GIB:.0f} GiB and a process has {room / _GIB:.0f}. "
            "Options (docs/scale.md): more processes, POISE_RECOMPUTE=1, 4-bit weights, generation by a server"
        )
    yield "This is an estimate, not a measurement. docs/scale.md compares earlier estimates with measurements."


def _tokens(model: str) -> dict[str, Any]:
    """How many tokens a text and the chat template have, where the tokenizer is at hand."""
    from poise.models.load import load_tokenizer

    if model.lower() in MODEL_SIZES:
        return {}
    try:
        tokenizer = load_tokenizer(model)
    except ModelError:
        return {}

    def of(text: str) -> float:
        return float(len(tokenizer.encode(text, add_special_tokens=False)))

    empty = [{"role": "user", "content": ""}]
    return {"of": of, "template": of(tokenizer.apply_chat_template(empty, tokenize=False, add_generation_prompt=True))}
