from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pdray.engine.engine import Engine
from pdray.engine.holds import BlockHold, Holds
from pdray.engine.sequence import Sequence
from pdray.kvcache.block_pool import BlockPool
from tests.engine_driver import engine_config, request_of, run_until_idle, sequence_of


@pytest.fixture
def engine(tiny_model_path: Path) -> Engine:
    return Engine.load(tiny_model_path, engine_config(max_tokens_per_step=32))


def lent_to(engine: Engine, *holds: BlockHold, num_tokens: int = 100) -> Sequence:
    """A computed prompt, all of it published under each of the holds."""
    lent = sequence_of(request_of([5] * num_tokens), is_lent=True)
    assert engine.allocate(lent, num_tokens)
    engine.add(lent)
    run_until_idle(engine)
    for hold in holds:
        runs = engine.published.lend_prompt(lent, num_tokens, hold)
        assert [*hold.block_ids] == [block_id for run in runs for block_id in run.block_ids]
    assert engine.num_unaccounted_blocks == 0
    return lent


def test_blocks_stay_until_the_last_of_sequence_and_leases_has_ended(engine: Engine) -> None:
    first, second = BlockHold(), BlockHold()
    lent = lent_to(engine, first, second)
    num_held = engine.pool.num_held_blocks
    engine.release(lent)
    engine.holds.release(first)
    assert engine.pool.num_held_blocks == num_held
    engine.holds.release(second)
    assert engine.pool.num_held_blocks == 0
    assert engine.num_unaccounted_blocks == 0


def test_a_chunk_that_is_published_again_is_held_once(engine: Engine) -> None:
    hold = BlockHold()
    lent = lent_to(engine, hold)
    engine.published.lend_prompt(lent, 100, hold)
    engine.release(lent)
    engine.holds.release(hold)
    engine.holds.release(hold)
    assert engine.pool.num_available_blocks == engine.pool.num_blocks


def test_one_readers_quarantine_takes_nothing_from_the_next(engine: Engine) -> None:
    lost, following = BlockHold(), BlockHold()
    lent = lent_to(engine, lost)
    engine.holds.quarantine(lost)
    engine.published.lend_prompt(lent, 100, following)
    assert engine.pool.num_quarantined_blocks == 0, "others hold them"
    engine.release(lent)
    engine.holds.release(following)
    assert engine.pool.num_quarantined_blocks == len(lost.block_ids) > 0
    assert engine.num_unaccounted_blocks == 0
    engine.holds.end_quarantine(lost)
    assert engine.pool.num_available_blocks == engine.pool.num_blocks


def test_what_a_lease_held_is_found_by_the_next_prompt(engine: Engine) -> None:
    hold = BlockHold()
    engine.release(lent_to(engine, hold))
    engine.holds.release(hold)
    again = lent_to(engine)
    assert again.num_cached_tokens == 96
    engine.release(again)


def test_blocks_whose_holder_is_dropped_are_held_by_nobody(engine: Engine) -> None:
    hold = BlockHold()
    lent = lent_to(engine, hold)
    num_lent = len(hold.block_ids)
    engine.release(lent)
    del hold
    assert engine.num_unaccounted_blocks == num_lent


def test_so_are_those_of_a_dropped_sequence(engine: Engine) -> None:
    taken = sequence_of(request_of([5] * 40))
    assert engine.reserve(taken, 8)
    assert engine.num_unaccounted_blocks == 0
    del taken
    assert engine.num_unaccounted_blocks == engine.pool.num_held_blocks > 0


def test_a_hold_in_quarantine_is_not_touched() -> None:
    pool = BlockPool(4)
    holds = Holds(pool, threading.Condition())
    hold = BlockHold()
    block_ids = pool.allocate(2)
    assert block_ids is not None
    holds.retain(hold, block_ids)
    holds.quarantine(hold)
    for misuse in (holds.release, holds.quarantine, lambda hold: holds.retain(hold, [0])):
        with pytest.raises(AssertionError):
            misuse(hold)
    holds.end_quarantine(hold)
    with pytest.raises(AssertionError):
        holds.end_quarantine(hold)
