"""Workers that take new work: by age, and by what they have to do already."""

from __future__ import annotations

from collections.abc import Sequence

from pdray.core.snapshot import Role

from .load_order import LoadOrder
from .worker_record import WorkerRecord

_PHASES = (Role.PREFILL, Role.DECODE)


class ReadyWorkers:
    """``refresh`` it with every worker that has changed."""

    def __init__(self) -> None:
        self._ready: dict[int, WorkerRecord] = {}
        self._orders = {role: LoadOrder(by_backlog=role is Role.PREFILL) for role in _PHASES}
        self._orders_of: dict[int, list[LoadOrder]] = {}
        self._batch_room = dict.fromkeys((*_PHASES, Role.MIXED), 0)
        self._by_age: dict[Role, tuple[WorkerRecord, ...]] = {}

    def of(self, role: Role) -> tuple[WorkerRecord, ...]:
        """Those with every role in the mask, oldest first; made anew when one has come or gone."""
        found = self._by_age.get(role)
        if found is None:
            able = (record for record in self._ready.values() if role in record.info.role)
            found = tuple(sorted(able, key=lambda record: record.number))
            self._by_age[role] = found
        return found

    def by_load(self, role: Role) -> LoadOrder:
        return self._orders[role]

    def batch_room(self, phases: Role) -> int:
        return self._batch_room[phases]

    def refresh(self, record: WorkerRecord) -> None:
        if not record.is_ready:
            self.remove(record)
            return
        if record.number not in self._ready:
            self._add(record)
        for order in self._orders_of[record.number]:
            order.put(record)

    def remove(self, record: WorkerRecord) -> None:
        if self._ready.pop(record.number, None) is None:
            return
        self._by_age.clear()
        self._count(record, -1)
        for order in self._orders_of.pop(record.number):
            order.discard(record)

    def check_integrity(self, records: Sequence[WorkerRecord]) -> None:
        """``records`` are all that live."""
        for role, order in self._orders.items():
            able = [record for record in records if record.is_ready and role in record.info.role]
            assert list(self.of(role)) == able, f"ready for {role.name}"
            assert self._batch_room[role] == sum(each.info.max_batch_size for each in able)
            assert list(order) == sorted(able, key=order.load_of), f"by load of {role.name}"
        assert self._batch_room[Role.MIXED] == sum(self._batch_room[role] for role in _PHASES)

    def _add(self, record: WorkerRecord) -> None:
        self._ready[record.number] = record
        self._by_age.clear()
        self._count(record, 1)
        roles = [role for role in _PHASES if role in record.info.role]
        self._orders_of[record.number] = [self._orders[role] for role in roles]

    def _count(self, record: WorkerRecord, change: int) -> None:
        for role in _PHASES:
            if role in record.info.role:
                self._batch_room[role] += change * record.info.max_batch_size
                self._batch_room[Role.MIXED] += change * record.info.max_batch_size
