"""All that a control plane knows, as bytes, and back.

Out of them come plain data and pdray's own pure classes only, whatever somebody has put into the
file: https://docs.python.org/3/library/pickle.html#restricting-globals.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from dataclasses import replace
from typing import Any

from pdray.control.controller import ControlPlane
from pdray.core.errors import EventLogError
from pdray.core.placement import WorkerAddress

_OWN = ("pdray.core.", "pdray.policy.", "pdray.control.")
_PLAIN = {
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("array", "_array_reconstructor"),
    ("array", "array"),
    ("random", "Random"),
}


def dump(control: ControlPlane) -> bytes:
    """Without its journal, and without the keys of workers' links."""
    journal, control.journal = control.journal, None
    try:
        written = io.BytesIO()
        pickler = pickle.Pickler(written, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = {**copyreg.dispatch_table, WorkerAddress: _reduce_without_key}
        pickler.dump(control)
    finally:
        control.journal = journal
    return written.getvalue()


def restore(data: bytes) -> ControlPlane:
    """Raises EventLogError for what ``dump`` of this version has not made."""
    try:
        control = _Unpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise EventLogError(f"no state of a control plane of this version: {error}") from error
    if not isinstance(control, ControlPlane):
        raise EventLogError(f"no control plane's state but a {type(control).__name__}")
    return control


def _reduce_without_key(address: WorkerAddress) -> str | tuple[Any, ...]:
    return replace(address, link_key=b"").__reduce_ex__(pickle.HIGHEST_PROTOCOL)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module.startswith(_OWN):
            found = super().find_class(module, name)
            # Not what such a module has imported.
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in one")
