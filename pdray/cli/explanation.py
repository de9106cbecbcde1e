"""An explanation of a placement, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pdray.core.placement import Refusal
from pdray.event_log.explain import Explanation, WorkerInputs
from pdray.policy.placement.base import Candidate


def show(console: Console, explanation: Explanation) -> None:
    answer = explanation.answer
    console.print(f"[bold]{answer.request_id}[/]: {_came(explanation)}")
    if isinstance(answer, Refusal):
        console.print(f"refused: {answer.reason}")
    else:
        decodes = [each.worker_id for each in answer.decode_candidates]
        prefill = None if answer.prefill is None else answer.prefill.worker_id
        if answer.together is None:
            console.print(f"prompt on {prefill}, decode on {', else '.join(decodes)}")
        else:
            console.print(f"prompt and decode on {prefill}: {answer.together}")
        if (source := answer.prefix_source) is not None:
            console.print(
                f"the first {source.num_tokens} tokens' KV from {source.address.worker_id}"
            )
    if explanation.candidates:
        console.print(f"\n[bold]what {explanation.policy} chose from[/], the best first")
        console.print(_candidates_table(explanation.candidates))
        console.print("[bold]what it knew[/]")
        console.print(_workers_table(explanation.workers))


def _came(explanation: Explanation) -> str:
    ask = explanation.ask
    if ask is None or explanation.asked_at is None:
        return "came before the oldest part of the log"
    waited_ms = 1e3 * (explanation.answered_at - explanation.asked_at)
    session = "" if ask.session_id is None else f", session {ask.session_id}"
    return (
        f"{ask.num_prompt_tokens} prompt tokens, max_tokens {ask.max_tokens}, "
        f"priority {ask.priority}{session}; answered after {waited_ms:.0f} ms"
    )


def _candidates_table(candidates: Sequence[Candidate]) -> Table:
    table = _table("prefill", "decode", "together")
    for name in ("queue ms", "TTFT ms", "handoff ms", "ITL ms", "cost"):
        table.add_column(name, justify="right")
    for each in candidates:
        table.add_row(
            each.prefill_id or "-",
            " ".join(each.decode_ids) or "-",
            each.together or "-",
            *map(_ms, (each.queue_s, each.ttft_s, each.handoff_s, each.itl_s)),
            f"{each.cost:.4g}",
        )
    return table


def _workers_table(workers: Sequence[WorkerInputs]) -> Table:
    table = _table("worker", "role")
    for name in ("prompt tokens queued", "decoding", "KV used", "cached tokens", "step ms"):
        table.add_column(name, justify="right")
    table.add_column("ms per prompt token", justify="right")
    for each in workers:
        step_time = each.step_time
        table.add_row(
            each.worker_id,
            str(each.role.name).lower(),
            str(each.prefill_backlog_tokens),
            str(each.num_decoding),
            f"{each.kv_utilization:.0%}",
            str(each.num_cached_tokens),
            _ms(None if step_time is None else step_time.base_s + step_time.decode_s),
            _ms(None if step_time is None else step_time.prefill_token_s),
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"
