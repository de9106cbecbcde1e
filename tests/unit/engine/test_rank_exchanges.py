"""Sums and gatherings over shared memory, by ranks in threads, against the same on one tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pdray.engine.tensor_parallel.group import RankGroup
from pdray.engine.tensor_parallel.shared_memory import (
    SharedMemoryExchanges,
    make_shared_memory,
)

SLOT_BYTES = 1 << 20
SHAPES = [(0, 8), (1, 7), (3, 640), (2, SLOT_BYTES // 8), (5, 3, SLOT_BYTES // 16 + 1)]
"""Nothing, little, whole slots, and some slots and a bit."""


@pytest.fixture(params=[2, 3])
def groups(request: pytest.FixtureRequest) -> Iterator[list[RankGroup]]:
    num_ranks: int = request.param
    fd = make_shared_memory(num_ranks)
    yield [connected(fd, rank, num_ranks) for rank in range(num_ranks)]
    os.close(fd)


def connected(fd: int, rank: int, num_ranks: int) -> RankGroup:
    group = RankGroup(
        rank=rank, size=num_ranks, connect=lambda: SharedMemoryExchanges(fd, rank, num_ranks)
    )
    group.connect()
    return group


def on_each(
    groups: list[RankGroup], call: Callable[[RankGroup], list[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(call, groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_those_of_one_tensor_and_alike_on_all_ranks(
    groups: list[RankGroup], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    rounds = [
        torch.randn(len(groups), *shape, generator=generator).to(dtype) for shape in SHAPES * 3
    ]
    results = on_each(
        groups, lambda group: [group.all_reduce(each[group.rank].clone()) for each in rounds]
    )
    for sums in results:
        for ours, parts in zip(sums, rounds, strict=True):
            assert torch.equal(ours, parts.sum(dim=0))


@pytest.mark.parametrize("width", [6, 7, 5])
@pytest.mark.parametrize("at_lead", [True, False])
def test_slices_come_together_also_where_the_width_does_not_divide(
    groups: list[RankGroup], width: int, at_lead: bool
) -> None:
    whole = torch.arange(4.0 * width).view(4, width)
    slice_width = -(-width // len(groups))
    slices = whole.split(slice_width, dim=-1)
    results = on_each(
        groups,
        lambda group: [group.gather_columns(slices[group.rank], width, at_lead=at_lead)],
    )
    for rank, (result,) in enumerate(results):
        assert result.shape == whole.shape
        assert (at_lead and rank) or torch.equal(result, whole)


def test_many_turns_with_a_rank_that_is_late_now_and_then(groups: list[RankGroup]) -> None:
    late = torch.randn(400, 400)

    def run(group: RankGroup) -> list[torch.Tensor]:
        results = []
        for turn in range(2000):
            if turn % len(groups) == group.rank and turn % 50 == 0:
                late @ late
            results.append(group.all_reduce(torch.full((4,), float(turn + group.rank))))
        return results

    num_ranks = len(groups)
    extra = sum(range(num_ranks))
    for results in on_each(groups, run):
        assert [float(each[0]) for each in results] == [
            num_ranks * turn + extra for turn in range(2000)
        ]


def test_one_that_waits_for_a_rank_in_vain_is_ended_by_abort(groups: list[RankGroup]) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(groups[0].all_reduce, torch.ones(3))
        groups[0].abort()
        with pytest.raises(RuntimeError, match="a rank has gone"):
            waiting.result(30)
