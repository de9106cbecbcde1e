"""What frontends and workers count, as Prometheus metrics.

Each set lives on a registry of its own, so that several fit into one process, and each of its
samples carries the labels that name its process. Children are looked up once: recording a
token costs no label lookup. Any thread may record.
"""

from __future__ import annotations

import enum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pdray.core.snapshot import WorkerSnapshot
from pdray.metrics.buckets import REQUEST_BUCKETS_S, TOKEN_BUCKETS_S, TRANSFER_BUCKETS_S
from pdray.metrics.exposition import exposition_text
from pdray.metrics.tiers import TierMetrics
from pdray.metrics.total import Total
from pdray.metrics.window import RecentLatencies


class Outcome(enum.StrEnum):
    """How a request ended, as its frontend saw it."""

    STOP = "stop"
    LENGTH = "length"
    PARKED = "parked"
    CANCELLED = "cancelled"
    INVALID = "invalid"
    OVERLOADED = "overloaded"
    SLOW_READER = "slow_reader"
    FAILED = "failed"


class FrontendMetrics:
    """One frontend's metrics; ``replica`` is the label that tells it from the others."""

    def __init__(self, replica: str) -> None:
        self._registry = registry = CollectorRegistry()
        self.recent = RecentLatencies()

        def histogram(name: str, text: str, buckets_s: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ["replica"], registry=registry, buckets=buckets_s).labels(
                replica
            )

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["replica"], registry=registry).labels(replica)

        ended = Counter(
            "pdray_requests", "Requests that ended.", ["replica", "outcome"], registry=registry
        )
        self._ended = {outcome: ended.labels(replica, outcome.value) for outcome in Outcome}
        self._in_flight = Gauge(
            "pdray_num_requests_in_flight",
            "Requests that came and have not ended.",
            ["replica"],
            registry=registry,
        ).labels(replica)
        self._prompt_tokens = counter("pdray_prompt_tokens", "Tokens of prompts that came.")
        self._output_tokens = counter("pdray_generation_tokens", "Tokens made for clients.")
        self._placed_again = counter(
            "pdray_requests_placed_again", "Times that a request went on after its worker was lost."
        )
        self._ttft = histogram(
            "pdray_time_to_first_token_seconds", "Arrival to first token.", REQUEST_BUCKETS_S
        )
        self._tpot = histogram(
            "pdray_time_per_output_token_seconds",
            "Per request: last minus first token's time, over output tokens less one.",
            TOKEN_BUCKETS_S,
        )
        self._itl = histogram(
            "pdray_inter_token_latency_seconds",
            "Gap between consecutive tokens of one request.",
            TOKEN_BUCKETS_S,
        )
        self._e2e = histogram(
            "pdray_e2e_request_latency_seconds", "Arrival to last token.", REQUEST_BUCKETS_S
        )
        self._migration_pause_s = histogram(
            "pdray_migration_pause_seconds",
            "Last token of the worker that a running request leaves to the first of the next.",
            TOKEN_BUCKETS_S,
        )

    def request_placed_again(self) -> None:
        """Its workers were lost, and others have it now."""
        self._placed_again.inc()

    def request_started(self, num_prompt_tokens: int) -> None:
        """A request came; exactly one ``request_ended`` must follow."""
        self._in_flight.inc()
        self._prompt_tokens.inc(num_prompt_tokens)

    def observe_first_token(self, seconds: float, n: int = 1) -> None:
        """The first token, ``seconds`` after arrival; ``n - 1`` more came with it."""
        self._ttft.observe(seconds)
        self._output_tokens.inc(n)
        self.recent.first_token(seconds)
        self.recent.interval(0.0, n - 1)
        for _ in range(n - 1):
            self._itl.observe(0.0)

    def token_interval(self, seconds: float, n: int = 1) -> None:
        """``n`` more tokens, together, ``seconds`` after those before: one gap of that length
        and ``n - 1`` of none, which is what the client sees."""
        self._itl.observe(seconds)
        self._output_tokens.inc(n)
        self.recent.interval(seconds)
        self.recent.interval(0.0, n - 1)
        for _ in range(n - 1):
            self._itl.observe(0.0)

    def migration_paused(self, seconds: float) -> None:
        """A running request has moved, and was silent for so long."""
        self._migration_pause_s.observe(seconds)

    def request_ended(
        self, outcome: Outcome, *, e2e_s: float | None = None, tpot_s: float | None = None
    ) -> None:
        """A request ended. The times are of those that ended well, None for all others;
        ``tpot_s`` is None for one-token outputs too."""
        self._in_flight.dec()
        self._ended[outcome].inc()
        if e2e_s is not None:
            self._e2e.observe(e2e_s)
        if tpot_s is not None:
            self._tpot.observe(tpot_s)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return exposition_text(self._registry)


