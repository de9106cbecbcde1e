"""OpenAI's endpoints over two applications: a prompt's handle from the one, its answer from here.

Until something of an answer was sent, a handle that turns out to be lost costs time only: its
prompt is computed again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from pdray.core.cluster_secret import owner_of
from pdray.core.errors import HandleRefusedError, WorkerLostError
from pdray.serve.call_timelines import CallTimelines
from pdray.serve.completion import Bundle, Job
from pdray.serve.decode_service import DecodeService
from pdray.serve.handle_bodies import Fields, parse_request, with_seed
from pdray.serve.kv_handle import Endpoint, KVHandle
from pdray.serve.openai_api import GenerationBody
from pdray.serve.openai_responses import Response
from pdray.serve.prefill_client import PrefillClient

logger = logging.getLogger(__name__)

MAX_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request of a client, checked. ``authorization`` goes to the prefill application."""

    fields: Fields
    body: GenerationBody
    tenant: str | None
    authorization: str | None
    job: Job


class Composition:
    def __init__(self, decode: DecodeService, prefill: PrefillClient) -> None:
        self._decode = decode
        self._prefill = prefill

    async def prepare(
        self,
        endpoint: Endpoint,
        fields: Fields,
        *,
        tenant: str | None,
        authorization: str | None,
        timelines: CallTimelines,
    ) -> Call:
        """What is wrong with a request is said before its prompt is computed. Raises what
        CompletionService does."""
        fields = with_seed(fields)
        body = parse_request(endpoint, fields)
        job = await self._decode.completions.prepare(body, tenant, timelines)
        return Call(fields=fields, body=body, tenant=tenant, authorization=authorization, job=job)

    async def complete(self, call: Call) -> Response:
        """Cancelled, it cancels both phases. Raises what they do."""
        job, num_tries = call.job, 1
        while True:
            handle = await self._handle(call)
            is_over = False
            try:
                answer = await self._decode.completions.complete(self._decode.resume(handle, job))
                is_over = True
                return answer
            except (HandleRefusedError, WorkerLostError) as error:
                if num_tries == MAX_TRIES:
                    raise
                logger.warning("a prompt is computed again: %s", error)
            finally:
                if not is_over:
                    self._drop(handle)
            num_tries += 1
            job = await self._prepare_again(call)

    async def stream(self, call: Call) -> AsyncGenerator[Bundle, None]:
        """Closing it cancels both phases. Raises what they do."""
        job, num_tries, has_sent, is_over = call.job, 1, False, False
        while not is_over:
            handle = await self._handle(call)
            try:
                resumed = self._decode.resume(handle, job)
                async with aclosing(self._decode.completions.stream(resumed)) as bundles:
                    async for bundle in bundles:
                        has_sent = True
                        yield bundle
                is_over = True
            except (HandleRefusedError, WorkerLostError) as error:
                if has_sent or num_tries == MAX_TRIES:
                    raise
                logger.warning("a prompt is computed again: %s", error)
                job = await self._prepare_again(call)
            finally:
                if not is_over:
                    self._drop(handle)
            num_tries += 1

    async def _prepare_again(self, call: Call) -> Job:
        return await self._decode.completions.prepare(call.body, call.tenant, call.job.timelines)

    async def _handle(self, call: Call) -> KVHandle:
        text = await self._prefill.prefill(call.fields, call.authorization)
        return self._decode.open(text, call.tenant)

    def _drop(self, handle: KVHandle) -> None:
        """Nobody else has this handle: what is left of its KV is of no use."""
        for part in handle.parts:
            lease = part.parked.lease
            if lease is not None:
                self._decode.frontend.drop(owner_of(lease, self._decode.secrets), lease.key)
