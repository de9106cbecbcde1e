"""How the two phases of a request meet: one word of the config."""

from __future__ import annotations

import enum


class Mode(enum.StrEnum):
    """``soft``: on one worker, always. ``pooled``: on a worker of each pool, but for a prompt so
    short that its decode worker had better compute it. ``auto``: every worker does both, and each
    request gets the pair, or the one, that costs least. ``service``: in two applications."""

    SOFT = "soft"
    POOLED = "pooled"
    AUTO = "auto"
    SERVICE = "service"
