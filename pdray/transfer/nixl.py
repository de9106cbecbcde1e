"""Reads through NIXL and its UCX backend: host memory and GPU memory by the same code.

What UCX does, as measured (nixl 1.5.1; none of the user's settings is overridden):

- On one host, host memory: ``cma``, the kernel copies out of the owner's process
  (``process_vm_readv``) at the speed of one core's memcpy. The copy happens inside ``pull``,
  with Python's lock released. The owner need not do anything, **but for the first read of each
  reader**, which makes the connection: until then, and for any read over other means, the owner
  must call ``progress``.
- Where containers or users forbid that, and between hosts without RDMA: TCP. Every read needs both
  sides to poll. ``UCX_TLS=tcp,self`` shows it on one host, ``UCX_NET_DEVICES=eth0`` picks the
  network where a host has several that do not reach the peer.
- On one host, GPU memory: ``cuda_ipc``, the GPU copies by itself. Without NVLink UCX would not read
  so unless it is told to, but copy through the hosts' memory and TCP: 0.45 GB/s where an H200
  reads its own memory at 127.
- With RDMA: verbs; the NIC reads by itself.

A dead peer is an error of each pending read within some 50 ms. A peer that hangs is none: its
reads stay pending until it goes on or dies. NIXL forgets how a read stands once its agent is
removed, so a removed peer's agent goes only when its last read has ended.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nixl._bindings as bindings
import numpy as np
from nixl._api import (
    nixl_agent,
    nixl_agent_config,
    nixl_prepped_dlist_handle,
    nixl_xfer_handle,
)

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.transfer.base import BlockPart, KVRegion, TransferId, TransferState
from pdray.transfer.description import (
    ArenaDescription,
    check_epoch_slot,
    check_pull,
    describe_region,
    read_description,
    whole_blocks,
)
from pdray.transfer.epochs import EPOCH_BYTES, Epochs

logger = logging.getLogger(__name__)

_BACKEND = "UCX"
# A leak in UCX's registration cache with long-lived peers, bounded as vLLM does it.
_UNRELEASED = ("UCX_RCACHE_MAX_UNRELEASED", "1024")
# Else GPU memory is read through TCP where there is no NVLink. Without a GPU UCX does not know it.
_IPC_READS = ("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "on")
NUM_LANDINGS = 1024
"""Epochs that may be on their way here at once."""
_Part = tuple[nixl_prepped_dlist_handle, Sequence[int]]
"""Of a prepared list, the entries of a read."""
# NIXL's errors have no base of their own.
NIXL_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for name in dir(bindings)
    if isinstance(error := getattr(bindings, name), type) and issubclass(error, Exception)
)


@dataclass(slots=True, eq=False)
class _PeerLife:
    """One life of a peer: its NIXL agent, and its blocks, or a part of each, as prepared lists, by
    the part's offset and bytes. ``is_lost`` once a read of it failed: NIXL needs new lists then,
    even where the peer is still there."""

    agent_name: str
    description: ArenaDescription
    lists: dict[tuple[int, int], nixl_prepped_dlist_handle]
    epochs: nixl_prepped_dlist_handle
    num_pending: int = 0
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class _Pull:
    """Of blocks; or of an epoch, into a ``landing`` of ours, where ``value`` should be then."""

    life: _PeerLife
    handle: nixl_xfer_handle
    landing: int | None = None
    value: int = 0


class NixlTransport:
    """The arena is registered once; its blocks and each peer's are one prepared list apiece, so
    that a pull names blocks by their index."""

    name = "nixl"

    def __init__(self, worker_id: str, region: KVRegion) -> None:
        """Raises TransferError where NIXL or its UCX backend cannot run or register here."""
        self.block_bytes = region.block_bytes
        self._region = region
        self._peers: dict[str, _PeerLife] = {}
        self._lives: dict[bytes, _PeerLife] = {}
        self._pulls: dict[TransferId, _Pull] = {}
        self._ids = itertools.count()
        self.epochs = Epochs()
        self._landings = np.zeros(NUM_LANDINGS, dtype=np.uint64)
        self._free_landings = list(range(NUM_LANDINGS))
        # Another name for each life: NIXL would take a restarted worker for the old one.
        agent_name = f"{worker_id}-{secrets.token_hex(4)}"
        try:
            self._agent = _make_agent(agent_name, region.device_id)
            self._registrations = [self._register(region)]
            landings = (int(self._landings.ctypes.data), NUM_LANDINGS)
            own_epochs = (self.epochs.address, self.epochs.num_slots)
            self._epoch_registration = self._agent.register_memory(
                [(at, num * EPOCH_BYTES, 0, "") for at, num in (landings, own_epochs)],
                "DRAM",
                backends=[_BACKEND],
            )
            whole = (region, 0, region.block_bytes)
            self._lists = {whole: self._prepare("NIXL_INIT_AGENT", *whole)}
            self._landing_list = self._prepare_epochs("NIXL_INIT_AGENT", *landings)
            self._description = describe_region(
                self.name, region, self.epochs, self._agent.get_agent_metadata()
            )
        except NIXL_ERRORS as error:
            raise TransferError(f"NIXL cannot serve worker {worker_id!r}: {error!r}") from error

    def describe(self) -> bytes:
        return self._description

    def add_peer(self, peer_id: str, description: bytes) -> None:
        peer = read_description(description, peer_id=peer_id, transport=self.name)
        life = self._lives.get(peer.access)
        if life is None or life.is_lost:
            life = self._meet(peer_id, peer)
        # The same life again keeps its agent: taking it anew would strand pending reads.
        if self._peers.get(peer_id) is not life:
            self.remove_peer(peer_id)
            self._peers[peer_id] = life

    def remove_peer(self, peer_id: str) -> None:
        life = self._peers.pop(peer_id, None)
        if life is not None:
            self._forget_if_unused(life)

    def pull(
        self, peer_id: str, remote_block_ids: Sequence[int], local_block_ids: Sequence[int]
    ) -> TransferId:
        part = whole_blocks(peer_id, self._find(peer_id).description, self._region)
        return self.pull_part(peer_id, part, remote_block_ids, local_block_ids)

    def num_bytes(self, peer_id: str, num_ids: int) -> int:
        return num_ids * self.block_bytes

    def register(self, region: KVRegion) -> None:
        """Raises TransferError."""
        try:
            self._registrations.append(self._register(region))
        except NIXL_ERRORS as error:
            raise TransferError(f"NIXL cannot register memory to read into: {error!r}") from error

    def pull_part(
        self,
        peer_id: str,
        part: BlockPart,
        remote_block_ids: Sequence[int],
        local_block_ids: Sequence[int],
    ) -> TransferId:
        life = self._find(peer_id)
        check_pull(life.description, part, remote_block_ids, local_block_ids)
        handle = self._start(
            peer_id,
            life,
            lambda: (self._local_list(part), local_block_ids),
            lambda: (self._remote_list(life, part), remote_block_ids),
        )
        return self._keep(_Pull(life, handle))

    def check_epoch(self, peer_id: str, epoch: LeaseEpoch) -> TransferId:
        life = self._find(peer_id)
        check_epoch_slot(life.description, epoch)
        if not self._free_landings:
            raise TransferError(f"{NUM_LANDINGS} epochs are being read already")
        landing = self._free_landings.pop()
        try:
            handle = self._start(
                peer_id,
                life,
                lambda: (self._landing_list, [landing]),
                lambda: (life.epochs, [epoch.slot]),
            )
        except TransferError:
            self._free_landings.append(landing)
            raise
        return self._keep(_Pull(life, handle, landing, epoch.value))

    def _find(self, peer_id: str) -> _PeerLife:
        life = self._peers.get(peer_id)
        if life is None:
            raise TransferError(f"unknown peer {peer_id!r}; known: {sorted(self._peers)}")
        return life

    def _keep(self, pull: _Pull) -> TransferId:
        transfer_id = TransferId(next(self._ids))
        pull.life.num_pending += 1
        self._pulls[transfer_id] = pull
        return transfer_id

    def _start(
        self,
        peer_id: str,
        life: _PeerLife,
        local: Callable[[], _Part],
        remote: Callable[[], _Part],
    ) -> nixl_xfer_handle:
        handle: nixl_xfer_handle | None = None
        try:
            local_list, local_ids = local()
            remote_list, remote_ids = remote()
            handle = self._agent.make_prepped_xfer(
                "READ",
                local_list,
                np.asarray(local_ids, dtype=np.int32),
                remote_list,
                np.asarray(remote_ids, dtype=np.int32),
                backends=[_BACKEND],
            )
            state = self._agent.transfer(handle)
        except NIXL_ERRORS as error:
            life.is_lost = True
            if handle is not None:
                release_handle(handle)
            raise TransferError(f"peer {peer_id!r} has gone: {error!r}") from error
        if state == "ERR":
            life.is_lost = True
            release_handle(handle)
            raise TransferError(f"NIXL refused a read of peer {peer_id!r}")
        return handle

    def poll(self, transfer_id: TransferId) -> TransferState:
        pull = self._pulls[transfer_id]
        try:
            # Asking for one read's state moves all of the agent's reads on.
            nixl_state = self._agent.check_xfer_state(pull.handle)
        except NIXL_ERRORS as error:
            logger.warning("a read of NIXL agent %s failed: %r", pull.life.agent_name, error)
            nixl_state = "ERR"
        if nixl_state == "PROC":
            return TransferState.PENDING
        release_handle(pull.handle)
        del self._pulls[transfer_id]
        pull.life.num_pending -= 1
        if nixl_state == "ERR":
            pull.life.is_lost = True
        self._forget_if_unused(pull.life)
        is_good = nixl_state == "DONE"
        if pull.landing is not None:
            is_good = is_good and int(self._landings[pull.landing]) == pull.value
            self._free_landings.append(pull.landing)
        return TransferState.DONE if is_good else TransferState.FAILED

    def progress(self) -> None:
        self._agent.get_new_notifs()

    def close(self) -> None:
        for pull in self._pulls.values():
            release_handle(pull.handle)
        self._pulls.clear()
        self._peers.clear()
        for life in list(self._lives.values()):
            life.num_pending = 0
            self._forget_if_unused(life)
        for each in (*self._lists.values(), self._landing_list):
            each.release()
        for registration in (*self._registrations, self._epoch_registration):
            self._agent.deregister_memory(registration, backends=[_BACKEND])
        # The UCX worker and its connections go with the last reference to the agent.
        del self._agent, self._lists, self._landing_list, each, registration
        del self._registrations, self._epoch_registration

    def _register(self, region: KVRegion) -> bindings.nixlRegDList:
        size = region.num_blocks * region.block_bytes
        return self._agent.register_memory(
            [(region.address, size, region.device_id or 0, "")],
            _memory_kind(region.device_id),
            backends=[_BACKEND],
        )

    def _meet(self, peer_id: str, peer: ArenaDescription) -> _PeerLife:
        lost = self._lives.pop(peer.access, None)
        if lost is not None:
            self._drop(lost)
        agent_name: str | bytes | None = None
        try:
            agent_name = self._agent.add_remote_agent(peer.access)
            if isinstance(agent_name, bytes):
                agent_name = agent_name.decode()
            # Prepared here, as it shows whether the memory can be reached.
            whole = self._prepare(agent_name, peer, 0, peer.block_bytes)
            epochs = self._prepare_epochs(agent_name, peer.epochs_address, peer.num_epochs)
        except NIXL_ERRORS as error:
            if agent_name is not None:
                self._agent.remove_remote_agent(agent_name)
            raise TransferError(f"NIXL does not take peer {peer_id!r}: {error!r}") from error
        life = _PeerLife(agent_name, peer, {(0, peer.block_bytes): whole}, epochs)
        self._lives[peer.access] = life
        return life

    def _forget_if_unused(self, life: _PeerLife) -> None:
        """A removed agent's reads can be asked about no more: it stays until they have ended."""
        is_used = life.num_pending > 0 or life in self._peers.values()
        if not is_used and self._lives.get(life.description.access) is life:
            del self._lives[life.description.access]
            self._drop(life)

    def _drop(self, life: _PeerLife) -> None:
        for each in (*life.lists.values(), life.epochs):
            each.release()
        try:
            self._agent.remove_remote_agent(life.agent_name)
        except NIXL_ERRORS as error:
            logger.debug("NIXL had forgotten agent %s already: %r", life.agent_name, error)

    def _local_list(self, part: BlockPart) -> nixl_prepped_dlist_handle:
        key = (part.local, part.local_offset, part.num_bytes)
        if key not in self._lists:
            self._lists[key] = self._prepare("NIXL_INIT_AGENT", *key)
        return self._lists[key]

    def _remote_list(self, life: _PeerLife, part: BlockPart) -> nixl_prepped_dlist_handle:
        key = (part.remote_offset, part.num_bytes)
        if key not in life.lists:
            life.lists[key] = self._prepare(life.agent_name, life.description, *key)
        return life.lists[key]

    def _prepare(
        self, agent_name: str, arena: KVRegion | ArenaDescription, offset: int, num_bytes: int
    ) -> nixl_prepped_dlist_handle:
        """These bytes of every block."""
        device_id = arena.device_id or 0
        row = (arena.address + offset, num_bytes, device_id, arena.block_bytes, arena.num_blocks)
        return self._agent.prep_xfer_dlist(
            agent_name,
            np.array([row], dtype=np.uint64),
            _memory_kind(arena.device_id),
            backends=[_BACKEND],
        )

    def _prepare_epochs(
        self, agent_name: str, address: int, num_slots: int
    ) -> nixl_prepped_dlist_handle:
        row = (address, EPOCH_BYTES, 0, EPOCH_BYTES, num_slots)
        return self._agent.prep_xfer_dlist(
            agent_name, np.array([row], dtype=np.uint64), "DRAM", backends=[_BACKEND]
        )


def _make_agent(agent_name: str, device_id: int | None) -> nixl_agent:
    os.environ.setdefault(*_UNRELEASED)
    if device_id is not None:
        os.environ.setdefault(*_IPC_READS)
    quieten_nixl()
    agent = nixl_agent(agent_name, nixl_agent_config(enable_prog_thread=False, backends=[_BACKEND]))
    if _BACKEND not in agent.backends:
        raise TransferError(f"NIXL has no {_BACKEND} backend here, only {agent.get_plugin_list()}")
    return agent


def quieten_nixl() -> None:
    """It greets on stdout, which belongs to the program."""
    if "NIXL_LOG_LEVEL" not in os.environ:
        logging.getLogger("nixl").setLevel(logging.WARNING)


def _memory_kind(device_id: int | None) -> str:
    return "DRAM" if device_id is None else "VRAM"


def release_handle(handle: nixl_xfer_handle) -> None:
    try:
        handle.release()
    except NIXL_ERRORS as error:
        logger.warning("NIXL kept a transfer handle: %r", error)
