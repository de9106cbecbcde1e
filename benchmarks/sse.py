"""Server-sent events out of bytes that arrive in any pieces."""

from __future__ import annotations


class SseDecoder:
    """Keeps the unfinished rest of what it was fed; one decoder per stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that this piece completes, in order; comments and other
        fields are skipped."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode())
            elif not line and self._data:
                events.append("\n".join(self._data))
                self._data = []
        return events
