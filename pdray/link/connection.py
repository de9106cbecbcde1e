"""One link: messages in frames over TCP, between two processes that share a key.

A frame is a 4-byte big-endian length and that many bytes of msgpack. The first frame each way
is a Hello.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import msgspec

from pdray.core.errors import LinkError, LinkRefusedError
from pdray.core.placement import WorkerAddress
from pdray.link.handshake import prove_as_dialer
from pdray.link.messages import WIRE_VERSION, Hello, Message

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_OUTGOING_BYTES = 64 * 1024 * 1024
"""What may wait for a peer that reads slowly; past it the link is cut."""
DEAD_PEER_S = 15
READ_AHEAD_BYTES = 1024 * 1024

_LENGTH_BYTES = 4
_CLOSE_TIMEOUT_S = 1.0
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class _HelloVersion(msgspec.Struct, frozen=True, tag="Hello"):
    """The part of a Hello that every wire version has."""

    wire_version: int


class Connection:
    """A link that is up: made by ``dial`` or a LinkServer. Lives in one asyncio loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Of two streams whose ends have proved themselves; ``greet`` comes next."""
        self._reader = reader
        self._writer = writer
        self._outgoing: list[bytearray] = []
        self._outgoing_bytes = 0
        self._failure: str | None = None
        self._is_closed = False
        self._peer_hello: Hello | None = None

    @property
    def peer_hello(self) -> Hello:
        assert self._peer_hello is not None, "not greeted yet"
        return self._peer_hello

    @property
    def peer_id(self) -> str:
        return self.peer_hello.peer_id

    @property
    def is_closed(self) -> bool:
        """Whether this side has closed or cut it; a lost peer is seen by ``messages`` first."""
        return self._is_closed

    async def greet(self, hello: Hello) -> None:
        """Hellos both ways. Raises LinkRefusedError for another wire version, else LinkError."""
        self.send(hello)
        frame = await self._read_frame()
        if frame is None:
            raise LinkRefusedError("the peer closed the link instead of a Hello")
        try:
            version = msgspec.msgpack.decode(frame, type=_HelloVersion).wire_version
            if version != WIRE_VERSION:
                raise LinkRefusedError(
                    f"the peer speaks wire version {version}, this process {WIRE_VERSION}; "
                    "both must run the same pdray"
                )
            self._peer_hello = msgspec.msgpack.decode(frame, type=Hello)
        except msgspec.DecodeError as error:
            raise LinkRefusedError(f"the peer's first frame is no Hello: {error}") from error

    def send(self, message: Message) -> None:
        """Puts a message on its way; never blocks. What is sent in one turn of the loop leaves in
        one write. On a link that is down it is dropped: ``messages`` tells of the loss.
        Raises LinkError for a message that is larger than a frame may be."""
        if self._is_closed:
            return
        frame = bytearray(_LENGTH_BYTES)
        _encoder.encode_into(message, frame, _LENGTH_BYTES)
        size = len(frame) - _LENGTH_BYTES
        if size > MAX_FRAME_BYTES:
            raise LinkError(
                f"a {type(message).__name__} of {size} bytes; a frame has at most {MAX_FRAME_BYTES}"
            )
        frame[:_LENGTH_BYTES] = size.to_bytes(_LENGTH_BYTES, "big")
        waiting = self._outgoing_bytes + self._writer.transport.get_write_buffer_size()
        if waiting + len(frame) > MAX_OUTGOING_BYTES:
            self._cut(f"the peer does not read: {waiting} bytes are waiting for it")
            return
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(frame)
        self._outgoing_bytes += len(frame)

    async def messages(self) -> AsyncIterator[Message]:
        """What the peer sends, until either side closes. Raises LinkError where the link breaks,
        or carries what is no message. For one reader."""
        while (frame := await self._read_frame()) is not None:
            try:
                message = _decoder.decode(frame)
            except msgspec.DecodeError as error:
                self._cut(f"a frame is no message: {error}")
                raise LinkError(f"link to {self._name()}: {self._failure}") from error
            yield message

    async def close(self) -> None:
        """Sends what is waiting, within a second, and closes. May be called twice."""
        if not self._is_closed:
            self._flush()
            self._is_closed = True
            self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                # Shielded: it awaits a future that all callers share, and a cancelled one with it.
                await asyncio.shield(self._writer.wait_closed())
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    async def _read_frame(self) -> bytes | None:
        """None at the end of the link, between two frames."""
        try:
            head = await self._reader.readexactly(_LENGTH_BYTES)
            size = int.from_bytes(head, "big")
            if size > MAX_FRAME_BYTES:
                self._cut(f"a frame of {size} bytes announced; at most {MAX_FRAME_BYTES} may be")
                raise LinkError(f"link to {self._name()}: {self._failure}")
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError) as error:
            self._end(error)
            return None

    def _end(self, error: asyncio.IncompleteReadError | OSError) -> None:
        """Raises LinkError unless the link was closed, by either side, between two frames."""
        was_closed, self._is_closed = self._is_closed, True
        self._writer.close()
        if self._failure is not None:
            raise LinkError(f"link to {self._name()}: {self._failure}") from error
        is_between_frames = isinstance(error, asyncio.IncompleteReadError) and not error.partial
        if not was_closed and not is_between_frames:
            raise LinkError(f"link to {self._name()} broke: {error}") from error

    def _flush(self) -> None:
        if self._outgoing and not self._is_closed:
            self._writer.write(b"".join(self._outgoing))
        self._outgoing.clear()
        self._outgoing_bytes = 0

    def _cut(self, reason: str) -> None:
        self._failure = reason
        self._is_closed = True
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._writer.transport.abort()
        logger.error("link to %s cut: %s", self._name(), reason)

    def _name(self) -> str:
        if self._peer_hello is not None:
            return self._peer_hello.peer_id
        return str(self._writer.get_extra_info("peername"))


async def dial(address: WorkerAddress, hello: Hello, timeout_s: float) -> Connection:
    """A link to a worker. Raises LinkRefusedError where key, wire version or worker are others
    than the address says, LinkError where it cannot be reached in time."""
    where = f"worker {address.worker_id} at {address.host}:{address.port}"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, limit=READ_AHEAD_BYTES
            )
            set_socket_options(writer)
            await prove_as_dialer(reader, writer, address.link_key)
            connection = Connection(reader, writer)
            await connection.greet(hello)
        if connection.peer_id != address.worker_id:
            raise LinkRefusedError(f"it is worker {connection.peer_id!r} now")
    except BaseException as error:
        if writer is not None:
            writer.transport.abort()
        if isinstance(error, TimeoutError):
            raise LinkError(f"no link to {where} within {timeout_s} s") from error
        if isinstance(error, LinkError | OSError):
            kind = LinkRefusedError if isinstance(error, LinkRefusedError) else LinkError
            raise kind(f"no link to {where}: {error}") from error
        raise
    return connection


def set_socket_options(writer: asyncio.StreamWriter) -> None:
    """No delays for small frames, and a vanished host is noticed within DEAD_PEER_S.

    So is one that leaves its buffers full for as long: it hangs.
    """
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_PEER_S // 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_PEER_S // 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_S * 1000)
