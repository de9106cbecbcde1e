"""A batch on Ray: an application of its own, up for as long as the batch runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from pdray.config import PdrayConfig, parse_config
from pdray.core.errors import ConfigError
from pdray.core.mode import Mode
from pdray.frontend.frontend import Frontend
from pdray.frontend.text import Tokenizer
from pdray.model_source import resolve_model
from pdray.serve.batch import BatchCounts, BatchRun
from pdray.serve.completion import CompletionService
from pdray.serve.ray_session import open_ray

if TYPE_CHECKING:
    from pdray.cluster.client import RayControllerClient

MAX_NAME_CHARS = 63


def run_batch(
    config: PdrayConfig,
    *,
    address: str | None,
    input_path: Path,
    output_path: Path,
    max_in_flight: int,
    give_up_after_s: float,
    say: Callable[[str], None],
    on_change: Callable[[BatchCounts], None],
) -> BatchCounts:
    """Blocks until all lines are answered. Whatever happens, its workers are gone afterwards.

    Raises UnavailableError, ConfigError, KeyboardInterrupt.
    """
    if config.mode is Mode.SERVICE:
        accepted = ", ".join(mode for mode in Mode if mode is not Mode.SERVICE)
        raise ConfigError(f"mode = service: a batch needs both phases; accepted: {accepted}")
    config = with_own_name(config)
    tokenizer = Tokenizer(resolve_model(config.model, say))
    session = open_ray([config], address, say)
    from pdray.cluster.launch import down, up  # not before: Ray reads what open_ray sets

    async def answer() -> BatchCounts:
        async with running_frontend(config) as (frontend, controller):
            service = CompletionService(
                frontend, tokenizer, model_name=config.model_name, limits=controller.limits
            )
            batch = BatchRun(
                service,
                max_in_flight=max_in_flight,
                give_up_after_s=give_up_after_s,
                on_change=on_change,
            )
            await batch.run(input_path, output_path)
            return batch.counts

    try:
        up(config, say)
        return asyncio.run(answer())
    finally:
        # Nothing may cut this short: it ends the processes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("stopping the workers")
        down(config)
        session.close()


def with_own_name(config: PdrayConfig) -> PdrayConfig:
    """The same config as an application that no other run or server shares."""
    suffix = f"-batch-{uuid4().hex[:6]}"
    data = config.model_dump(mode="json")
    name = config.serve.application[: MAX_NAME_CHARS - len(suffix)] + suffix
    return parse_config(data | {"serve": data["serve"] | {"application": name}})


@asynccontextmanager
async def running_frontend(
    config: PdrayConfig,
) -> AsyncGenerator[tuple[Frontend, RayControllerClient], None]:
    from pdray.cluster.client import RayControllerClient

    frontend_id = f"{config.serve.application}-frontend"
    controller = RayControllerClient(config, frontend_id)
    frontend = Frontend(
        frontend_id,
        controller,
        max_unread_tokens=config.serve.slow_reader_tokens,
        patience_s=config.controller.queue_timeout_s,
    )
    try:
        await controller.start(frontend.metrics)
        yield frontend, controller
    finally:
        await frontend.stop()
        await controller.close()
