"""Engines by name: what `--engine` of a recipe says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poise.errors import ConfigError
from poise.models.policy import Policy
from poise.rollout.native import NativeEngine
from poise.types import Engine

TOKEN_VARIABLE = "POISE_SERVER_TOKEN"


def engine_named(name: str, policy: Policy, *, folder: Path, reference: bool = False) -> Engine:
    """An engine that answers with the policy's current weights, or as its reference.

    native              in this process
    ray, ray:4          on 2, or 4, workers of the Ray cluster that RAY_ADDRESS names, or of a local one
    http://HOST:PORT    by a vLLM server that takes adapters while it runs and was started with
                        --logprobs-mode processed_logprobs; the environment variable POISE_SERVER_TOKEN opens it

    `folder` is where adapters are written for a server. Raises ConfigError for any other name.

    >>> from poise.models.policy import load_policy
    >>> type(engine_named("native", load_policy("random:llama"), folder=Path("."))).__name__
    'NativeEngine'
    """
    check_engine_name(name)
    if name == "native":
        return NativeEngine(policy, reference=reference)
    if name.startswith("ray"):
        from poise.rollout.ray import RayEngine

        return RayEngine(policy, workers=int(name.partition(":")[2] or 2), reference=reference)
    from poise.rollout.vllm import VLLMEngine

    token = os.environ.get(TOKEN_VARIABLE, "")
    return VLLMEngine(name, policy, folder=folder, reference=reference, processed_logprobs=True, token=token)


def check_engine_name(name: str) -> None:
    """Raise ConfigError for a name that `engine_named` does not know."""
    kind, _, number = name.partition(":")
    if name in ("native", "ray") or name.startswith(("http://", "https://")):
        return
    if kind == "ray" and number.isdecimal() and int(number) > 0:
        return
    raise ConfigError(f"no engine {name!r}: choose native, ray, ray:WORKERS or the http://HOST:PORT of a vLLM server")


def computes_elsewhere(name: str) -> bool:
    """Whether the engine has kernels of its own, whose log-probabilities differ from the trainer's."""
    return name.startswith("http")


def close_engine(engine: Engine) -> None:
    """End what an engine keeps outside this process, if anything."""
    getattr(engine, "close", lambda: None)()


@contextmanager
def engine_for(policy: Policy, engine: str | Engine, *, folder: Path, reference: bool = False) -> Iterator[Engine]:
    """The engine of that name, closed when it is no longer needed; one that was passed in is left open."""
    if not isinstance(engine, str):
        yield engine
        return
    answering = engine_named(engine, policy, folder=folder, reference=reference)
    try:
        yield answering
    finally:
        close_engine(answering)
