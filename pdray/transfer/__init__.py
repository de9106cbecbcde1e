"""Reads of KV blocks between workers: one interface, and the transports by name."""

from __future__ import annotations

from collections.abc import Callable

from pdray.core.registry import Registry
from pdray.transfer.base import ArenaTransport, KVRegion

TransportFactory = Callable[[str, KVRegion], ArenaTransport]

TRANSPORTS: Registry[TransportFactory] = Registry("transport")


@TRANSPORTS.register("loopback")
def _make_loopback(worker_id: str, region: KVRegion) -> ArenaTransport:
    from pdray.transfer.loopback import LoopbackTransport

    return LoopbackTransport(worker_id, region)


@TRANSPORTS.register("nixl")
def _make_nixl(worker_id: str, region: KVRegion) -> ArenaTransport:
    # Imported late: nixl loads UCX, which neither the other transports nor `--help` need.
    from pdray.transfer.nixl import NixlTransport

    return NixlTransport(worker_id, region)


def create_transport(name: str, worker_id: str, region: KVRegion) -> ArenaTransport:
    """The transport ``name`` over ``region``, whose memory must outlive it. Raises KeyError that
    lists the known names. The calling thread owns the result."""
    return TRANSPORTS.get(name)(worker_id, region)
