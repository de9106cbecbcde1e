"""One engine with its KV cache, its link and its transport: what a worker process runs.

Threads: the event loop (links and decisions), the engine, the transfer thread, and that of the
tiers where there are some.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence

from pdray.core.clock import Clock, WallClock
from pdray.core.errors import TransferError
from pdray.core.placement import WorkerAddress
from pdray.core.prefix_report import PrefixReport
from pdray.core.request import WorkerId
from pdray.core.snapshot import WorkerInfo, WorkerSnapshot, WorkerState
from pdray.engine.engine import Engine
from pdray.engine.loading import load_parts
from pdray.engine.model_files import ModelFile, list_model_files
from pdray.engine.outputs import StepOutput
from pdray.link.connection import Connection
from pdray.link.messages import WIRE_VERSION, Draining, Hello
from pdray.link.peers import PeerLinks
from pdray.link.server import LinkServer
from pdray.metrics.prometheus import WorkerMetrics
from pdray.transfer.transfer_thread import TransferThread
from pdray.worker.attempts import AttemptTable
from pdray.worker.borrowing import Borrowing
from pdray.worker.config import WorkerConfig
from pdray.worker.decoding import Decoding
from pdray.worker.engine_thread import EngineThread
from pdray.worker.file_lending import FileLending
from pdray.worker.inbox import Inbox
from pdray.worker.lending import Lending
from pdray.worker.meeting import Meetings
from pdray.worker.migrating import Migrating
from pdray.worker.offering import Offering
from pdray.worker.outbox import Outbox
from pdray.worker.parking import Parking
from pdray.worker.phase_times import PhaseTimes
from pdray.worker.prefilling import Prefilling
from pdray.worker.prefix_lending import PrefixLending
from pdray.worker.pulling import Pulling
from pdray.worker.ranks import make_transport
from pdray.worker.read_log import ReadLog
from pdray.worker.readable_peers import ReadablePeers
from pdray.worker.tasks import Tasks
from pdray.worker.tiering import make_tiering
from pdray.worker.worker_info import info_of, snapshot_of

logger = logging.getLogger(__name__)

TICK_S = 0.25


class Worker:
    """Every worker can prefill, decode, lend its blocks and pull others'; its role only says
    what it admits. All methods are for the event loop that ``start`` ran on."""

    def __init__(
        self,
        config: WorkerConfig,
        engine: Engine,
        clock: Clock | None = None,
        model_files: Sequence[ModelFile] = (),
    ) -> None:
        """``model_files`` are lent to workers that start."""
        self.config = config
        self.engine = engine
        self.state = WorkerState.STARTING
        self._clock = clock or WallClock()
        self.metrics = WorkerMetrics(config.worker_id, config.pool)
        secret = config.secret
        self._link_key = (
            secrets.token_bytes(32) if secret is None else secret.link_key_of(config.worker_id)
        )
        self._tasks = Tasks(self._on_crash)
        self._attempts = AttemptTable(self._clock)
        self._outbox = Outbox()
        self._phase_times = PhaseTimes(self.metrics, self._clock)
        self._server = LinkServer()
        self._peers = PeerLinks(
            self._hello,
            lambda link, message: self._inbox.on_message(link, message),
            lambda link: self._inbox.on_lost(link),
        )
        self._transfer = TransferThread(
            lambda: make_transport(config.transport, config.worker_id, engine)
        )
        self._lending = Lending(
            engine=engine,
            transfer=self._transfer,
            lease_s=config.lease_s,
            clock=self._clock,
            on_end=self._on_lease_end,
        )
        self._offering = Offering(
            worker_id=config.worker_id,
            lease_s=config.lease_s,
            peers=self._peers,
            lending=self._lending,
        )
        self.tiering = make_tiering(config.tiers, engine, self.metrics)
        self._prefix_lending = PrefixLending(
            worker_id=config.worker_id,
            lease_s=config.lease_s,
            engine=engine,
            tiering=self.tiering,
            lending=self._lending,
        )
        self._read_log = ReadLog(self.metrics, config.transport)
        self._readable = ReadablePeers(self._transfer, engine.layout)
        self._meetings = Meetings(
            layout=engine.layout,
            scratch_block_id=engine.storage.scratch_block_id,
            transfer=self._transfer,
            peers=self._peers,
            readable=self._readable,
            tasks=self._tasks,
        )
        self._borrowing = Borrowing(
            engine=engine,
            transfer=self._transfer,
            peers=self._peers,
            readable=self._readable,
            metrics=self.metrics,
            read_log=self._read_log,
            clock=self._clock,
        )
        self._parking = Parking(
            worker_id=config.worker_id,
            secret=secret,
            engine=engine,
            limits=config.parking,
            outbox=self._outbox,
            attempts=self._attempts,
            clock=self._clock,
        )
        self._prefilling = Prefilling(
            worker_id=config.worker_id,
            max_tokens_per_step=config.engine.max_tokens_per_step,
            engine=engine,
            offering=self._offering,
            borrowing=self._borrowing,
            tiering=self.tiering,
            lending=self._lending,
            parking=self._parking,
            outbox=self._outbox,
            attempts=self._attempts,
            tasks=self._tasks,
            clock=self._clock,
        )
        self._decoding = Decoding(engine=engine, outbox=self._outbox, attempts=self._attempts)
        self._pulling = Pulling(
            engine=engine,
            phase_times=self._phase_times,
            tasks=self._tasks,
            transfer=self._transfer,
            readable=self._readable,
            attempts=self._attempts,
            metrics=self.metrics,
            read_log=self._read_log,
            max_batch_size=config.engine.max_batch_size,
            outbox=self._outbox,
            clock=self._clock,
        )
        self._migrating = Migrating(
            worker_id=config.worker_id,
            engine=engine,
            offering=self._offering,
            lending=self._lending,
            outbox=self._outbox,
            attempts=self._attempts,
            metrics=self.metrics,
            tasks=self._tasks,
            clock=self._clock,
        )
        self._file_lending = FileLending(
            worker_id=config.worker_id,
            transport=config.transport,
            files=model_files,
            tasks=self._tasks,
        )
        self._inbox = Inbox(
            config.worker_id,
            engine.layout,
            lambda: self.state,
            attempts=self._attempts,
            borrowing=self._borrowing,
            decoding=self._decoding,
            file_lending=self._file_lending,
            lending=self._lending,
            meetings=self._meetings,
            migrating=self._migrating,
            offering=self._offering,
            outbox=self._outbox,
            parking=self._parking,
            prefilling=self._prefilling,
            prefix_lending=self._prefix_lending,
            pulling=self._pulling,
            readable=self._readable,
            tasks=self._tasks,
        )
        self._engine_thread: EngineThread | None = None
        self._crashed: asyncio.Future[BaseException] | None = None
        self._drain_until = math.inf

    async def start(self) -> WorkerInfo:
        """Starts the threads and the link; returns once peers can dial."""
        loop = asyncio.get_running_loop()
        self._crashed = loop.create_future()
        await asyncio.to_thread(self._transfer.start)
        await asyncio.to_thread(self.tiering.start)
        self._engine_thread = EngineThread(self.engine, loop, self._on_step, self._on_crash)
        self._engine_thread.start()
        await self._server.start(self.config.host, 0, self._link_key, self._hello, self._serve)
        self._tasks.start(self._tick_forever())
        self.state = WorkerState.READY
        logger.info("worker ready: worker_id=%s role=%s", self.config.worker_id, self.config.role)
        return self.info()

    async def meet(self, peers: Sequence[WorkerAddress]) -> dict[WorkerId, str]:
        """Makes and tries the connections that requests will need; what fails and why."""
        return await self._meetings.meet_all(peers)

    def info(self) -> WorkerInfo:
        return info_of(self.config, self.engine, port=self._server.port, link_key=self._link_key)

    def snapshot(self) -> WorkerSnapshot:
        return snapshot_of(
            self.config.worker_id,
            self.engine,
            state=self.state,
            taken_at=self._clock.now(),
            num_queued=self._prefilling.num_waiting,
            queued_tokens=self._prefilling.waiting_tokens,
            reads=self._read_log.costs(),
            bytes_read=self._read_log.bytes_read(),
        )

    def prefix_report(self) -> PrefixReport | None:
        """What has come into its prefix cache and what has gone, since the last one."""
        return self.engine.told_prefixes.take()

    def restart_prefix_reports(self) -> None:
        """Whoever hears of them knows nothing any more."""
        self.engine.told_prefixes.start_again()

    def metrics_text(self) -> bytes:
        """Prometheus exposition of this worker, as of now."""
        self.metrics.set_snapshot(self.snapshot())
        self.metrics.set_parked(self._parking.num_active)
        self.metrics.tiers.set(self.tiering.snapshots())
        return self.metrics.text()

    async def crashed(self) -> BaseException:
        """Returns what killed the engine, when something does: the process should end then."""
        assert self._crashed is not None, "the worker has not been started"
        return await asyncio.shield(self._crashed)

    async def drain(self, timeout_s: float = math.inf, *, gives_back: bool = False) -> bool:
        """Takes no new prompts, has its frontends move what decodes here and, with ``gives_back``,
        place again what has not begun. Returns when the last request is over and nothing is read;
        False where that is not so after ``timeout_s``, of this call or of an earlier one."""
        self._drain_until = min(self._drain_until, self._clock.now() + timeout_s)
        if self.state is WorkerState.READY:
            logger.info("worker drains: worker_id=%s", self.config.worker_id)
            self.state = WorkerState.DRAINING
            self._outbox.draining()
        if gives_back:
            self._prefilling.give_back()
        while self._is_in_use:
            if self._clock.now() >= self._drain_until:
                return False
            await asyncio.sleep(TICK_S / 5)
        await asyncio.to_thread(self.tiering.settle)
        return True

    @property
    def _is_in_use(self) -> bool:
        return len(self._attempts) > 0 or any(
            (
                self._prefilling.num_active,
                self._lending.num_active,
                self._parking.num_active,
                self._pulling.num_active,
                self._migrating.num_active,
            )
        )

    async def stop(self) -> None:
        """Ends everything at once; what is still running is lost."""
        self.state = WorkerState.STOPPED
        self._tasks.cancel()
        self._file_lending.close()
        await self._server.close()
        await self._peers.close()
        await asyncio.to_thread(self._stop_threads)

    def _stop_threads(self) -> None:
        if self._engine_thread is not None:
            self._engine_thread.stop()
        self._transfer.stop()
        self.tiering.stop()
        self.engine.close()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if not self._transfer.is_running:
                raise TransferError("the transfer thread has ended: no KV moves to or from here")
            self.tiering.tick()
            self._lending.tick()
            self._parking.tick()
            self._pulling.tick()
            self._migrating.tick()
            # Not every block that comes free is an event: those out of a quarantine are none.
            self._prefilling.pump()

    def _hello(self) -> Hello:
        return Hello(
            wire_version=WIRE_VERSION,
            peer_id=self.config.worker_id,
            pool=self.config.pool,
            node_group=self.config.node_group,
            layout_digest=self.engine.layout.content_digest,
            layout_text=self.engine.layout.describe(),
            transfer_description=self._transfer.describe(),
        )

    async def _serve(self, connection: Connection) -> None:
        """An incoming link, of a frontend or of a worker that has blocks to offer."""
        is_frontend = connection.peer_hello.pool is None
        await self._peers.serve(connection, self._greet if is_frontend else None)

    def _greet(self, frontend: Connection) -> None:
        self._outbox.attach(frontend)
        if self.state is WorkerState.DRAINING:
            frontend.send(Draining())

    def _on_lease_end(self, lease_id: str, failure: str | None) -> None:
        if not self._migrating.on_lease_end(lease_id, failure):
            self._prefilling.on_lease_end(lease_id, failure)

    def _on_step(self, output: StepOutput) -> None:
        try:
            self._report(output)
        except Exception as error:  # the loop would log it and go on with half a step's news
            logger.exception("a step could not be reported")
            self._on_crash(error)

    def _report(self, output: StepOutput) -> None:
        started_at = self._clock.now() - output.step_s
        self.metrics.step_finished(
            output.step_s,
            num_prefill_tokens=output.num_prefill_tokens,
            num_decode_tokens=output.num_decode_tokens,
        )
        if output.num_preemptions:
            self.metrics.preempted(output.num_preemptions)
        for each in output.sequences:
            ages = self._phase_times.on_step(each, started_at)
            if each.sequence.is_lent:
                self._prefilling.on_step(each, ages)
            else:
                self._migrating.on_step(each)
                self._decoding.on_step(each, ages)
        self._outbox.flush()
        self._prefilling.pump()

    def _on_crash(self, error: BaseException) -> None:
        self.state = WorkerState.FAILED
        if self._crashed is not None and not self._crashed.done():
            self._crashed.set_result(error)


def build_worker(config: WorkerConfig, when_loaded: Callable[[], None] = lambda: None) -> Worker:
    """Loads the model and makes its worker; takes seconds to minutes. ``when_loaded`` is called
    between the two. Raises UnsupportedModelError."""
    files = list_model_files(config.model_path)  # as they are before they are read
    loaded, ranks = load_parts(config.model_path, config.engine)
    when_loaded()
    return Worker(config, Engine.of(loaded, ranks, config.engine), model_files=files)
