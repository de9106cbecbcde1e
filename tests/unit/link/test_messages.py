from __future__ import annotations

import asyncio
import dataclasses
import enum
import types
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdray.link.messages import Message
from tests.unit.link.listener import linked

MESSAGE_TYPES = typing.get_args(Message)
_SCALARS: dict[object, st.SearchStrategy[object]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=40),
    type(None): st.none(),
}


def values(kind: object) -> st.SearchStrategy[object]:
    """Any value of a type that may stand in a message."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values, args))
    if origin is tuple and args[-1] is ...:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, args))
    if isinstance(kind, typing.NewType):
        return values(kind.__supertype__)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    assert isinstance(kind, type), f"no message can have a {kind}"
    assert dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct), kind
    fields = typing.get_type_hints(kind)
    return st.builds(kind, **{name: values(field) for name, field in fields.items()})


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_every_message_arrives_as_it_was_sent(kind: type) -> None:
    @settings(max_examples=20, deadline=None)
    @given(st.lists(values(kind), min_size=1, max_size=5))
    def check(messages: list[Message]) -> None:
        asyncio.run(_send_and_compare(messages))

    check()


async def _send_and_compare(messages: list[Message]) -> None:
    async with linked() as (dialled, _, listener):
        for message in messages:
            dialled.send(message)
        assert [await listener.next_received() for _ in messages] == messages
