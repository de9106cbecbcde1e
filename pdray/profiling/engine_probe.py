"""A worker's engine in a process of its own: how long it takes to start, how fast it is then."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pdray.core.errors import PdrayError, UnavailableError
from pdray.core.snapshot import KVSpan
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.worker.worker_info import spans_of

from .step_load import TimedSteps, time_steps

_JOIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine has, and how long its steps take."""

    steps: TimedSteps
    num_blocks: int
    block_bytes: int
    max_sequence_tokens: int
    kv_spans: tuple[KVSpan, ...]
    layout_digest: str
    model_digest: str


def probe_engine(
    model_path: Path, config: EngineConfig, *, seconds: float, seed: int
) -> tuple[float, EngineFacts]:
    """Loads it, which may take minutes, and has it make steps for so long. Returns its start-up
    too, in seconds: from the start of its process until it is warm. Raises PdrayError."""
    with _process(model_path, config, seconds, seed) as (pipe, started_at):
        startup_s = _await_start(pipe, started_at)
        facts = _receive(pipe)
    assert isinstance(facts, EngineFacts), f"{facts!r}"
    return startup_s, facts


def probe_startup(model_path: Path, config: EngineConfig) -> float:
    """The start-up alone. Raises PdrayError."""
    with _process(model_path, config, None, 0) as (pipe, started_at):
        return _await_start(pipe, started_at)


@contextmanager
def _process(
    model_path: Path, config: EngineConfig, seconds: float | None, seed: int
) -> Iterator[tuple[Connection, float]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    started_at = time.perf_counter()
    process = context.Process(
        target=_probe, args=(theirs, model_path, config, seconds, seed), daemon=True
    )
    process.start()
    theirs.close()
    try:
        yield ours, started_at
    finally:
        ours.close()
        process.join(_JOIN_S)
        process.kill()
        process.join()


def _await_start(pipe: Connection, started_at: float) -> float:
    _receive(pipe)
    return time.perf_counter() - started_at


def _receive(pipe: Connection) -> object:
    try:
        message = pipe.recv()
    except EOFError:
        raise UnavailableError(
            "the process that loads the engine has ended; what it said is above"
        ) from None
    if isinstance(message, PdrayError):
        raise message
    return message


def _probe(
    pipe: Connection, model_path: Path, config: EngineConfig, seconds: float | None, seed: int
) -> None:
    """In the process. It sends None when it has started, then the facts, if they are asked for."""
    try:
        engine = Engine.load(model_path, config)
    except PdrayError as error:
        pipe.send(error)
        return
    pipe.send(None)
    if seconds is not None:
        pipe.send(_facts_of(engine, time_steps(engine, seconds, random.Random(seed))))
    engine.close()


def _facts_of(engine: Engine, steps: TimedSteps) -> EngineFacts:
    layout = engine.layout
    return EngineFacts(
        steps=steps,
        num_blocks=engine.pool.num_blocks,
        block_bytes=layout.block_bytes,
        max_sequence_tokens=engine.max_sequence_tokens,
        kv_spans=spans_of(layout),
        layout_digest=layout.content_digest,
        model_digest=layout.model_digest,
    )
