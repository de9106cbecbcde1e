"""Blocks of unlike layouts: every number arrives where it belongs, and nothing else is touched."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdray.core.errors import TransferError
from pdray.kvcache.layout import KVLayout
from pdray.kvcache.staging import NUM_CHAMBERS
from pdray.kvcache.storage import TORCH_DTYPES
from pdray.transfer.base import TransferState
from pdray.transfer.reshard_plan import NOTHING, ReshardPlan, plan_for
from tests.resharding import (
    CHAMBER_BYTES,
    NUM_TOKENS,
    Model,
    ShardedWorker,
    finish,
    layout_of,
    run_of,
    scattered,
    two_workers,
)

RANKS = [1, 2, 4]
SIZES = [16, 32, 64]
DTYPES = ["float32", "bfloat16", "float16"]


def transfer(
    owner: ShardedWorker,
    reader: ShardedWorker,
    model: Model,
    *,
    first_token: int = 0,
    steps: tuple[int, ...] = (70, 128, NUM_TOKENS),
) -> dict[int, tuple[int, list[int]]]:
    """The prompt's blocks from the one that has ``first_token`` on, published chunk by chunk as an
    owner does; each group's first block at the reader, and its block ids."""
    plan = plan_for(owner.layout, reader.layout)
    tables: dict[int, tuple[int, list[int]]] = {}
    for group_id in (0, 1):
        start = first_token if group_id else 0
        their_first = start // owner.layout.block_size
        our_first = start // reader.layout.block_size
        their_end = -(-NUM_TOKENS // owner.layout.block_size)
        our_end = -(-NUM_TOKENS // reader.layout.block_size)
        theirs = scattered(owner.num_blocks, 2 * their_end, 1)[group_id::2][
            : their_end - their_first
        ]
        ours = scattered(reader.num_blocks, 2 * our_end, 2)[group_id::2][: our_end - our_first]
        owner.write(group_id, theirs, their_first * owner.layout.block_size, model)
        next_token = our_first * reader.layout.block_size
        for ready in steps:
            is_last = ready == NUM_TOKENS
            end = their_end if is_last else ready // owner.layout.block_size
            if end <= their_first:
                continue
            run = run_of(group_id, their_first, theirs[: end - their_first])
            if plan is None:
                first = next_token // reader.layout.block_size
                remote, local = (
                    theirs[first - our_first : end - our_first],
                    ours[first - our_first : end - our_first],
                )
                next_token = end * reader.layout.block_size
            else:
                remote, local, next_token = plan.read(
                    run,
                    first_block=our_first,
                    block_ids=ours,
                    start_token=next_token,
                    is_last=is_last,
                )
            if remote:
                assert finish(owner, reader, remote, local) is TransferState.DONE
        tables[group_id] = our_first, ours
    return tables


def assert_arrived(
    owner: ShardedWorker,
    reader: ShardedWorker,
    model: Model,
    tables: dict[int, tuple[int, list[int]]],
    first_token: int = 0,
) -> None:
    dtype = TORCH_DTYPES[reader.layout.dtype]
    for group_id, (first_block, blocks) in tables.items():
        start = first_token if group_id else 0
        begin = start // owner.layout.block_size * owner.layout.block_size
        found = reader.read(group_id, blocks, first_block * reader.layout.block_size)
        for (_, layer, head, token), (key, value) in found.items():
            if begin <= token < NUM_TOKENS:
                assert torch.equal(key, model.keys[layer, token, head].to(dtype))
                assert torch.equal(value, model.values[layer, token, head].to(dtype))
            elif token < begin:
                assert not key.any()
                assert not value.any()


@pytest.mark.parametrize("ranks", [*itertools.product(RANKS, RANKS)])
@pytest.mark.parametrize("sizes", [*itertools.product(SIZES, SIZES)])
def test_all_pairs_of_ranks_and_block_sizes(ranks: tuple[int, int], sizes: tuple[int, int]) -> None:
    theirs = layout_of(tensor_parallel=ranks[0], block_size=sizes[0])
    ours = layout_of(tensor_parallel=ranks[1], block_size=sizes[1])
    check(theirs, ours)


def check(theirs: KVLayout, ours: KVLayout, first_token: int = 131, num_heads: int = 4) -> None:
    model = Model(theirs.dtype, num_heads)
    with two_workers(theirs, ours) as (owner, reader):
        before = [storage._arena.clone() for storage in reader.storages]
        tables = transfer(owner, reader, model, first_token=first_token)
        assert_arrived(owner, reader, model, tables, first_token)
        used = {block_id for _, blocks in tables.values() for block_id in blocks}
        others = sorted(set(range(reader.num_blocks + 1)) - used)
        for storage, arena in zip(reader.storages, before, strict=True):
            width = storage.layout.block_elements
            assert torch.equal(
                storage._arena.view(-1, width)[others], arena.view(-1, width)[others]
            )


@pytest.mark.parametrize("dtypes", [*itertools.product(DTYPES, DTYPES)])
@pytest.mark.parametrize("sizes", [(16, 16), (64, 32), (16, 64)])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 4)])
def test_all_pairs_of_dtypes(
    dtypes: tuple[str, str], sizes: tuple[int, int], ranks: tuple[int, int]
) -> None:
    """A value is rounded once, to the nearest."""
    theirs = layout_of(tensor_parallel=ranks[0], block_size=sizes[0], dtype=dtypes[0])
    ours = layout_of(tensor_parallel=ranks[1], block_size=sizes[1], dtype=dtypes[1])
    check(theirs, ours)


