"""The queue of reads against what it promises, for any order of asking, taking and ending."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from pdray.transfer.read_queue import Read, ReadQueue, Slice

MAX_IN_FLIGHT, SLICE = 8, 3
PEERS, FLOWS = ("p", "q"), ("a", "b", "c")

reads = st.tuples(st.sampled_from(PEERS), st.sampled_from(FLOWS), st.integers(1, 20))


class Scene:
    """A queue, and what the test knows by itself of what goes on in it."""

    def __init__(self) -> None:
        self.queue = ReadQueue(max_blocks_in_flight=MAX_IN_FLIGHT, slice_blocks=SLICE)
        self.reads: list[Read] = []
        self.in_flight: list[Slice] = []
        self.taken: dict[Read, list[int]] = defaultdict(list)
        self.dropped: set[Read] = set()

    def add(self, peer_id: str, flow: str, size: int) -> None:
        ids = tuple(range(100, 100 + size))
        read = Read(peer_id=peer_id, flow=flow, remote_block_ids=ids, local_block_ids=ids)
        self.reads.append(read)
        self.queue.add(read)

    def take(self) -> Slice | None:
        taken = self.queue.take()
        if taken is not None:
            assert taken.remote_block_ids == taken.local_block_ids
            assert 0 < taken.num_blocks <= SLICE
            self.taken[taken.read] += taken.local_block_ids
            self.in_flight.append(taken)
        for peer_id in PEERS:
            blocks = [t.num_blocks for t in self.in_flight if t.read.peer_id == peer_id]
            assert sum(blocks) <= MAX_IN_FLIGHT
        return taken

    def end(self, index: int) -> None:
        if self.in_flight:
            self.queue.ended(self.in_flight.pop(index % len(self.in_flight)))

    def drop(self, index: int) -> None:
        if self.reads:
            read = self.reads[index % len(self.reads)]
            self.queue.drop(read)
            self.dropped.add(read)

    def run_dry(self) -> None:
        while self.take() is not None or self.in_flight:
            self.end(0)


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "end", "drop"]), reads)))
def test_each_block_is_taken_once_in_order_and_never_too_many_at_a_time(
    steps: list[tuple[str, tuple[str, str, int]]],
) -> None:
    scene = Scene()
    for step, (peer_id, flow, number) in steps:
        match step:
            case "add":
                scene.add(peer_id, flow, number)
            case "take":
                scene.take()
            case "end":
                scene.end(number)
            case _:
                scene.drop(number)
    scene.run_dry()
    assert not scene.queue.has_waiting
    for read in scene.reads:
        taken = scene.taken[read]
        assert read.is_over
        assert taken == list(read.local_block_ids[: len(taken)])
        assert read in scene.dropped or len(taken) == len(read.local_block_ids)


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_short_request_waits_for_one_slice_of_a_long_one(long: int, short: int) -> None:
    scene = Scene()
    scene.add("p", "a", long)
    scene.add("p", "b", short)
    num_taken = {"a": 0, "b": 0}
    while (taken := scene.take()) is not None:
        num_taken[taken.read.flow] += taken.num_blocks
        scene.end(0)
        if num_taken["a"] < long and num_taken["b"] < short:
            assert abs(num_taken["a"] - num_taken["b"]) <= SLICE


def test_a_peer_that_does_not_answer_holds_up_no_other() -> None:
    scene = Scene()
    scene.add("p", "a", 50)
    while scene.take() is not None:
        pass
    scene.add("q", "b", 2)
    taken = scene.take()
    assert taken is not None
    assert taken.read.peer_id == "q"
