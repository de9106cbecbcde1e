"""What the sections of every YAML file are made of: the frozen base and the checked types."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_SIZE_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(value: object) -> object:
    """Bytes of ``512MiB`` or ``2GiB``; what is no text is left to the integer check."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError("should be a number of bytes, or one such as 512MiB or 2GiB")
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def matching(pattern: str, accepted: str) -> Callable[[str], str]:
    """A check that says what is accepted, where a bare pattern would not."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(accepted)
        return value

    return check


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrNone = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
FilePath = Annotated[str, Field(min_length=1)]
Name = Annotated[
    str,
    AfterValidator(
        matching(
            r"[a-z0-9][a-z0-9_-]{0,62}",
            "should have lower-case letters, digits, - and _ only, at most 63",
        )
    ),
]
"""Part of actor names and metric labels, so lower-case and plain."""


class Section(BaseModel):
    """A part of the file: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SloConfig(Section):
    """What a request should get; ``percentile`` of them must."""

    ttft_s: Seconds = 2.0
    itl_s: Seconds = 0.2
    percentile: Fraction = 0.99
