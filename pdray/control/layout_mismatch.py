"""Workers whose KV blocks cannot be each other's: nothing that one computes can move on."""

from __future__ import annotations

from collections.abc import Iterable

from pdray.core.snapshot import WorkerInfo

_DIGEST_CHARS = 8


def layout_mismatch(infos: Iterable[WorkerInfo]) -> str | None:
    """What is unlike, between which workers, and what to do; None where all have one layout."""
    by_layout: dict[str, list[WorkerInfo]] = {}
    for info in infos:
        by_layout.setdefault(info.layout_digest, []).append(info)
    if len(by_layout) < 2:
        return None
    kinds = "; ".join(_describe(alike) for alike in by_layout.values())
    dtypes = {info.dtype for alike in by_layout.values() for info in alike}
    return f"KV blocks cannot move between unlike workers: {kinds}. {_remedy(dtypes)}"


def _describe(alike: list[WorkerInfo]) -> str:
    places = dict.fromkeys(f"pool {info.pool} on node group {info.node_group}" for info in alike)
    ids = ", ".join(info.worker_id for info in alike)
    layout = f"dtype {alike[0].dtype}, KV layout {alike[0].layout_digest[:_DIGEST_CHARS]}"
    return f"{' and '.join(places)} has {layout} (workers: {ids})"


def _remedy(dtypes: set[str]) -> str:
    if len(dtypes) == 1:
        return (
            "Their dtype is the same: the model's config.json, or the version of transformers, "
            "is not the same on these machines"
        )
    named = " or ".join(f"dtype: {dtype}" for dtype in sorted(dtypes))
    return (
        "dtype: auto takes what suits each machine: set one for all of them at the top of the "
        f"config, {named}"
    )
