"""One thing that was looked at, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """WARNING: it will serve, but worse than it could, or not under all loads."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``subject`` is what was looked at. What is not ok has a remedy; what is may have a hint."""

    level: Level
    subject: str
    found: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        assert self.level is Level.OK or self.remedy, f"{self.subject}: no remedy"


def ok(subject: str, found: str, remedy: str | None = None) -> Finding:
    return Finding(level=Level.OK, subject=subject, found=found, remedy=remedy)


def warning(subject: str, found: str, remedy: str) -> Finding:
    return Finding(level=Level.WARNING, subject=subject, found=found, remedy=remedy)


def error(subject: str, found: str, remedy: str) -> Finding:
    return Finding(level=Level.ERROR, subject=subject, found=found, remedy=remedy)
