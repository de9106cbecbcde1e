"""From the command line's words to a schedule of requests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from pdray.workload.arrivals import constant_arrivals, poisson_arrivals
from pdray.workload.lengths import fixed_lengths, lognormal_lengths, uniform_lengths
from pdray.workload.request import WorkloadRequest
from pdray.workload.trace import read_trace, scale_trace

LENGTHS_HELP = "N | LOW-HIGH | lognormal:MEDIAN,SIGMA,LOW,HIGH"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadChoice:
    """``trace`` set: its arrivals and lengths, scaled; else ``rate_rps`` and the two lengths.
    At least one of ``num_requests`` and ``duration_s`` must end a workload without a trace."""

    rate_rps: float
    arrivals: str
    num_requests: int | None
    duration_s: float | None
    prompt_lengths: str
    output_lengths: str
    trace: Path | None
    trace_speed: float
    length_factor: float
    max_prompt_tokens: int
    max_output_tokens: int


def parse_lengths(text: str, rng: random.Random) -> Iterator[int]:
    """Raises ValueError that says what is accepted."""
    try:
        if text.startswith("lognormal:"):
            median, sigma, low, high = text.removeprefix("lognormal:").split(",")
            return lognormal_lengths(float(median), float(sigma), int(low), int(high), rng)
        if "-" in text:
            low, high = text.split("-")
            return uniform_lengths(int(low), int(high), rng)
        return fixed_lengths(int(text))
    except ValueError as error:
        raise ValueError(f"lengths {text!r}: expected {LENGTHS_HELP}") from error


def make_workload(choice: WorkloadChoice, rng: random.Random) -> list[WorkloadRequest]:
    """The requests in order of arrival. Raises ValueError for an empty or endless one."""
    if choice.trace is not None:
        requests: Iterator[WorkloadRequest] = iter(
            scale_trace(
                read_trace(choice.trace),
                speed=choice.trace_speed,
                length_factor=choice.length_factor,
                max_prompt_tokens=choice.max_prompt_tokens,
                max_output_tokens=choice.max_output_tokens,
            )
        )
    elif choice.num_requests is None and choice.duration_s is None:
        raise ValueError("a workload without a trace needs --num-requests or --duration")
    else:
        requests = _drawn_requests(choice, rng)
    duration_s = choice.duration_s
    if duration_s is not None:
        requests = takewhile(lambda request: request.arrival_s < duration_s, requests)
    workload = list(islice(requests, choice.num_requests))
    if not workload:
        raise ValueError("no request falls into the time given: longer, or a higher rate")
    return workload


def _drawn_requests(choice: WorkloadChoice, rng: random.Random) -> Iterator[WorkloadRequest]:
    arrivals = {
        "poisson": lambda: poisson_arrivals(choice.rate_rps, rng),
        "constant": lambda: constant_arrivals(choice.rate_rps),
    }[choice.arrivals]()
    prompts = parse_lengths(choice.prompt_lengths, rng)
    outputs = parse_lengths(choice.output_lengths, rng)
    for arrival_s, prompt_tokens, output_tokens in zip(arrivals, prompts, outputs, strict=False):
        yield WorkloadRequest(
            arrival_s=arrival_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens
        )
