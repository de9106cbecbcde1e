"""Which names came and which went, for somebody who hears of it in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from pdray.core.prefix_report import PREFIX_NAME_BYTES, KVTier, NameChanges
from pdray.kvcache.prefix_index import BlockName


class NameLog:
    """Of one KV group's names in one tier: where that has a prefix, the others mostly do. What has
    not been told yet is bounded: a name that went before it was told of is not told at all."""

    def __init__(self, tier: KVTier, group_id: int) -> None:
        self._tier = tier
        self._group_id = group_id
        # Whether it came: none is there whose last word has been told.
        self._untold: dict[bytes, bool] = {}

    def came(self, name: BlockName) -> None:
        self._turn(name, has_come=True)

    def went(self, name: BlockName) -> None:
        self._turn(name, has_come=False)

    def _turn(self, name: BlockName, *, has_come: bool) -> None:
        group_id, prefix = name
        if group_id != self._group_id:
            return
        short = prefix[:PREFIX_NAME_BYTES]
        if self._untold.pop(short, has_come) is has_come:
            self._untold[short] = has_come

    def start_again(self, names: Iterable[BlockName]) -> None:
        """Whoever hears of it knows nothing, and these are here."""
        self._untold.clear()
        for name in names:
            self.came(name)

    def take(self, max_names: int) -> NameChanges | None:
        """The next that are to be told; None where there are none."""
        told = list(islice(self._untold.items(), max_names))
        if not told:
            return None
        for name, _ in told:
            del self._untold[name]
        return NameChanges(
            tier=self._tier,
            added=b"".join(name for name, has_come in told if has_come),
            removed=b"".join(name for name, has_come in told if not has_come),
        )
