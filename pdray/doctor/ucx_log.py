"""What UCX says: its errors, and in the tables of ``UCX_PROTO_INFO=y`` which ways it picks.

A table has a title, which names the operation, and rows of bytes, way and transports. Older UCX
has the title in two cells of one line, newer UCX in two lines of one cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_READ = "remote memory read by"
_OPERATION = re.compile(r" by ucp_\w+")
_PREFIX = re.compile(r"^\[[^]]*\] \[[^]]*\]\s*")
_LARGEST = re.compile(r"(\S+\.\.)?inf")
_ERROR = re.compile(r"UCX\s+ERROR\s+(.*)")
_TRANSPORT = re.compile(r"[a-z]\w*/[\w.:-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPath:
    """How large reads go: ``transports`` with their devices, as in ``cma/memory``."""

    way: str
    config: str

    @property
    def transports(self) -> tuple[str, ...]:
        return tuple(_TRANSPORT.findall(self.config))

    @property
    def is_tcp(self) -> bool:
        """The bytes go through the network stack, whatever copies them to and from it."""
        return any(each.startswith("tcp/") for each in self.transports)

    @property
    def text(self) -> str:
        return f"{self.config} ({self.way})"


def read_paths(lines: Iterable[str]) -> list[ReadPath]:
    """Of the largest reads in each table of reads, without repeats."""
    paths: dict[ReadPath, None] = {}
    is_read = False
    for line in lines:
        text = _PREFIX.sub("", line).strip()
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if _OPERATION.search(text):
            is_read = _READ in text
        elif is_read and len(cells) == 3 and _LARGEST.fullmatch(cells[0]):
            paths[ReadPath(way=cells[1], config=cells[2])] = None
    return list(paths)


def errors_in(lines: Iterable[str]) -> list[str]:
    """What UCX calls an error, without repeats."""
    found = [match[1] for line in lines if (match := _ERROR.search(line))]
    return list(dict.fromkeys(found))
