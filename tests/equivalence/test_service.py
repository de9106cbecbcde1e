"""Handles through real workers: tokens equal those of `pooled`, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pdray.core.errors import (
    HandleProblem,
    HandleRefusedError,
    OverloadedError,
    WorkerLostError,
)
from pdray.core.parked import LeaseKey, ParkedPrompt
from pdray.core.request import FinishReason, Request
from pdray.local import LocalCluster
from tests.engine_driver import random_prompts as wide_prompts
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of
from tests.service import Service, running_service

MAX_TOKENS = 12


@pytest.fixture
async def service(tiny_model_path: Path, tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tiny_model_path, tmp_path) as running:
        yield running
        await running.until_idle()


def for_prefill(request: Request) -> Request:
    """As a prefill application asks for it."""
    sampling = replace(request.sampling, max_tokens=min(2, request.sampling.max_tokens))
    return replace(request, request_id=f"{request.request_id}-prefill", sampling=sampling)


async def park(service: Service, request: Request) -> ParkedPrompt:
    return await service.prefill.frontend.park(for_prefill(request))


def requests_of(lengths: list[int], temperature: float = 0.0) -> list[Request]:
    return [
        request_of(prompt, MAX_TOKENS, request_id=f"r{index}", temperature=temperature)
        for index, prompt in enumerate(random_prompts(lengths))
    ]


async def problem_of(service: Service, request: Request, parked: ParkedPrompt) -> HandleProblem:
    with pytest.raises(HandleRefusedError) as refused:
        await service.resume(request, parked)
    return refused.value.problem


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_tokens_equal_those_of_pooled(
    service: Service, tiny_model_path: Path, temperature: float
) -> None:
    requests = requests_of([1, 15, 16, 17, 40, 63, 64, 65, 130], temperature)
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as pooled:
        expected = [await tokens_of(pooled, request) for request in requests]
    parked = await asyncio.gather(*(park(service, request) for request in requests))
    assert [list(each.first.token_ids) for each in parked] == [e[:1] for e in expected]
    got = await asyncio.gather(*map(service.resume, requests, parked))
    assert got == expected


async def test_a_prompt_that_ends_with_its_first_token_needs_no_lease(service: Service) -> None:
    request = request_of([7] * 20, 1)
    parked = await park(service, request)
    assert parked.lease is None
    assert parked.first.finish_reason is FinishReason.LENGTH
    assert await service.resume(request, parked) == list(parked.first.token_ids)


async def test_a_lease_that_is_not_needed_is_given_back(service: Service) -> None:
    (request,) = requests_of([40])
    parked = await park(service, request)
    one = replace(request, sampling=replace(request.sampling, max_tokens=1))
    assert await service.resume(one, parked) == list(parked.first.token_ids)
    await service.until_idle()


async def test_a_lease_is_good_once(service: Service) -> None:
    (request,) = requests_of([40])
    parked = await park(service, request)
    assert len(await service.resume(request, parked)) == MAX_TOKENS
    again = replace(request, request_id="again")
    assert await problem_of(service, again, parked) == HandleProblem.USED_UP


async def test_of_two_at_once_one_gets_it(service: Service) -> None:
    (request,) = requests_of([40])
    parked = await park(service, request)
    two = [replace(request, request_id=f"r-{number}") for number in range(2)]
    got = await asyncio.gather(
        *(service.resume(each, parked) for each in two), return_exceptions=True
    )
    (error,) = [each for each in got if isinstance(each, HandleRefusedError)]
    (tokens,) = [each for each in got if isinstance(each, list)]
    assert error.problem is HandleProblem.USED_UP
    assert len(tokens) == MAX_TOKENS


async def test_a_wrong_secret_gets_nothing_and_spoils_nothing(service: Service) -> None:
    (request,) = requests_of([40])
    parked = await park(service, request)
    assert parked.lease is not None
    key = LeaseKey(lease_id=parked.lease.key.lease_id, secret=b"wrong")
    forged = replace(parked, lease=replace(parked.lease, key=key))
    assert await problem_of(service, request, forged) == HandleProblem.FORGED
    again = replace(request, request_id="again")
    assert len(await service.resume(again, parked)) == MAX_TOKENS


async def test_one_who_lacks_the_cluster_secret_gets_no_link(service: Service) -> None:
    (request,) = requests_of([40])
    parked = await park(service, request)
    owner = replace(service.claim_of(parked)[0], link_key=b"stranger" * 4)
    with pytest.raises(WorkerLostError, match="cannot be reached"):
        await anext(service.decode.frontend.resume(request, parked, owner))
    await service.prefill.frontend.release(*service.claim_of(parked))


async def test_a_released_lease_is_free_and_used_up(service: Service) -> None:
    (request,) = requests_of([40])
    parked = await park(service, request)
    await service.decode.frontend.release(*service.claim_of(parked))
    await service.until_idle()
    assert await problem_of(service, request, parked) == HandleProblem.USED_UP
    with pytest.raises(HandleRefusedError, match="used up"):
        await service.prefill.frontend.release(*service.claim_of(parked))


async def test_its_frontend_may_go(service: Service) -> None:
    (request,) = requests_of([40])
    parked = await park(service, request)
    (worker,) = service.prefill.workers
    assert b'pdray_num_prompts_parked{pool="prefill",worker_id="prefill-0-local"} 1.0' in (
        worker.metrics_text()
    )
    await service.prefill.frontend.stop()
    assert len(await service.resume(request, parked)) == MAX_TOKENS


async def test_one_that_gives_up_leaves_it_for_others(service: Service) -> None:
    """Cancelled before its blocks were read to the end, or after: never half."""
    requests = requests_of([130] * 6)
    for number, request in enumerate(requests):
        parked = await park(service, request)
        running = asyncio.create_task(service.resume(request, parked))
        for _ in range(3 * number):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        again = replace(request, request_id=f"{request.request_id}-again")
        (got,) = await asyncio.gather(service.resume(again, parked), return_exceptions=True)
        if isinstance(got, HandleRefusedError):
            assert got.problem is HandleProblem.USED_UP
        else:
            assert len(got) == MAX_TOKENS


async def test_a_client_that_leaves_while_its_prompt_runs_leaves_nothing(
    service: Service,
) -> None:
    for number, request in enumerate(requests_of([130] * 6)):
        running = asyncio.create_task(park(service, request))
        for _ in range(10 * number):
            await asyncio.sleep(0)
        running.cancel()
        (got,) = await asyncio.gather(running, return_exceptions=True)
        if isinstance(got, ParkedPrompt):  # it was done sooner, and is there to be claimed
            await service.decode.frontend.release(*service.claim_of(got))
    await service.until_idle()


async def test_leases_expire_unless_they_are_renewed(tiny_model_path: Path, tmp_path: Path) -> None:
    handles = {"handles": {"lease_s": 0.5}}
    async with running_service(tiny_model_path, tmp_path, prefill=handles) as service:
        kept, expiring = requests_of([40, 130])
        parked = [await park(service, kept), await park(service, expiring)]
        assert parked[0].lease_s == 0.5
        ending = asyncio.create_task(problem_once_gone(service, expiring, parked[1]))
        while not ending.done():
            assert await service.decode.frontend.renew(*service.claim_of(parked[0])) == 0.5
            await asyncio.sleep(0.1)
        assert ending.result() is HandleProblem.EXPIRED
        assert len(await service.resume(kept, parked[0])) == MAX_TOKENS
        await service.until_idle()


async def problem_once_gone(
    service: Service, request: Request, parked: ParkedPrompt
) -> HandleProblem:
    """Waits until its blocks are back."""
    (worker,) = service.prefill.workers
    num_held = worker.snapshot().num_held_blocks
    while worker.snapshot().num_held_blocks == num_held:
        await asyncio.sleep(0.01)
    return await problem_of(service, request, parked)


async def test_parked_prompts_cannot_take_all_the_memory(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    handles = {"handles": {"max_fraction": 0.01}}
    async with running_service(tiny_model_path, tmp_path, prefill=handles) as service:
        first, *others = requests_of([200] * 4)
        parked = await park(service, first)
        for request in others:
            with pytest.raises(OverloadedError, match="wait to be claimed") as refused:
                await park(service, request)
            assert refused.value.retry_after_s > 0
        assert len(await service.resume(first, parked)) == MAX_TOKENS
        await service.until_idle()
        again = replace(others[0], request_id="again")
        assert len(await service.resume(again, await park(service, again))) == MAX_TOKENS


async def test_a_worker_that_drains_waits_for_those_who_come_for_parked_prompts(
    service: Service,
) -> None:
    requests = requests_of([40, 64])
    parked = [await park(service, request) for request in requests]
    (worker,) = service.prefill.workers
    draining = asyncio.create_task(worker.drain())
    await asyncio.sleep(0)
    lease_s = await service.decode.frontend.renew(*service.claim_of(parked[0]))
    assert lease_s < parked[0].lease_s
    for request, each in zip(requests, parked, strict=True):
        assert not draining.done()
        assert len(await service.resume(request, each)) == MAX_TOKENS
    await draining


@pytest.mark.slow
async def test_gemma_with_its_windows_equals_the_reference(
    demo_model_path: Path, tmp_path: Path
) -> None:
    engine = {"kv_cache_bytes": 512 * 2**20, "max_tokens_per_step": 256, "max_model_len": 2048}
    prompts = wide_prompts([5, 300, 511, 700, 1100], vocab_size=50_000)
    reference = Reference(demo_model_path)
    expected = reference.generate_all(prompts, MAX_TOKENS)
    both: dict[str, object] = {"engine": engine}
    async with running_service(
        demo_model_path, tmp_path, prefill=dict(both), decode=dict(both)
    ) as service:
        requests = [
            request_of(prompt, MAX_TOKENS, request_id=f"g{index}")
            for index, prompt in enumerate(prompts)
        ]
        parked = await asyncio.gather(*(park(service, request) for request in requests))
        outputs = await asyncio.gather(*map(service.resume, requests, parked))
        assert_equal_up_to_ties("Gemma through handles", outputs, expected)
        await service.until_idle()