@pytest.mark.parametrize("sizes", [(16, 16), (32, 64), (48, 32)])
@pytest.mark.parametrize("ranks", [*itertools.product(RANKS, RANKS)])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_ranks_that_hold_the_same_heads(
    num_heads: int, ranks: tuple[int, int], sizes: tuple[int, int]
) -> None:
    theirs = layout_of(tensor_parallel=ranks[0], block_size=sizes[0], num_heads=num_heads)
    ours = layout_of(tensor_parallel=ranks[1], block_size=sizes[1], num_heads=num_heads)
    check(theirs, ours, num_heads=num_heads)


def test_ranks_with_copies_are_read_by_turns() -> None:
    plan = ReshardPlan(
        layout_of(tensor_parallel=4, num_heads=1), layout_of(tensor_parallel=2, num_heads=1)
    )
    assert [plan.peer_ranks(rank) for rank in (0, 1)] == [{0}, {1}]


@pytest.mark.parametrize("ranks", [(1, 2), (4, 1), (2, 4)])
def test_nothing_is_staged_where_only_the_ranks_differ(ranks: tuple[int, int]) -> None:
    theirs, ours = (layout_of(tensor_parallel=each) for each in ranks)
    with two_workers(theirs, ours) as (owner, reader):
        transfer(owner, reader, Model("float32"))
        assert all(rank.staging is None for rank in reader.ranks)