class WorkerMetrics:
    """One worker's metrics; transfers are counted by the worker that reads."""

    def __init__(self, worker_id: str, pool: str) -> None:
        self._worker_id = worker_id
        self._pool = pool
        self._registry = registry = CollectorRegistry()
        names = ["worker_id", "pool"]
        values = (worker_id, pool)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, names, registry=registry).labels(*values)

        self._num_running = gauge("pdray_num_requests_running", "Sequences in the running batch.")
        self._num_waiting = gauge("pdray_num_requests_waiting", "Sequences not yet running.")
        self._utilization = gauge(
            "pdray_kv_utilization", "Blocks in use (held or quarantined) over all blocks, 0 to 1."
        )
        self._parked = gauge(
            "pdray_num_prompts_parked", "Prompts that wait for whoever has a handle."
        )
        blocks = Gauge(
            "pdray_kv_blocks", "KV blocks by state.", [*names, "state"], registry=registry
        )
        self._free, self._cached, self._held, self._quarantined = (
            blocks.labels(*values, state) for state in ("free", "cached", "held", "quarantined")
        )
        self._unaccounted = gauge(
            "pdray_kv_unaccounted_blocks",
            "Blocks in use that no sequence, lease or read knows of: a leak, where it is not 0.",
        )
        self._preemptions = Counter(
            "pdray_num_preemptions", "Running sequences put back.", names, registry=registry
        ).labels(*values)
        self._init_prefix_cache(registry, names, values)
        self._init_engine(registry, names, values)
        self._init_transfer(registry, names, values)
        self.tiers = TierMetrics(registry, names, values)

    def _init_prefix_cache(
        self, registry: CollectorRegistry, names: list[str], values: tuple[str, str]
    ) -> None:
        def total(name: str, text: str) -> Total:
            return Total(Counter(name, text, names, registry=registry).labels(*values))

        self._prefix_queries = total(
            "pdray_prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = total(
            "pdray_prefix_cache_hits", "Prompt tokens found there, so not computed."
        )
        borrows = Counter(
            "pdray_prefix_borrows",
            "Times that a prefix was asked of another worker, by what came of it.",
            [*names, "outcome"],
            registry=registry,
        )
        self._filled_borrows, self._vain_borrows = (
            borrows.labels(*values, outcome) for outcome in ("filled", "vain")
        )
        self._borrowed_tokens = Counter(
            "pdray_prefix_borrowed_tokens",
            "Prompt tokens whose KV came out of another worker's prefix cache.",
            names,
            registry=registry,
        ).labels(*values)
        self._evictions = total(
            "pdray_prefix_cache_evicted_blocks", "Cached KV blocks given to others."
        )

    def _init_engine(
        self, registry: CollectorRegistry, names: list[str], values: tuple[str, str]
    ) -> None:
        steps = Histogram(
            "pdray_engine_step_seconds",
            "Time of an engine step, by what was in it.",
            [*names, "phase"],
            registry=registry,
            buckets=TOKEN_BUCKETS_S,
        )
        self._prefill_step, self._decode_step, self._mixed_step = (
            steps.labels(*values, phase) for phase in ("prefill", "decode", "mixed")
        )
        tokens = Counter(
            "pdray_engine_tokens", "Tokens computed.", [*names, "phase"], registry=registry
        )
        self._prefill_tokens = tokens.labels(*values, "prefill")
        self._decode_tokens = tokens.labels(*values, "decode")

    def _init_transfer(
        self, registry: CollectorRegistry, names: list[str], values: tuple[str, str]
    ) -> None:
        labels = ["worker_id", "transport", "source_pool", "target_pool"]
        self._transfer_bytes = Counter(
            "pdray_kv_transfer_bytes", "KV bytes read from peers.", labels, registry=registry
        )
        self._transfer_blocks = Counter(
            "pdray_kv_transfer_blocks", "KV blocks read from peers.", labels, registry=registry
        )
        self._hidden_bytes = Counter(
            "pdray_kv_transfer_hidden_bytes",
            "KV bytes that had arrived before the prompt's last chunk was computed.",
            labels,
            registry=registry,
        )
        self._found_blocks = Counter(
            "pdray_kv_transfer_found_blocks",
            "KV blocks of pulled prompts that were in the reader's prefix cache, so not read.",
            names,
            registry=registry,
        ).labels(*values)
        self._found_bytes = Counter(
            "pdray_kv_transfer_found_bytes", "Their bytes.", names, registry=registry
        ).labels(*values)
        self._transfer_s = Histogram(
            "pdray_kv_transfer_seconds",
            "Time of one read of a peer's blocks.",
            labels,
            registry=registry,
            buckets=TRANSFER_BUCKETS_S,
        )
        self._transfer_wait_s = Histogram(
            "pdray_kv_transfer_wait_seconds",
            "Time that a read of a peer's blocks waited for others' reads of the same peer.",
            labels,
            registry=registry,
            buckets=TRANSFER_BUCKETS_S,
        )
        migrations = Counter(
            "pdray_migrations",
            "Running requests that were to leave this worker, by whether they did.",
            [*names, "outcome"],
            registry=registry,
        )
        self._migrations = {
            outcome: migrations.labels(*values, outcome) for outcome in ("moved", "failed")
        }
        self._handoff_s = Histogram(
            "pdray_handoff_seconds",
            "Prefill done to the first decode step that can run.",
            names,
            registry=registry,
            buckets=TRANSFER_BUCKETS_S,
        ).labels(*values)

    def set_queues(self, *, num_running: int, num_waiting: int) -> None:
        self._num_running.set(num_running)
        self._num_waiting.set(num_waiting)

    def set_blocks(self, *, free: int, cached: int, held: int, quarantined: int) -> None:
        """Blocks by state: all there are."""
        total = free + cached + held + quarantined
        self._free.set(free)
        self._cached.set(cached)
        self._held.set(held)
        self._quarantined.set(quarantined)
        self._utilization.set((held + quarantined) / total)

    def set_parked(self, num_prompts: int) -> None:
        self._parked.set(num_prompts)

    def set_snapshot(self, snapshot: WorkerSnapshot) -> None:
        """All gauges from one snapshot, and the counters of the prefix cache."""
        self.set_queues(num_running=snapshot.num_running, num_waiting=snapshot.num_waiting)
        self.set_blocks(
            free=snapshot.num_free_blocks,
            cached=snapshot.num_cached_blocks,
            held=snapshot.num_held_blocks,
            quarantined=snapshot.num_quarantined_blocks,
        )
        self._unaccounted.set(snapshot.num_unaccounted_blocks)
        self._prefix_queries.set(snapshot.prefix_query_tokens)
        self._prefix_hits.set(snapshot.prefix_hit_tokens)
        self._evictions.set(snapshot.num_evicted_blocks)

    def step_finished(
        self, seconds: float, *, num_prefill_tokens: int, num_decode_tokens: int
    ) -> None:
        """An engine step that computed so many tokens of each phase."""
        if num_decode_tokens == 0:
            self._prefill_step.observe(seconds)
        elif num_prefill_tokens == 0:
            self._decode_step.observe(seconds)
        else:
            self._mixed_step.observe(seconds)
        self._prefill_tokens.inc(num_prefill_tokens)
        self._decode_tokens.inc(num_decode_tokens)

    def preempted(self, n: int = 1) -> None:
        self._preemptions.inc(n)

    def transfer_finished(
        self,
        seconds: float,
        *,
        queued_s: float,
        transport: str,
        source_pool: str,
        num_blocks: int,
        num_bytes: int,
        is_hidden: bool,
    ) -> None:
        """A read of a peer's blocks is done; ``is_hidden`` where the prompt's last chunk was
        not yet computed then, so that nobody waited for it."""
        labels = (self._worker_id, transport, source_pool, self._pool)
        self._transfer_s.labels(*labels).observe(seconds)
        self._transfer_wait_s.labels(*labels).observe(queued_s)
        self._transfer_blocks.labels(*labels).inc(num_blocks)
        self._transfer_bytes.labels(*labels).inc(num_bytes)
        self._hidden_bytes.labels(*labels).inc(num_bytes if is_hidden else 0)

    def prefix_borrowed(self, num_tokens: int) -> None:
        """So many that were not in this prefix cache are there now, from another."""
        self._filled_borrows.inc()
        self._borrowed_tokens.inc(num_tokens)

    def prefix_not_borrowed(self) -> None:
        """It was asked for, and has not come."""
        self._vain_borrows.inc()

    def blocks_found(self, *, num_blocks: int, block_bytes: int) -> None:
        """Of a prompt whose KV has come, so many blocks did not have to."""
        self._found_blocks.inc(num_blocks)
        self._found_bytes.inc(num_blocks * block_bytes)

    def migration_ended(self, *, has_moved: bool) -> None:
        """A running request was to leave: it has, or it goes on here."""
        self._migrations["moved" if has_moved else "failed"].inc()

    def handoff_finished(self, seconds: float) -> None:
        """A pulled sequence can decode, ``seconds`` after its prefill was done."""
        self._handoff_s.observe(seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return exposition_text(self._registry)
