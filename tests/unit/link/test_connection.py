from __future__ import annotations

import asyncio
import logging
import socket
import struct

import pytest

from pdray.core.errors import LinkError
from pdray.link import connection as connection_module
from pdray.link.connection import MAX_FRAME_BYTES
from pdray.link.handshake import prove_as_dialer
from pdray.link.messages import Acknowledge, Failed, Message, Withdraw
from tests.unit.link.listener import LINK_KEY, PATIENCE_S, Listener, hello, linked, listening

MEGABYTE = 1 << 20


async def raw_link(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A dialer that has the key and then says what it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await prove_as_dialer(reader, writer, LINK_KEY)
    frame = connection_module._encoder.encode(hello("odd"))
    writer.write(len(frame).to_bytes(4, "big") + frame)
    return reader, writer


async def test_messages_go_both_ways_in_order() -> None:
    async with linked() as (dialled, taken, listener):
        assert (dialled.peer_id, taken.peer_id) == ("w", "d")
        sent: list[Message] = [Withdraw(lease_id=str(i)) for i in range(100)]
        for message in sent:
            dialled.send(message)
            taken.send(message)
        assert [await listener.next_received() for _ in sent] == sent
        incoming = dialled.messages()
        assert [await anext(incoming) for _ in sent] == sent


async def test_what_one_turn_of_the_loop_sends_leaves_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writes: list[int] = []
    write = asyncio.StreamWriter.write

    def count(writer: asyncio.StreamWriter, data: bytes) -> None:
        writes.append(len(data))
        write(writer, data)

    async with linked() as (dialled, _, listener):
        monkeypatch.setattr(asyncio.StreamWriter, "write", count)
        for turn in range(2):
            for i in range(50):
                dialled.send(Withdraw(lease_id=str(i)))
            for i in range(50):
                assert await listener.next_received() == Withdraw(lease_id=str(i))
            assert len(writes) == turn + 1


async def test_a_large_message_arrives_whole() -> None:
    async with linked() as (dialled, _, listener):
        message = Failed(request_id="r", attempt=0, reason="x" * (20 * MEGABYTE))
        dialled.send(message)
        assert await listener.next_received() == message


async def test_a_message_larger_than_a_frame_is_refused_and_the_link_goes_on() -> None:
    async with linked() as (dialled, _, listener):
        with pytest.raises(LinkError, match=f"a Failed of .* at most {MAX_FRAME_BYTES}"):
            dialled.send(Failed(request_id="r", attempt=0, reason="x" * MAX_FRAME_BYTES))
        dialled.send(Withdraw(lease_id="l"))
        assert await listener.next_received() == Withdraw(lease_id="l")


async def test_closing_sends_what_was_waiting_and_ends_both_sides() -> None:
    async with linked() as (dialled, taken, listener):
        dialled.send(Withdraw(lease_id="last"))
        await dialled.close()
        await dialled.close()
        assert dialled.is_closed
        assert [message async for message in dialled.messages()] == []
        assert await listener.next_received() == Withdraw(lease_id="last")
        assert await listener.next_received() is None
        assert taken.is_closed
        taken.send(Withdraw(lease_id="dropped"))


async def test_a_killed_peer_ends_the_link() -> None:
    async with linked() as (dialled, taken, _):
        taken._writer.transport.abort()
        assert [message async for message in dialled.messages()] == []
        assert dialled.is_closed


async def test_a_reset_breaks_the_link() -> None:
    async with linked() as (dialled, taken, _):
        linger_not = struct.pack("ii", 1, 0)
        sock = taken._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        taken._writer.transport.abort()
        with pytest.raises(LinkError, match="link to w broke"):
            await anext(dialled.messages())
        assert dialled.is_closed


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), f"at most {MAX_FRAME_BYTES} may be"),
        (b"\x00\x00\x00\x03abc", "no message"),
        (b"\x00\x00\x00\x00", "no message"),
        (b"\x00\x00\x00\x09short", "link to odd broke"),
        (b"\x00\x00", "link to odd broke"),
    ],
)
async def test_what_is_no_message_breaks_the_link(data: bytes, failure: str) -> None:
    async with listening() as (listener, address):
        _, writer = await raw_link(address.port)
        writer.write(data)
        writer.write_eof()
        error = await listener.next_received()
        assert isinstance(error, LinkError)
        assert failure in str(error)
        assert (await listener.next_link()).is_closed
        writer.close()


async def test_a_peer_that_does_not_read_is_cut_at_the_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_module, "MAX_OUTGOING_BYTES", 4 * MEGABYTE)
    async with linked() as (dialled, _, listener):
        listener.may_read.clear()
        message = Failed(request_id="r", attempt=0, reason="x" * MEGABYTE)
        with caplog.at_level(logging.ERROR):
            # Far more than the kernel and the peer's read-ahead take.
            for _ in range(200):
                dialled.send(message)
                await asyncio.sleep(0)
        assert dialled.is_closed
        assert "link to w cut: the peer does not read" in caplog.text
        with pytest.raises(LinkError, match="the peer does not read"):
            await anext(dialled.messages())
        listener.may_read.set()


async def test_a_slow_reader_gets_everything_below_the_bound() -> None:
    async with linked() as (dialled, _, listener):
        # The first message is taken before the reader stops at its event.
        listener.may_read.clear()
        sent = [Acknowledge(lease_id=str(i), failure="x" * MEGABYTE) for i in range(30)]
        for message in sent:
            dialled.send(message)
        await asyncio.sleep(0.05)
        listener.may_read.set()
        assert [await listener.next_received() for _ in sent] == sent


async def test_a_closed_server_ends_its_links_and_takes_no_more() -> None:
    listener = Listener()
    address = await listener.start()
    dialled = await connection_module.dial(address, hello("d"), PATIENCE_S)
    await listener.next_link()
    await listener.server.close()
    await listener.server.close()
    assert [message async for message in dialled.messages()] == []
    with pytest.raises(LinkError, match=f"no link to worker w at 127.0.0.1:{address.port}"):
        await connection_module.dial(address, hello("d"), PATIENCE_S)
    await dialled.close()


async def test_both_ends_send_at_once_and_watch_for_a_vanished_host() -> None:
    async with linked() as (dialled, taken, _):
        for end in (dialled, taken):
            sock = end._writer.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
            idle_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            interval_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            assert idle_s + 3 * interval_s <= 15
