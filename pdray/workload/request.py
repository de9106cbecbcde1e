"""A request as a workload knows it: when, and how long; not what it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRequest:
    """``arrival_s`` is in seconds from the start of the run.

    ``prefix_ids`` name the prompt's leading pieces where the source knows them (Mooncake's
    ``hash_ids``, 512 tokens each): requests that begin with the same ids share that prefix.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()
