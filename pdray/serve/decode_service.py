"""The decode application's answers: it goes on from handles. Knows neither HTTP nor Ray."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pdray.core.cluster_secret import ClusterSecret, owner_of
from pdray.core.errors import InvalidRequestError
from pdray.core.parked import LeaseKey, ParkedPrompt
from pdray.core.placement import WorkerAddress
from pdray.core.request import Request
from pdray.frontend.token_stream import TokenDelta
from pdray.serve.call_timelines import CallTimelines
from pdray.serve.completion import CompletionService, Job
from pdray.serve.handle_bodies import parse_request, unpacked, with_stream
from pdray.serve.kv_handle import KVHandle, open_handle, prompt_digest
from pdray.serve.openai_api import GenerationBody


class ResumingFrontend(Protocol):
    """What of a Frontend is needed here. ``owner`` has the parked prompt's lease."""

    def resume(
        self, request: Request, parked: ParkedPrompt, owner: WorkerAddress | None
    ) -> AsyncGenerator[TokenDelta, None]: ...

    def drop(self, owner: WorkerAddress, key: LeaseKey) -> None: ...


@dataclass(frozen=True, slots=True)
class ParkedSource:
    """A TokenSource of requests whose prompts are computed, by request id."""

    frontend: ResumingFrontend
    prompts: Mapping[str, ParkedPrompt]
    secrets: Sequence[ClusterSecret]

    def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        parked = self.prompts[request.request_id]
        owner = None if parked.lease is None else owner_of(parked.lease, self.secrets)
        return self.frontend.resume(request, parked, owner)


@dataclass(frozen=True, slots=True)
class DecodeService:
    """One model's handles. ``secrets`` are as ``read_secrets`` has them; ``wall_time`` gives
    seconds since 1970."""

    completions: CompletionService
    frontend: ResumingFrontend
    secrets: Sequence[ClusterSecret]
    wall_time: Callable[[], float] = time.time

    def open(self, text: str, tenant: str | None) -> KVHandle:
        """Raises HandleRefusedError."""
        return open_handle(text, self.secrets, tenant=tenant, now=self.wall_time())

    def body_of(self, handle: KVHandle, stream: bool | None) -> GenerationBody:
        """What the request asked for, its ``stream`` replaced where that is not None. Raises
        InvalidRequestError."""
        return parse_request(handle.endpoint, with_stream(unpacked(handle.body), stream))

    async def prepare(
        self, handle: KVHandle, body: GenerationBody, timelines: CallTimelines
    ) -> Job:
        """Raises what CompletionService does."""
        job = await self.completions.prepare(body, handle.tenant, timelines)
        return self.resume(handle, job)

    def resume(self, handle: KVHandle, job: Job) -> Job:
        """The job, from where the handle's prompts are. Raises InvalidRequestError where it is not
        the handle's."""
        digests = [prompt_digest(request.prompt_token_ids) for request in job.requests]
        if digests != [part.prompt_digest for part in handle.parts]:
            raise InvalidRequestError(
                "kv_handle: its prompts are other tokens here than where they were computed: the "
                "two applications have other tokenizers, or chat templates",
                param="kv_handle",
                code="kv_handle_mismatch",
            )
        prompts = {
            request.request_id: part.parked
            for request, part in zip(job.requests, handle.parts, strict=True)
        }
        return replace(job, source=ParkedSource(self.frontend, prompts, self.secrets))
