"""Workers that lend to each other in one process and without a thread: real pools, lease tables and
epochs, and a network of messages that the test delivers as it likes. Each worker prefills and
decodes, as those do that could wait for each other's blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pdray.core.handoff import LeaseEpoch
from pdray.kvcache.block_pool import BlockPool
from pdray.transfer.epochs import Epochs
from pdray.transfer.lease import Lease, LeaseState, LeaseTable
from pdray.transfer.reading import LeasedRead, ReadState, ReadTable

LEASE_S, QUARANTINE_S, SEEK_S = 6.0, 1.0, 12.0
NUM_BLOCKS = 5

Message = Callable[[], None]
Content = tuple[str, int]


@dataclass(eq=False)
class Prompt:
    """``block_ids`` while it holds any. It is over when it was handed off, cancelled or failed."""

    name: str
    owner: Worker
    num_blocks: int
    block_ids: list[int] = field(default_factory=list)
    num_ready: int = 0
    lost: set[str] = field(default_factory=set)
    asked: list[Worker] = field(default_factory=list)
    lease_id: str | None = None
    is_asking: bool = False
    seek_until: float | None = None
    is_over: bool = False


@dataclass(eq=False)
class Loan:
    prompt: Prompt
    reader: Worker
    epoch: LeaseEpoch | None
    held: list[int] = field(default_factory=list)
    is_quarantined: bool = False


@dataclass(eq=False)
class Pull:
    prompt: Prompt
    lease_id: str
    owner: Worker
    block_ids: list[int]
    num_asked: int = 0
    flying: dict[int, Content | None] = field(default_factory=dict)
    """Reads by block, with what their data was once it is here."""
    is_quarantined: bool = False


class Worker:
    def __init__(self, name: str, fleet: Fleet) -> None:
        self.name = name
        self.fleet = fleet
        self.is_alive = True
        self.pool = BlockPool(NUM_BLOCKS)
        self.content: list[Content] = [("", 0)] * NUM_BLOCKS
        self.leases = LeaseTable(lease_s=LEASE_S, quarantine_s=QUARANTINE_S)
        self.reads = ReadTable(remembered_s=1e9)
        self.epochs = Epochs(num_slots=64) if fleet.has_epochs else None
        self.loans: dict[str, Loan] = {}
        self.pulls: dict[str, Pull] = {}
        self.decoding: dict[str, list[int]] = {}
        self.started: Counter[str] = Counter()

    def take(self, num_blocks: int) -> list[int] | None:
        """Whoever gets blocks writes into them at once."""
        block_ids = self.pool.allocate(num_blocks)
        for block_id in block_ids or ():
            self.content[block_id] = (f"junk of {self.name}", self.fleet.next_number())
        return block_ids

    # As owner

    def start(self, prompt: Prompt) -> None:
        if prompt.is_over or prompt.is_asking or prompt.lease_id is not None:
            return
        if not prompt.block_ids:
            block_ids = self.take(prompt.num_blocks)
            if block_ids is None:
                return
            prompt.block_ids = block_ids
        prompt.asked = [w for w in self.fleet.others(self) if w.name not in prompt.lost]
        self.ask_next(prompt)

    def ask_next(self, prompt: Prompt) -> None:
        prompt.is_asking = bool(prompt.asked)
        if not prompt.asked:
            self.nobody_takes(prompt)
            return
        reader = prompt.asked.pop(0)
        if not reader.is_alive:
            prompt.lost.add(reader.name)
            self.ask_next(prompt)
            return
        lease_id = f"{self.name}/{self.fleet.next_number()}"
        self.leases.offer(lease_id, reader.name, self.fleet.now)
        self.fleet.offers[lease_id] = prompt
        self.fleet.send(self, reader, lambda: reader.on_offer(lease_id, prompt))

    def nobody_takes(self, prompt: Prompt) -> None:
        """One that was not begun holds nothing while it waits; one that was waits for a while."""
        is_late = prompt.seek_until is not None and self.fleet.now >= prompt.seek_until
        if len(prompt.lost) == len(self.fleet.workers) - 1 or is_late:
            self.end(prompt)
        elif prompt.num_ready == 0:
            self.pool.release(prompt.block_ids)
            prompt.block_ids = []

    def on_reply(self, lease_id: str, reader: Worker, is_yes: bool) -> None:
        prompt = self.fleet.offers[lease_id]
        is_waited_for = prompt.is_asking and not prompt.is_over and lease_id in self.leases
        if not is_yes:
            self.leases.refuse(lease_id)
        elif is_waited_for and self.leases.accept(lease_id, self.fleet.now):
            self.loans[lease_id] = Loan(prompt, reader, self.epochs.take() if self.epochs else None)
            prompt.lease_id, prompt.is_asking = lease_id, False
            self.publish(prompt)
            return
        elif lease_id not in self.loans:
            self.fleet.send(self, reader, lambda: reader.on_withdraw(lease_id, self))
        if is_waited_for:
            self.ask_next(prompt)

    def compute(self, prompt: Prompt) -> None:
        if prompt.is_over or prompt.num_ready == prompt.num_blocks or not prompt.block_ids:
            return
        if prompt.lease_id is None and prompt.num_ready == 0:
            return  # it runs when somebody has reserved blocks for it
        self.content[prompt.block_ids[prompt.num_ready]] = (prompt.name, prompt.num_ready)
        prompt.num_ready += 1
        self.publish(prompt)

    def publish(self, prompt: Prompt) -> None:
        lease_id = prompt.lease_id
        if lease_id is None or not self.leases.may_publish(lease_id):
            return
        loan, ready = self.loans[lease_id], prompt.block_ids[: prompt.num_ready]
        self.pool.retain(ready[len(loan.held) :])
        loan.held = list(ready)
        self.fleet.send(
            self, loan.reader, lambda: loan.reader.on_publish(lease_id, ready, loan.epoch)
        )

    def on_renew(self, lease_id: str, reader: Worker, asked_at: float) -> None:
        if self.leases.renew(lease_id, self.fleet.now):
            self.fleet.send(self, reader, lambda: reader.reads.renewed(lease_id, asked_at))
            self.publish(self.loans[lease_id].prompt)

    def on_give_up(self, lease_id: str) -> None:
        if self.leases.give_up(lease_id):
            self.lose_reader(lease_id)

    def on_acknowledge(self, lease_id: str, is_good: bool) -> None:
        self.apply(self.leases.acknowledge(lease_id), is_good=is_good)

    def apply(self, changed: tuple[Lease, ...], *, is_good: bool = False) -> None:
        for lease in changed:
            loan = self.loans.get(lease.lease_id)
            if loan is None:
                self.offer_ended(lease)
            elif lease.state is LeaseState.QUARANTINED:
                self.pool.quarantine(loan.held)
                loan.is_quarantined = True
                self.lose_reader(lease.lease_id)
            elif lease.state is LeaseState.ENDED:
                self.end_loan(lease.lease_id, loan, is_good)

    def offer_ended(self, lease: Lease) -> None:
        prompt = self.fleet.offers[lease.lease_id]
        if lease.state is LeaseState.ENDED and prompt.is_asking and not prompt.is_over:
            self.ask_next(prompt)

    def end_loan(self, lease_id: str, loan: Loan, is_good: bool) -> None:
        del self.loans[lease_id]
        if self.epochs is not None and loan.epoch is not None:
            self.epochs.end(loan.epoch)
        if is_good and loan.prompt.lease_id == lease_id:
            self.end(loan.prompt)
        else:
            self.lose_reader_of(loan.prompt, lease_id, loan.reader)
        (self.pool.end_quarantine if loan.is_quarantined else self.pool.release)(loan.held)

    def lose_reader(self, lease_id: str) -> None:
        loan = self.loans[lease_id]
        self.lose_reader_of(loan.prompt, lease_id, loan.reader)

    def lose_reader_of(self, prompt: Prompt, lease_id: str, reader: Worker) -> None:
        if prompt.lease_id == lease_id and not prompt.is_over:
            prompt.lease_id = None
            prompt.lost.add(reader.name)
            prompt.seek_until = self.fleet.now + SEEK_S
            self.start(prompt)

    def end(self, prompt: Prompt) -> None:
        """Handed off, cancelled or failed."""
        if prompt.is_over:
            return
        prompt.is_over = True
        self.pool.release(prompt.block_ids)
        prompt.block_ids = []
        lease_id, prompt.lease_id = prompt.lease_id, None
        if lease_id is not None and self.leases.withdraw(lease_id):
            reader = self.loans[lease_id].reader
            self.fleet.send(self, reader, lambda: reader.on_withdraw(lease_id, self))

    # As reader

    def on_offer(self, lease_id: str, prompt: Prompt) -> None:
        owner = prompt.owner
        is_yes = lease_id in self.pulls
        if not self.reads.knows(lease_id) and not self.started[prompt.name]:
            block_ids = self.take(prompt.num_blocks)
            if block_ids is not None:
                self.reads.reserve(lease_id, owner.name, LEASE_S, self.fleet.now)
                self.pulls[lease_id] = Pull(prompt, lease_id, owner, block_ids)
                is_yes = True
        self.fleet.send(self, owner, lambda: owner.on_reply(lease_id, self, is_yes))

    def on_publish(self, lease_id: str, remote: list[int], epoch: LeaseEpoch | None) -> None:
        pull, now = self.pulls.get(lease_id), self.fleet.now
        if pull is None or len(remote) <= pull.num_asked:
            return
        for block in range(pull.num_asked, len(remote)):
            if not self.reads.begin(lease_id, now):
                return
            pull.flying[block] = None
            self.fleet.reads.append((self, pull, block, remote[block], epoch))
        pull.num_asked = len(remote)
        if pull.num_asked == pull.prompt.num_blocks:
            self.settle(pull, self.reads.last(lease_id, now))

    def on_withdraw(self, lease_id: str, owner: Worker) -> None:
        pull = self.pulls.get(lease_id)
        if pull is not None:
            self.settle(pull, self.reads.give_up(lease_id, "withdrawn", self.fleet.now))
        else:
            self.reads.refuse(lease_id, self.fleet.now)
            self.fleet.send(self, owner, lambda: owner.on_acknowledge(lease_id, False))

    def end_read(self, pull: Pull, block: int, failure: str | None) -> None:
        content = pull.flying.pop(block)
        read = self.reads.get(pull.lease_id)
        assert read is not None, "a read ends when its blocks have been given away"
        if failure is None and read.is_open and self.fleet.now < read.deadline:
            assert content == (pull.prompt.name, block), f"{content} is used as {pull.prompt.name}"
        self.settle(pull, self.reads.end(pull.lease_id, failure, self.fleet.now))

    def settle(self, pull: Pull, changed: LeasedRead | None) -> None:
        if changed is None:
            return
        owner, lease_id = pull.owner, pull.lease_id
        if changed.state is ReadState.DRAINING:
            self.pool.quarantine(pull.block_ids)
            pull.is_quarantined = True
            self.fleet.send(self, owner, lambda: owner.on_give_up(lease_id))
            return
        is_good = changed.state is ReadState.ARRIVED
        if not is_good and changed.state is not ReadState.GIVEN_UP:
            return
        assert not pull.flying, "a pull ends with a read in flight"
        del self.pulls[lease_id]
        self.fleet.send(self, owner, lambda: owner.on_acknowledge(lease_id, is_good))
        if is_good:
            self.started[pull.prompt.name] += 1
            assert self.started[pull.prompt.name] == 1, f"{pull.prompt.name} is started twice"
            self.decoding[pull.prompt.name] = pull.block_ids
        elif pull.is_quarantined:
            self.pool.end_quarantine(pull.block_ids)
        else:
            self.pool.release(pull.block_ids)

    def finish_decoding(self, name: str) -> None:
        self.pool.release(self.decoding.pop(name))

    # Both

    def tick(self) -> None:
        now = self.fleet.now
        self.apply(self.leases.tick(now))
        for read in self.reads.tick(now):
            self.settle(self.pulls[read.lease_id], read)
        for read in self.reads.take_renewals(now):
            owner = self.pulls[read.lease_id].owner
            self.renew(owner, read.lease_id, now)

    def renew(self, owner: Worker, lease_id: str, now: float) -> None:
        self.fleet.send(self, owner, lambda: owner.on_renew(lease_id, self, now))

    def lose_link(self, other: Worker) -> None:
        self.apply(self.leases.reader_lost(other.name))
        for pull in list(self.pulls.values()):
            if pull.owner is other:
                gone = self.reads.give_up(pull.lease_id, "its owner is lost", self.fleet.now)
                self.settle(pull, gone)

    def check(self, prompts: list[Prompt]) -> None:
        self.pool.check_integrity()
        known = [len(p.block_ids) for p in prompts if p.owner is self]
        known += [len(loan.held) for loan in self.loans.values()]
        known += [len(pull.block_ids) for pull in self.pulls.values()]
        known += map(len, self.decoding.values())
        assert sum(known) == self.pool.num_references, "a block is held by nobody"


class Fleet:
    """``messages`` are those on their way, ``reads`` those in flight, with the block that each
    reads and the epoch under which it does."""

    def __init__(self, num_workers: int, *, has_epochs: bool) -> None:
        self.has_epochs = has_epochs
        self.now = 0.0
        self.numbers = 0
        self.workers = [Worker(f"w{i}", self) for i in range(num_workers)]
        self.prompts: list[Prompt] = []
        self.offers: dict[str, Prompt] = {}
        self.messages: list[tuple[Worker, Message]] = []
        self.reads: list[tuple[Worker, Pull, int, int, LeaseEpoch | None]] = []

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def others(self, worker: Worker) -> list[Worker]:
        return [each for each in self.workers if each is not worker]

    def send(self, sender: Worker, receiver: Worker, message: Message) -> None:
        if sender.is_alive:
            self.messages.append((receiver, message))

    def deliver(self, index: int, *, is_kept: bool = False) -> None:
        receiver, message = self.messages[index]
        if not is_kept:
            del self.messages[index]
        if receiver.is_alive:
            message()

    def move_read(self, index: int) -> None:
        """A read's data comes, then its epoch."""
        reader, pull, block, remote_id, epoch = self.reads[index]
        if not reader.is_alive:
            del self.reads[index]
        elif not pull.owner.is_alive:
            del self.reads[index]
            reader.end_read(pull, block, "its owner is dead")
        elif pull.flying[block] is None:
            pull.flying[block] = pull.owner.content[remote_id]
        else:
            del self.reads[index]
            epochs = pull.owner.epochs
            is_current = epoch is None or epochs is None or epochs.is_current(epoch)
            reader.end_read(pull, block, None if is_current else "its lease is over")

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for worker in self.workers:
            if worker.is_alive:
                worker.tick()

    def kill(self, worker: Worker) -> None:
        worker.is_alive = False
        for prompt in self.prompts:
            if prompt.owner is worker:
                prompt.is_over = True
        for other in self.others(worker):
            if other.is_alive:
                other.lose_link(worker)

    def check(self) -> None:
        for worker in self.workers:
            if worker.is_alive:
                worker.check(self.prompts)
