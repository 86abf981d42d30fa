"""`poise chat`: one conversation with a model in the terminal."""

from __future__ import annotations

from pathlib import Path

from poise.models.runs import model_of
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
