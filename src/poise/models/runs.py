"""A run's folder as a model: which of the models in it the run stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from poise.errors import ModelError
from poise.files import read_json
from poise.run_folder import RECORD, SUMMARY

MODEL_FOLDER = "model_folder"  # of a summary: the model that the run made, by its place in the run
SCORES_FOLDER, CLASSIFIER_FOLDER = "score_model", "classifier"  # of a summary: a score model, in either form
SCORE_MODEL_CARD = "poise_score_model.json"


def model_of(name: str) -> str:
    """The model to load: the name itself, or of a run the one that its summary names as its own.

    Where a summary names none it is the newest model trained for the run's own objective: a run that compares
    objectives says in its summary which of them is its own, or has it for an argument.

    Raises ModelError if the run has no saved model yet.
    """
    folder = Path(name)
    if not (folder / RECORD).is_file():
        return name
    if (named := _summary_of(folder).get(MODEL_FOLDER)) is not None:
        return str(folder / named)
    configs = [*folder.rglob("adapter_config.json"), *folder.rglob("config.json")]
    configs = [config for config in configs if not _scores(config)]
    if not configs:
        raise ModelError(f"run {name} has no saved model yet: let it finish, or give a model or its folder")
    objective = _objective_of(folder)
    own = [config for config in configs if objective and _is_for(objective, config.relative_to(folder).parts)]
    return str(max(own or configs, key=lambda config: (config.stat().st_mtime, str(config))).parent)


def score_model_of(folder: Path) -> Path:
    """The score model's folder: the folder itself, or of a run the one that its summary names."""
    named = _summary_of(folder).get(SCORES_FOLDER) if (folder / RECORD).is_file() else None
    return folder / named if named else folder


def _scores(config: Path) -> bool:
    """Whether a configuration is that of a score model, in poise's form or as a sequence classifier."""
    if (config.parent / SCORE_MODEL_CARD).is_file():
        return True
    return any(str(kind).endswith("ForSequenceClassification") for kind in _listed(read_json(config)))


def _listed(config: dict[str, Any]) -> list[Any]:
    kinds = config.get("architectures")
    return kinds if isinstance(kinds, list) else []


def _objective_of(folder: Path) -> str:
    """A run's own objective; "" where it compares none, or has not finished and does not say."""
    arguments = read_json(folder / RECORD).get("arguments")
    given = arguments.get("objective", "") if isinstance(arguments, dict) else ""
    return str(_summary_of(folder).get("objective", given))


def _summary_of(folder: Path) -> dict[str, Any]:
    summary = folder / SUMMARY
    return read_json(summary) if summary.is_file() else {}


def _is_for(objective: str, place: tuple[str, ...]) -> bool:
    """Whether a model at this place in a run was trained for an objective: in its arm of a study, or in its stage."""
    return any(part == f"policy-{objective}" or part.startswith(f"{objective}-seed-") for part in place)