def test_staging_is_bounded_however_much_is_read() -> None:
    theirs, ours = layout_of(block_size=64), layout_of(dtype="bfloat16")
    model = Model("float32")
    with two_workers(theirs, ours) as (owner, reader):
        tables = transfer(owner, reader, model, steps=(NUM_TOKENS,))
        assert_arrived(owner, reader, model, tables)
        (rank,) = reader.ranks
        assert rank.staging is not None
        assert rank.staging.num_bytes == NUM_CHAMBERS * CHAMBER_BYTES
        moved = sum(len(blocks) for _, blocks in tables.values()) * theirs.block_bytes // 4
        assert moved > 2 * rank.staging.num_bytes


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.tuples(st.sampled_from([16, 32, 48, 64, 96]), st.sampled_from([16, 32, 48, 64, 96])),
    start=st.integers(0, 300),
    num_tokens=st.integers(1, 300),
    cuts=st.lists(st.integers(0, 600), max_size=4),
    num_found=st.integers(0, 3),
)
def test_a_plan_reads_each_token_once_and_from_its_place(
    sizes: tuple[int, int], start: int, num_tokens: int, cuts: list[int], num_found: int
) -> None:
    theirs, ours = (layout_of(block_size=size) for size in sizes)
    plan = ReshardPlan(theirs, ours)
    end = start + num_tokens
    their_first, our_first = start // sizes[0], start // sizes[1]
    their_ids = list(range(1000, 1000 + -(-end // sizes[0]) - their_first))
    our_ids = list(range(500, 500 + -(-end // sizes[1]) - our_first))
    next_token = first = (our_first + min(num_found, len(our_ids))) * sizes[1]
    sources: dict[int, int | None] = {}
    for ready in [*sorted(cut for cut in cuts if cut < end), end]:
        is_last = ready == end
        run = run_of(
            1,
            their_first,
            their_ids[: (-(-end // sizes[0]) if is_last else ready // sizes[0]) - their_first],
        )
        if not run.block_ids or ready < start:
            continue
        remote, local, next_token = plan.read(
            run, first_block=our_first, block_ids=our_ids, start_token=next_token, is_last=is_last
        )
        for theirs_number, ours_number in zip(remote, local, strict=True):
            unit = plan.our_units([ours_number])
            assert unit.group_ids[0] == 1
            token = (unit.block_ids[0] - 500 + our_first) * sizes[1] + unit.indices[
                0
            ] * plan.unit_tokens
            assert token not in sources
            sources[token] = None
            if theirs_number != NOTHING:
                source = plan.their_units([theirs_number])
                assert source.group_ids[0] == 1
                at = (source.block_ids[0] - 1000 + their_first) * sizes[0]
                sources[token] = at + source.indices[0] * plan.unit_tokens
    assert sorted(sources) == list(
        range(first, (our_first + len(our_ids)) * sizes[1], plan.unit_tokens)
    )
    for token, origin in sources.items():
        if their_first * sizes[0] <= token < end:
            assert origin == token
        else:
            assert origin in (None, token)


def test_the_same_layout_needs_no_plan() -> None:
    assert plan_for(layout_of(), layout_of()) is None


def test_ids_out_of_range_are_refused() -> None:
    with two_workers(layout_of(), layout_of(block_size=32)) as (_, reader):
        for remote, local, message in (
            ([-2], [0], "remote block id -2"),
            ([10**6], [0], "remote block id 1000000"),
            ([0], [10**6], "local block id 1000000"),
            ([0], [NOTHING], "local block id -1"),
            ([0, 1], [0], "2 remote blocks into 1"),
        ):
            with pytest.raises(TransferError, match=message):
                reader.transport.pull("owner", remote, local)


def test_what_cannot_be_converted_is_refused_with_both_layouts() -> None:
    with (
        pytest.raises(
            TransferError, match=r"models differ.*Theirs: model other.*Ours: model model"
        ),
        two_workers(layout_of(model_digest="other"), layout_of(block_size=32)),
    ):
        pass


def test_an_owner_that_closes_fails_what_is_left_and_frees_the_staging() -> None:
    theirs, ours = layout_of(block_size=64), layout_of()
    with two_workers(theirs, ours) as (owner, reader):
        plan = plan_for(theirs, ours)
        assert plan is not None
        run = run_of(0, 0, list(range(8)))
        remote, local, _ = plan.read(
            run, first_block=0, block_ids=list(range(26)), start_token=0, is_last=True
        )
        transfer_id = reader.transport.pull("owner", remote, local)
        owner.close()
        while (state := reader.transport.poll(transfer_id)) is TransferState.PENDING:
            pass
        assert state is TransferState.FAILED
        assert len(reader.ranks[0]._free_chambers) == NUM_CHAMBERS
        owner.close = lambda: None  # type: ignore[method-assign]
