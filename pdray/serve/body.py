"""What every part of a request body has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """Unknown keys and other types than written are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LenientBody(BaseModel):
    """Unknown keys are let be: clients send back what they got, and more than we use."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
