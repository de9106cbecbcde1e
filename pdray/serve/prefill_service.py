"""The prefill application's answers: handles of computed prompts. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

from pdray.core.cluster_secret import ClusterSecret, owner_of
from pdray.core.parked import LeaseKey, ParkedPrompt
from pdray.core.placement import WorkerAddress
from pdray.core.request import Request
from pdray.frontend.text import Tokenizer
from pdray.serve.completion import CompletionService, Job
from pdray.serve.handle_bodies import (
    endpoint_of,
    fields_of,
    packed,
    parse_handle,
    parse_request,
    with_seed,
)
from pdray.serve.handle_responses import Prefilled, PrefilledChoice, Released, Renewed
from pdray.serve.kv_handle import HandlePart, KVHandle, open_handle, prompt_digest, seal
from pdray.serve.openai_responses import Usage

MAX_PREFILL_TOKENS = 2
"""A prefill worker has to know whether its token is the last one; how many follow is decode's."""

NOTHING_TO_KEEP_S = 3600.0
"""How long a handle is good that has no lease, as its requests ended with their first tokens."""


class ParkingFrontend(Protocol):
    """What of a Frontend is needed here."""

    async def park(self, request: Request) -> ParkedPrompt: ...

    async def renew(self, owner: WorkerAddress, key: LeaseKey) -> float: ...

    async def release(self, owner: WorkerAddress, key: LeaseKey) -> None: ...


@dataclass(frozen=True, slots=True)
class PrefillService:
    """One model's prompts. ``secrets`` are as ``read_secrets`` has them; ``wall_time`` gives
    seconds since 1970."""

    completions: CompletionService
    frontend: ParkingFrontend
    tokenizer: Tokenizer
    secrets: Sequence[ClusterSecret]
    wall_time: Callable[[], float] = time.time

    async def prefill(self, data: object, tenant: str | None) -> Prefilled:
        """Cancelled, it cancels the prompts. Raises what a Frontend does."""
        fields = with_seed(fields_of(data))
        endpoint = endpoint_of(fields)
        job = await self.completions.prepare(parse_request(endpoint, fields), tenant)
        parked = await self._park_all(job.requests)
        parts = tuple(
            HandlePart(parked=each, prompt_digest=prompt_digest(request.prompt_token_ids))
            for request, each in zip(job.requests, parked, strict=True)
        )
        handle = KVHandle(
            tenant=tenant,
            expires_at=self._expiry(parts),
            endpoint=endpoint,
            body=packed(fields),
            parts=parts,
        )
        return self._answer(job, handle)

    async def renew(self, data: object, tenant: str | None) -> Renewed:
        """The same leases under a handle that lives longer. Raises HandleRefusedError where one of
        them cannot be renewed."""
        handle = self._open(data, tenant)
        parts = [await self._renew(part) for part in handle.parts]
        handle = KVHandle(
            tenant=handle.tenant,
            expires_at=self._expiry(parts),
            endpoint=handle.endpoint,
            body=handle.body,
            parts=tuple(parts),
        )
        return Renewed(kv_handle=seal(handle, self.secrets[0]), expires_at=handle.expires_at)

    async def release(self, data: object, tenant: str | None) -> Released:
        """Raises HandleRefusedError where there is nothing to release any more."""
        for part in self._open(data, tenant).parts:
            lease = part.parked.lease
            if lease is not None:
                await self.frontend.release(owner_of(lease, self.secrets), lease.key)
        return Released()

    async def _park_all(self, requests: Sequence[Request]) -> list[ParkedPrompt]:
        """All of them or none."""
        tasks = [asyncio.ensure_future(self.frontend.park(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            for parked in ended:
                if isinstance(parked, ParkedPrompt) and parked.lease is not None:
                    owner = owner_of(parked.lease, self.secrets)
                    await self.frontend.release(owner, parked.lease.key)
            raise

    async def _renew(self, part: HandlePart) -> HandlePart:
        lease = part.parked.lease
        if lease is None:
            return part
        lease_s = await self.frontend.renew(owner_of(lease, self.secrets), lease.key)
        return HandlePart(
            parked=replace(part.parked, lease_s=lease_s), prompt_digest=part.prompt_digest
        )

    def _open(self, data: object, tenant: str | None) -> KVHandle:
        text = parse_handle(data).kv_handle
        return open_handle(text, self.secrets, tenant=tenant, now=self.wall_time())

    def _expiry(self, parts: Sequence[HandlePart]) -> float:
        leases_s = [part.parked.lease_s for part in parts if part.parked.lease is not None]
        return self.wall_time() + min(leases_s, default=NOTHING_TO_KEEP_S)

    def _answer(self, job: Job, handle: KVHandle) -> Prefilled:
        firsts = [part.parked.first for part in handle.parts]
        # Of a prompt's choices the first to run has computed what the others find.
        cached = [
            min(first.num_cached_tokens or 0 for first in firsts[start : start + job.num_choices])
            for start in range(0, len(firsts), job.num_choices)
        ]
        return Prefilled(
            id=f"prefill-{uuid4().hex}",
            created=int(self.wall_time()),
            model=self.completions.model_name,
            kv_handle=seal(handle, self.secrets[0]),
            expires_at=handle.expires_at,
            choices=tuple(
                PrefilledChoice(
                    index=index,
                    token_ids=list(first.token_ids),
                    text=self.tokenizer.decode(first.token_ids),
                    finish_reason=first.finish_reason,
                )
                for index, first in enumerate(firsts)
            ),
            usage=Usage.of(
                job.num_prompt_tokens, sum(len(first.token_ids) for first in firsts), sum(cached)
            ),
        )
