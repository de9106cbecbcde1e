"""One event of a control plane as a line of JSON, and back.

Written is what it was told, and of what came of it as much as tells decisions apart: a replay
writes its own and compares the lines.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import get_type_hints

import msgspec

from pdray.control.controller import ControlPlane
from pdray.control.journal import EVENTS, Told
from pdray.core.errors import EventLogError
from pdray.core.placement import Placement, Queued, Refusal, WorkerAddress
from pdray.core.snapshot import WorkerInfo


def _arguments_type(event: str) -> type[msgspec.Struct]:
    method = getattr(ControlPlane, event)
    hints = get_type_hints(method)
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    return msgspec.defstruct(event, [(name, hints[name]) for name in names])


_ARGUMENTS = {event: _arguments_type(event) for event in EVENTS}


class _Line(msgspec.Struct):
    event: str
    arguments: msgspec.Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An event as it was logged. ``line`` is all of it, with its outcome."""

    event: str
    arguments: dict[str, object]
    line: bytes

    def apply(self, control: ControlPlane) -> None:
        getattr(control, self.event)(**self.arguments)


def encode(told: Told) -> bytes:
    """One line, without its end. Keys of workers' links stay out of it."""
    fields: dict[str, object] = {
        "event": told.event,
        "arguments": {name: _without_key(value) for name, value in told.arguments.items()},
    }
    if told.answer is not None:
        fields["answer"] = _plain(told.answer)
    if told.decisions:
        fields["decisions"] = _plain(told.decisions)
    if told.role_flips:
        fields["role_flips"] = told.role_flips
    return msgspec.json.encode(fields)


def decode(line: bytes) -> Entry:
    """Raises EventLogError for what is no entry of this version's."""
    try:
        read = msgspec.json.decode(line, type=_Line)
        kind = _ARGUMENTS.get(read.event)
        if kind is None:
            raise EventLogError(f"event {read.event!r}; known are {', '.join(sorted(_ARGUMENTS))}")
        arguments = msgspec.json.decode(read.arguments, type=kind)
    except msgspec.DecodeError as error:
        raise EventLogError(f"no event: {line[:80]!r}: {error}") from error
    return Entry(event=read.event, arguments=msgspec.structs.asdict(arguments), line=line)


def _without_key(value: object) -> object:
    if isinstance(value, WorkerInfo):
        return replace(value, address=replace(value.address, link_key=b""))
    return value


def _plain(answer: object) -> object:
    match answer:
        case Placement():
            source = answer.prefix_source
            return {
                "request_id": answer.request_id,
                "prefill": None if answer.prefill is None else answer.prefill.worker_id,
                "decode": [each.worker_id for each in answer.decode_candidates],
                "prefix_source": source and [source.address.worker_id, source.num_tokens],
                "together": answer.together,
            }
        case Queued():
            return {"request_id": answer.request_id, "queued": True}
        case Refusal():
            return {
                "request_id": answer.request_id,
                "refused": answer.reason,
                "retry_after_s": answer.retry_after_s,
            }
        case WorkerAddress():
            return answer.worker_id
        case list() | tuple():
            return [_plain(each) for each in answer]
    return answer
