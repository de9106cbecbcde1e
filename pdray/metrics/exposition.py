"""Prometheus text: of one registry, and of several processes in one answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class _WithoutCreated(Collector):
    """A registry less its ``_created`` samples: they double the size and nobody plots them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def exposition_text(registry: CollectorRegistry) -> bytes:
    """The registry's samples in Prometheus' text format."""
    return generate_latest(_WithoutCreated(registry))


def merge_expositions(texts: Iterable[bytes]) -> bytes:
    """One exposition of several processes' ones, each family's HELP and TYPE said once.

    The processes tell themselves apart by their constant labels; nothing is added up. Families
    keep the order in which they first appear.
    """
    headers: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        # Not splitlines(): it also breaks at characters that a label value may hold.
        for line in text.decode().split("\n"):
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                known = headers.setdefault(family, [])
                kind = line[:7]
                if not any(header.startswith(kind) for header in known):
                    known.append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(line)
    lines: list[str] = samples.get("", [])
    for family, header in headers.items():
        lines = [*lines, *header, *samples.get(family, [])]
    return "".join(f"{line}\n" for line in lines).encode()
