"""Workers whose KV blocks cannot be made of each other's: nothing that one computes can move on."""

from __future__ import annotations

from collections.abc import Iterable

from pdray.core.snapshot import WorkerInfo


def layout_mismatch(infos: Iterable[WorkerInfo]) -> str | None:
    """What is unlike, between which workers, and what to do; None where blocks of all of them can
    be converted, whatever their block size, dtype and number of ranks."""
    by_layout: dict[str, list[WorkerInfo]] = {}
    for info in infos:
        by_layout.setdefault(info.layout_digest, []).append(info)
    if len(by_layout) < 2:
        return None
    kinds = "; ".join(_describe(alike) for alike in by_layout.values())
    return (
        f"KV blocks cannot move between unlike workers: {kinds}. The model, its config.json, or "
        "the version of transformers is not the same on these machines"
    )


def _describe(alike: list[WorkerInfo]) -> str:
    places = dict.fromkeys(f"pool {info.pool} on node group {info.node_group}" for info in alike)
    ids = ", ".join(info.worker_id for info in alike)
    layout = alike[0].layout_text.replace("\n", ", ")
    return f"{' and '.join(places)} has {layout} (workers: {ids})"
