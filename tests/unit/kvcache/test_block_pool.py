from __future__ import annotations

import pytest

from pdray.kvcache.block_pool import BlockPool


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert first is not None
    assert pool.allocate(2) is None
    assert pool.num_free_blocks == 1
    pool.release(first)
    assert pool.num_free_blocks == 4


def test_a_shared_block_is_free_after_its_last_holder() -> None:
    pool = BlockPool(2)
    block_ids = pool.allocate(1)
    assert block_ids is not None
    pool.retain(block_ids)
    pool.release(block_ids)
    assert pool.num_held_blocks == 1
    pool.release(block_ids)
    assert pool.num_free_blocks == 2


def test_a_quarantined_block_is_given_to_nobody() -> None:
    pool = BlockPool(1)
    block_ids = pool.allocate(1)
    assert block_ids is not None
    pool.quarantine(block_ids)
    assert pool.num_quarantined_blocks == 1
    assert pool.allocate(1) is None
    pool.end_quarantine(block_ids)
    assert pool.allocate(1) == block_ids


@pytest.mark.parametrize("misuse", ["release", "retain", "quarantine", "end_quarantine"])
def test_a_free_block_cannot_be_given_back(misuse: str) -> None:
    with pytest.raises(AssertionError, match="block 0"):
        getattr(BlockPool(1), misuse)([0])


def test_integrity_check_finds_a_block_that_is_free_and_held() -> None:
    pool = BlockPool(3)
    pool.allocate(1)
    pool._free.append(0)
    with pytest.raises(AssertionError):
        pool.check_integrity()
