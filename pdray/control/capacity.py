"""What workers could hold once they are empty: which requests could ever be served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pdray.core.placement import PlacementAsk, ServingLimits
from pdray.core.snapshot import Role, WorkerInfo


@dataclass(frozen=True, slots=True)
class Kind:
    """What limits depend on: in a large fleet, few workers differ in it."""

    layout_digest: str
    role: Role
    max_sequence_tokens: int
    max_model_len: int
    model_digest: str


Pair = tuple[Kind | None, Kind | None]
"""The largest prefill and decode worker of a layout; None for a phase that is another
application's."""


class Capacity:
    """Of all living workers, ready or not; while no pair lives, of the last that did, as the next
    will be alike. Answers cost nothing: they are made when a worker comes or leaves."""

    def __init__(self, phases: Role) -> None:
        self._phases = phases
        self._kinds: Counter[Kind] = Counter()
        self._pairs: list[Pair] = []
        self.limits: ServingLimits | None = None
        """None until a pair of workers has lived."""
        self.has_pair = False
        """Whether one lives now."""

    def add(self, info: WorkerInfo) -> None:
        self._change(kind_of(info), 1)

    def remove(self, info: WorkerInfo) -> None:
        self._change(kind_of(info), -1)

    def could_hold(self, ask: PlacementAsk) -> bool:
        num_total_tokens = ask.num_prompt_tokens + ask.max_tokens
        for prefill, decode in self._pairs:
            can_prefill = prefill is None or prefill.max_sequence_tokens >= ask.num_prompt_tokens
            if can_prefill and (decode is None or decode.max_sequence_tokens >= num_total_tokens):
                return True
        return False

    def check_integrity(self, infos: Iterable[WorkerInfo]) -> None:
        expected = Capacity(self._phases)
        for info in infos:
            expected.add(info)
        assert self._kinds == expected._kinds, "workers are not those that live"
        assert self.has_pair == expected.has_pair
        if expected.limits is not None:
            assert self.limits == expected.limits, (self.limits, expected.limits)

    def _change(self, kind: Kind, change: int) -> None:
        had = self._kinds[kind]
        self._kinds[kind] += change
        if self._kinds[kind] == 0:
            del self._kinds[kind]
        if not had or not self._kinds[kind]:
            pairs = list(_pairs(self._kinds, self._phases))
            self.has_pair = bool(pairs)
            if pairs:
                self._pairs, self.limits = pairs, _limits(pairs)


def kind_of(info: WorkerInfo) -> Kind:
    return Kind(
        layout_digest=info.layout_digest,
        role=info.role,
        max_sequence_tokens=info.max_sequence_tokens,
        max_model_len=info.max_model_len,
        model_digest=info.model_digest,
    )


def _pairs(kinds: Iterable[Kind], phases: Role) -> Iterator[Pair]:
    by_layout: dict[str, list[Kind]] = {}
    for kind in kinds:
        by_layout.setdefault(kind.layout_digest, []).append(kind)
    for alike in by_layout.values():
        prefill = _largest(alike, Role.PREFILL) if Role.PREFILL in phases else None
        decode = _largest(alike, Role.DECODE) if Role.DECODE in phases else None
        num_found = (prefill is not None) + (decode is not None)
        if num_found == len(phases):
            yield prefill, decode


def _largest(kinds: Iterable[Kind], role: Role) -> Kind | None:
    able = [kind for kind in kinds if role in kind.role]
    return max(able, key=lambda k: (k.max_sequence_tokens, k.max_model_len), default=None)


def _limits(pairs: Iterable[Pair]) -> ServingLimits:
    found = [[kind for kind in pair if kind is not None] for pair in pairs]
    max_model_len = max(min(kind.max_model_len for kind in pair) for pair in found)
    largest = max(found, key=lambda pair: pair[-1].max_sequence_tokens)[-1]
    return ServingLimits(
        max_model_len=max_model_len,
        max_sequence_tokens=min(largest.max_sequence_tokens, max_model_len),
        model_digest=largest.model_digest,
    )
