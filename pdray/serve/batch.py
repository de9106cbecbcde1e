"""Runs a batch: lines in, answers out, a bounded number in flight. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pdray.core.clock import Clock, WallClock
from pdray.core.errors import OverloadedError, PdrayError, UnavailableError
from pdray.serve.batch_files import AnswerLine, BadLine, BatchLine, open_output, read_lines
from pdray.serve.completion import CompletionService
from pdray.serve.error_bodies import RETRYABLE_STATUSES, failure_of
from pdray.serve.openai_responses import Response

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
MAX_RETRY_S = 30.0


@dataclass(slots=True)
class BatchCounts:
    """How far a run is. ``num_skipped`` lines were there already."""

    num_skipped: int = 0
    num_ok: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0

    @property
    def num_done(self) -> int:
        return self.num_skipped + self.num_ok + self.num_failed


class BatchRun:
    """One run over an input file. Reads no more lines than may be in flight."""

    def __init__(
        self,
        service: CompletionService,
        *,
        max_in_flight: int,
        give_up_after_s: float,
        on_change: Callable[[BatchCounts], None],
        clock: Clock | None = None,
    ) -> None:
        """A line that is refused for a time (429, 503) is tried again until nothing has been
        answered for ``give_up_after_s``."""
        self.counts = BatchCounts()
        self._service = service
        self._max_in_flight = max_in_flight
        self._give_up_after_s = give_up_after_s
        self._on_change = on_change
        self._clock = clock or WallClock()
        self._answered_at = self._clock.now()

    async def run(self, input_path: Path, output_path: Path) -> None:
        """Appends one line for each that is not answered yet. Raises UnavailableError when it
        gives up, ConfigError for files that are no good; what was answered stays."""
        places = asyncio.Semaphore(self._max_in_flight)
        with open_output(output_path) as (output, finished):

            async def answer(line: BatchLine | BadLine) -> None:
                try:
                    answered = await self._answer(line)
                    output.write(answered.to_json() + b"\n")
                    output.flush()
                    self._answered_at = self._clock.now()
                    self._on_change(self.counts)
                finally:
                    places.release()

            try:
                async with asyncio.TaskGroup() as tasks:
                    for line in read_lines(input_path):
                        if finished.has(line):
                            self.counts.num_skipped += 1
                            continue
                        await places.acquire()
                        tasks.create_task(answer(line))
            except* PdrayError as errors:
                raise errors.exceptions[0] from None
        self._on_change(self.counts)

    async def _answer(self, line: BatchLine | BadLine) -> AnswerLine:
        if isinstance(line, BadLine):
            self.counts.num_failed += 1
            return AnswerLine.of_bad_line(line)
        try:
            response = await self._complete(line)
        except PdrayError as error:
            failure = failure_of(error)
            if failure.status in RETRYABLE_STATUSES:
                raise
            self.counts.num_failed += 1
            return AnswerLine.of_response(line, failure.status, failure.body)
        self.counts.num_ok += 1
        if response.usage:
            self.counts.num_prompt_tokens += response.usage.prompt_tokens
            self.counts.num_output_tokens += response.usage.completion_tokens
        return AnswerLine.of_response(line, 200, response)

    async def _complete(self, line: BatchLine) -> Response:
        """Tries again, ever more slowly, what may work later."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                return await self._service.complete(await self._service.prepare(line.parse(), None))
            except PdrayError as error:
                if failure_of(error).status not in RETRYABLE_STATUSES:
                    raise
                logger.info("custom_id=%s is tried again: %s", line.custom_id, error)
                idle_s = self._clock.now() - self._answered_at
                if idle_s > self._give_up_after_s:
                    raise UnavailableError(
                        f"nothing answered for {idle_s:.0f} s, last: {error}; run the same "
                        "command again to go on"
                    ) from error
                asked_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
                await asyncio.sleep(max(retry_s, asked_s))
                retry_s = min(2 * retry_s, MAX_RETRY_S)
