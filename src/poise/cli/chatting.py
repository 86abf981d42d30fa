"""`poise chat`: one conversation with a model in the terminal."""

from __future__ import annotations

from pathlib import Path

from poise.errors import ModelError
from poise.files import read_json
from poise.run_folder import RECORD, SUMMARY
from poise.text import say
from poise.types import Message, Prompt, Sampling


def chat_with(model: str, *, max_tokens: int, temperature: float, chat_template: Path | None = None) -> None:
    """Read user turns until the end of input and print the model's answers.

    Answers take half of the model's context at most; a conversation that does not fit loses its oldest turns.
    """
    name = model_of(model)
    if name != model:
        say(f"Model: {name}", error=True)

    from poise.models.load import read_template
    from poise.models.policy import load_policy
    from poise.rollout.native import NativeEngine

    template = None if chat_template is None else read_template(chat_template)
    policy = load_policy(name, chat_template=template)
    context = policy.backbone.context
    max_tokens = min(max_tokens, max(1, context // 2))
    engine = NativeEngine(policy, max_prompt_tokens=max(8, min(2048, context - max_tokens)))
    messages: list[Message] = []
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            say()
            return
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=len(messages))
        answer = engine.generate([Prompt.of(messages)], sampling)[0].text.strip()
        messages.append({"role": "assistant", "content": answer})
        say(f"model> {answer}")


def model_of(name: str) -> str:
    """The model to load: the name itself, or of a run the newest model trained for the run's own objective.

    A run that compares objectives says in its summary which of them is its own, or has it for an argument.

    Raises ModelError if the run has no saved model yet.
    """
    folder = Path(name)
    if not (folder / RECORD).is_file():
        return name
    configs = [*folder.rglob("adapter_config.json"), *folder.rglob("config.json")]
    if not configs:
        raise ModelError(f"run {name} has no saved model yet: let it finish, or give a model or its folder")
    objective = _objective_of(folder)
    own = [config for config in configs if objective and _is_for(objective, config.relative_to(folder).parts)]
    return str(max(own or configs, key=lambda config: (config.stat().st_mtime, str(config))).parent)


def _objective_of(folder: Path) -> str:
    """A run's own objective; "" where it compares none, or has not finished and does not say."""
    arguments, summary = read_json(folder / RECORD).get("arguments"), folder / SUMMARY
    given = arguments.get("objective", "") if isinstance(arguments, dict) else ""
    if summary.is_file():
        given = read_json(summary).get("objective", given)
    return str(given)


def _is_for(objective: str, place: tuple[str, ...]) -> bool:
    """Whether a model at this place in a run was trained for an objective: in its arm of a study, or in its stage."""
    return any(part == f"policy-{objective}" or part.startswith(f"{objective}-seed-") for part in place)
