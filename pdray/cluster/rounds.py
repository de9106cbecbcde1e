"""What a frontend and its controller tell each other of requests, packed: to pickle and unpickle
these dataclasses would take as long as the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pdray.core.placement import KeptPrefix, Placement, PlacementAsk, Queued, Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Frontend to controller: requests that have ended, what they left in workers' prefix caches,
    and then those that are to be placed."""

    ended: tuple[str, ...] = ()
    kept: tuple[KeptPrefix, ...] = ()
    asks: tuple[PlacementAsk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """Of one round, by their kinds."""

    placements: list[Placement]
    queued: list[Queued]
    refusals: list[Refusal]


_encode = msgspec.msgpack.Encoder().encode
_decode_round = msgspec.msgpack.Decoder(Round).decode
_decode_answers = msgspec.msgpack.Decoder(_Answers).decode


def pack_round(told: Round) -> bytes:
    return _encode(told)


def unpack_round(packed: bytes) -> Round:
    return _decode_round(packed)


def pack_answers(answers: Sequence[Placement | Queued | Refusal]) -> bytes:
    return _encode(
        _Answers(
            placements=[each for each in answers if isinstance(each, Placement)],
            queued=[each for each in answers if isinstance(each, Queued)],
            refusals=[each for each in answers if isinstance(each, Refusal)],
        )
    )


def unpack_answers(
    packed: bytes, asks: Sequence[PlacementAsk]
) -> list[Placement | Queued | Refusal]:
    """In the order of ``asks``, each of which has one."""
    found = _decode_answers(packed)
    by_id: dict[str, Placement | Queued | Refusal] = {}
    for kind in (found.placements, found.queued, found.refusals):
        by_id |= {each.request_id: each for each in kind}
    return [by_id[ask.request_id] for ask in asks]
