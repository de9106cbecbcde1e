"""Many leases between many workers (tests/lease_fleet.py); messages are late, lost, doubled and out
of order, workers die, links break: whatever comes, no block is used that is others', none is left
behind, and once the network is whole again no two wait for each other: every prompt ends.

A seed also chooses how likely each kind of event is in its run: where everything is equally likely,
runs hardly ever get to what a rare event brings about.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdray.transfer.lease import LeaseEvent, LeaseState
from pdray.transfer.reading import ReadEvent, ReadState
from tests.lease_fleet import LEASE_S, NUM_BLOCKS, Fleet, Prompt, Worker
from tests.planted_bugs import (
    Plant,
    change_lease,
    change_read,
    give_the_reader_more_time_than_the_owner,
)

NUM_WORKERS = 3
NUM_STEPS = 150
MAX_ROUNDS = 400

Event = Callable[[Fleet, random.Random], None]


def submit(fleet: Fleet, rng: random.Random) -> None:
    owner = rng.choice(fleet.workers)
    if owner.is_alive:
        prompt = Prompt(f"p{len(fleet.prompts)}", owner, rng.randint(1, NUM_BLOCKS))
        fleet.prompts.append(prompt)
        owner.start(prompt)


def deliver_the_oldest(fleet: Fleet, rng: random.Random) -> None:
    if fleet.messages:
        fleet.deliver(0)


def deliver_any(fleet: Fleet, rng: random.Random) -> None:
    if fleet.messages:
        fleet.deliver(rng.randrange(len(fleet.messages)), is_kept=rng.random() < 0.3)


def lose_a_message(fleet: Fleet, rng: random.Random) -> None:
    if fleet.messages:
        del fleet.messages[rng.randrange(len(fleet.messages))]


def move_a_read(fleet: Fleet, rng: random.Random) -> None:
    if fleet.reads:
        fleet.move_read(rng.randrange(len(fleet.reads)))


def go_on_with(action: Callable[[Worker, Prompt], None]) -> Event:
    def go_on(fleet: Fleet, rng: random.Random) -> None:
        prompts = [each for each in fleet.prompts if each.owner.is_alive and not each.is_over]
        if prompts:
            prompt = rng.choice(prompts)
            action(prompt.owner, prompt)

    return go_on


def pass_time(fleet: Fleet, rng: random.Random) -> None:
    fleet.pass_time(LEASE_S * rng.choice([1 / 6, 1 / 6, 1 / 2, 1, 2]))


def break_a_link(fleet: Fleet, rng: random.Random) -> None:
    """Each of the two may hear of it, or not yet."""
    one, other = rng.sample(fleet.workers, 2)
    if one.is_alive:
        one.lose_link(other)


def finish_a_decode(fleet: Fleet, rng: random.Random) -> None:
    reader = rng.choice(fleet.workers)
    if reader.is_alive and reader.decoding:
        reader.finish_decoding(rng.choice(list(reader.decoding)))


def kill_one(fleet: Fleet, rng: random.Random) -> None:
    """But one, who is to see what becomes of what the others left."""
    if sum(worker.is_alive for worker in fleet.workers) > 1:
        fleet.kill(rng.choice([worker for worker in fleet.workers if worker.is_alive]))


EVENTS: dict[Event, tuple[float, ...]] = {
    submit: (4,),
    deliver_the_oldest: (2, 20),
    deliver_any: (0, 4, 12),
    lose_a_message: (0, 1, 4),
    move_a_read: (2, 8),
    go_on_with(Worker.compute): (6,),
    go_on_with(Worker.start): (1, 4),
    go_on_with(Worker.end): (0, 1),
    pass_time: (1, 4),
    break_a_link: (0, 1, 2),
    finish_a_decode: (1, 4),
    kill_one: (0, 0, 0.05),
}
"""How likely each can be, beside the others."""


def run(seed: int) -> tuple[Fleet, random.Random]:
    """Up to a moment in the middle of everything."""
    rng = random.Random(seed)
    weights = [rng.choice(likely) for likely in EVENTS.values()]
    fleet = Fleet(NUM_WORKERS, has_epochs=rng.random() < 0.5)
    for event in rng.choices(list(EVENTS), weights, k=NUM_STEPS):
        event(fleet, rng)
        fleet.check()
    return fleet, rng


def settle(fleet: Fleet) -> None:
    """The network is whole again: all that is on its way arrives, and decodes end."""
    while fleet.messages or fleet.reads:
        while fleet.messages:
            fleet.deliver(0)
        while fleet.reads:
            fleet.move_read(0)
    for worker in fleet.workers:
        for name in list(worker.decoding):
            worker.finish_decoding(name)


def check_that_all_ends(fleet: Fleet, rng: random.Random) -> None:
    """Every prompt is handed off or fails, and then every block is free."""
    for _ in range(MAX_ROUNDS):
        settle(fleet)
        fleet.check()
        left = [each for each in fleet.prompts if each.owner.is_alive and not each.is_over]
        for prompt in left:
            if rng.random() < 0.5:  # refused ones rest for unlike times
                prompt.owner.start(prompt)
            prompt.owner.compute(prompt)
        fleet.pass_time(LEASE_S / 6)
        if not left:
            break
    else:
        raise AssertionError(f"{len(left)} prompts wait for ever")
    for _ in range(12):
        settle(fleet)
        fleet.pass_time(LEASE_S / 6)
    for worker in fleet.workers:
        if worker.is_alive:
            assert worker.pool.num_available_blocks == NUM_BLOCKS, "a block is left behind"


def search(seeds: Iterable[int]) -> None:
    for seed in seeds:
        check_that_all_ends(*run(seed))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_comes_no_block_is_misused_and_all_ends(seed: int) -> None:
    search([seed])


@pytest.mark.parametrize(
    "plant",
    [
        change_lease(LeaseState.GRANTED, LeaseEvent.READER_LOST, LeaseState.ENDED),
        change_lease(LeaseState.GRANTED, LeaseEvent.WITHDRAW, LeaseState.ENDED),
        change_lease(LeaseState.ENDING, LeaseEvent.DEADLINE, None),
        change_lease(LeaseState.QUARANTINED, LeaseEvent.QUARANTINE_OVER, None),
        change_read(ReadState.READING, ReadEvent.GIVE_UP, ReadState.GIVEN_UP),
        change_read(ReadState.FINISHING, ReadEvent.GIVE_UP, ReadState.GIVEN_UP),
        change_read(ReadState.WAITING, ReadEvent.GIVE_UP, None),
        give_the_reader_more_time_than_the_owner,
    ],
)
def test_it_finds_bugs(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        search(range(1000))
