"""A handoff without a wire: blocks are copied as a reader would pull them, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable

from pdray.core.request import Request
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence
from tests.engine_driver import run_until_idle, sequence_of


def hand_off(
    source: Engine, target: Engine, requests: Iterable[Request], moved: list[int] | None = None
) -> list[list[int]]:
    """Prompts computed at ``source``, all else at ``target``. No block is in use after it. The
    blocks of the target that were read into are put into ``moved``."""
    moved = [] if moved is None else moved
    lent = {request.request_id: sequence_of(request, is_lent=True) for request in requests}
    taken = {id_: sequence_of(each.request) for id_, each in lent.items()}
    for id_, each in lent.items():
        assert source.allocate(each, each.num_tokens)
        assert target.reserve(taken[id_], 8)
        source.add(each)
    num_read: dict[tuple[str, int], int] = {}
    while source.wait_for_work(0):
        for output in source.step().sequences:
            id_ = output.sequence.request_id
            _copy(source, target, output.sequence, taken[id_], num_read, moved)
            if output.token_ids:
                source.release(output.sequence)
                taken[id_].arrive(output.token_ids[0])
                target.add(taken[id_])
        source.pool.check_integrity()
    run_until_idle(target)
    for engine in (source, target):
        assert engine.pool.num_available_blocks == engine.pool.num_blocks
    return [each.output_token_ids for each in taken.values()]


def _copy(
    source: Engine,
    target: Engine,
    lent: Sequence,
    taken: Sequence,
    num_read: dict[tuple[str, int], int],
    moved: list[int],
) -> None:
    """Each block once, as soon as it may be read: later it must not have changed. Not those that
    the target had already."""
    for run in source.published.of_prompt(lent, lent.num_computed_tokens):
        key = (lent.request_id, run.group_id)
        table = taken.block_tables[run.group_id]
        assert run.first_block == table.first_block
        for index in range(num_read.get(key, table.num_shared), len(run.block_ids)):
            target.storage.block(table.block_ids[index]).copy_(
                source.storage.block(run.block_ids[index])
            )
            moved.append(table.block_ids[index])
        num_read[key] = max(table.num_shared, len(run.block_ids))
