"""Which worker has the KV of which prefix: where the requests that computed it ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from pdray.core.placement import KeptPrefix
from pdray.core.prefix_report import name_number


class PrefixDirectory:
    """A bounded memory of what frontends told: of the prefixes it is full of, those that nobody
    told or asked of for the longest go first. Workers evict without telling, so all that it says
    is a guess."""

    def __init__(self, max_prefixes: int) -> None:
        self._max_prefixes = max_prefixes
        self._kept: OrderedDict[int, KeptPrefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, kept: KeptPrefix) -> None:
        """Who had this prefix before is forgotten."""
        number = name_number(kept.name)
        self._kept[number] = kept
        self._kept.move_to_end(number)
        if len(self._kept) > self._max_prefixes:
            self._kept.popitem(last=False)

    def find(self, prefixes: Sequence[int]) -> Iterator[KeptPrefix]:
        """Those of a prompt's prefixes, by the numbers of their names, that are known: the longest
        first."""
        if self._kept.keys().isdisjoint(prefixes):
            return
        for number in reversed(prefixes):
            if (kept := self._kept.get(number)) is not None:
                self._kept.move_to_end(number)
                yield kept
