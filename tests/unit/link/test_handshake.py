from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import replace

import pytest

from pdray.core.errors import LinkError, LinkRefusedError
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.link import server as server_module
from pdray.link.connection import dial
from pdray.link.handshake import prove_as_dialer
from pdray.link.messages import WIRE_VERSION, Withdraw
from tests.unit.link.listener import (
    LINK_KEY,
    PATIENCE_S,
    Listener,
    hello,
    listening,
    raw_listening,
)


async def stranger_gets(port: int, data: bytes) -> bytes:
    """What a server answers to whoever sends ``data``, until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = b""
    try:
        while part := await asyncio.wait_for(reader.read(4096), PATIENCE_S):
            answer += part
    except ConnectionResetError:
        pass
    writer.close()
    return answer


async def assert_still_serves(listener: Listener, address: WorkerAddress) -> None:
    link = await dial(address, hello("d"), PATIENCE_S)
    link.send(Withdraw(lease_id="l"))
    assert await listener.next_received() == Withdraw(lease_id="l")
    await link.close()


def assert_one_warning(caplog: pytest.LogCaptureFixture, text: str) -> None:
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert text in record.getMessage()
    assert record.exc_info is None


async def test_another_key_is_refused_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as (listener, address):
        wrong = replace(address, link_key=b"another")
        with pytest.raises(LinkRefusedError, match=r"worker w at .* does not accept our link key"):
            await dial(wrong, hello("d"), PATIENCE_S)
        assert_one_warning(caplog, "it does not have the link key")
        await assert_still_serves(listener, address)
        assert listener.taken.qsize() == 1


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: w\r\n\r\n", secrets.token_bytes(500)])
async def test_garbage_costs_a_log_line(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as (listener, address):
        assert await stranger_gets(address.port, data) == b""
        assert_one_warning(caplog, "does not speak pdray's link protocol")
        await assert_still_serves(listener, address)


async def test_a_silent_stranger_is_cut(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_TIMEOUT_S", 0.05)
    async with listening() as (listener, address):
        assert await stranger_gets(address.port, b"") == b""
        assert_one_warning(caplog, "no handshake within 0.05 s")
        monkeypatch.undo()
        await assert_still_serves(listener, address)


async def test_a_stranger_that_leaves_costs_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as (listener, address):
        _, writer = await asyncio.open_connection("127.0.0.1", address.port)
        writer.close()
        await writer.wait_closed()
        await assert_still_serves(listener, address)
        assert_one_warning(caplog, "it left in the middle of the handshake")


async def test_a_proof_cannot_be_sent_back_to_who_made_it() -> None:
    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)

    async with raw_listening(mirror) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(LinkRefusedError, match="does not have the link key"):
            await prove_as_dialer(reader, writer, LINK_KEY)
        writer.close()


async def test_what_one_link_said_opens_no_other() -> None:
    """An eavesdropper says again what it heard; the listener's nonce is another one then."""
    heard = bytearray()
    async with listening() as (listener, address):

        async def eavesdrop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, forth = await asyncio.open_connection("127.0.0.1", address.port)

            async def answer() -> None:
                while data := await back.read(4096):
                    writer.write(data)

            answering = asyncio.create_task(answer())
            while data := await reader.read(4096):
                heard.extend(data)
                forth.write(data)
            forth.close()
            await answering

        async with raw_listening(eavesdrop) as port:
            link = await dial(replace(address, port=port), hello("d"), PATIENCE_S)
            await listener.next_link()
            await link.close()
            assert await listener.next_received() is None
        await stranger_gets(address.port, bytes(heard))
        assert listener.taken.empty()


@pytest.mark.parametrize("theirs", [WIRE_VERSION + 1, 0])
async def test_another_wire_version_is_refused_naming_both(
    theirs: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(wire_version=theirs) as (_, address):
        with pytest.raises(
            LinkRefusedError, match=f"wire version {theirs}, this process {WIRE_VERSION}"
        ):
            await dial(address, hello("d"), PATIENCE_S)
    async with listening() as (listener, address):
        with contextlib.suppress(LinkError):  # its own check may be faster, or see the end
            link = await dial(address, hello("d", wire_version=theirs), PATIENCE_S)
            assert [message async for message in link.messages()] == []
        assert listener.taken.empty()
        assert f"wire version {theirs}, this process {WIRE_VERSION}" in caplog.text


async def test_a_first_frame_that_is_no_hello_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening() as (listener, address):
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
        await prove_as_dialer(reader, writer, LINK_KEY)
        writer.write(b"\x00\x00\x00\x03abc")
        await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        assert_one_warning(caplog, "first frame is no Hello")
        assert listener.taken.empty()


async def test_another_worker_at_the_address_is_refused() -> None:
    async with listening() as (_, address):
        old = replace(address, worker_id=WorkerId("w-before"))
        with pytest.raises(LinkRefusedError, match=r"worker w-before at .*: it is worker 'w' now"):
            await dial(old, hello("d"), PATIENCE_S)


async def test_a_listener_that_says_nothing_is_given_up() -> None:
    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_listening(say_nothing) as port:
        address = WorkerAddress(
            worker_id=WorkerId("w"), host="127.0.0.1", port=port, link_key=LINK_KEY
        )
        with pytest.raises(LinkError, match=r"no link to worker w .* within 0.05 s"):
            await dial(address, hello("d"), 0.05)


async def test_the_key_is_never_printed() -> None:
    async with listening() as (_, address):
        assert "kkkk" not in repr(address)
        assert "kkkk" not in str(address)
