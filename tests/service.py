"""Two applications of ``mode: service`` in one process, without Ray and without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pdray.config import PdrayConfig, parse_config
from pdray.core.cluster_secret import ClusterSecret, owner_of, read_secrets
from pdray.core.parked import LeaseKey, ParkedPrompt
from pdray.core.placement import WorkerAddress
from pdray.core.request import Request
from pdray.local import LocalCluster
from tests.local_cluster import config_of, until_idle

SECRET = "5" * 64


def phase_config(model_path: Path, secret_file: Path, phase: str, **changes: object) -> PdrayConfig:
    """One worker; ``engine``, ``handles`` and ``pool`` go over what is usual."""
    pooled = config_of(model_path).model_dump(mode="json")
    pool = pooled["pools"][phase] | changes.pop("pool", {})  # type: ignore[operator]
    pool["engine"] |= changes.pop("engine", {})
    handles = {"secret_file": str(secret_file)} | changes.pop("handles", {})  # type: ignore[operator]
    data = pooled | {"mode": "service", "pools": {phase: pool}, "handles": handles}
    return parse_config(data | changes)


@dataclass(frozen=True, slots=True)
class Service:
    prefill: LocalCluster
    decode: LocalCluster
    secrets: tuple[ClusterSecret, ...]

    def claim_of(self, parked: ParkedPrompt) -> tuple[WorkerAddress, LeaseKey]:
        assert parked.lease is not None
        return owner_of(parked.lease, self.secrets), parked.lease.key

    def owner(self, parked: ParkedPrompt) -> WorkerAddress | None:
        return None if parked.lease is None else owner_of(parked.lease, self.secrets)

    async def resume(self, request: Request, parked: ParkedPrompt) -> list[int]:
        tokens: list[int] = []
        async for delta in self.decode.frontend.resume(request, parked, self.owner(parked)):
            tokens += delta.token_ids
        return tokens

    async def until_idle(self) -> None:
        await asyncio.gather(until_idle(self.prefill), until_idle(self.decode))


@asynccontextmanager
async def running_service(
    model_path: Path,
    folder: Path,
    *,
    prefill: dict[str, object] | None = None,
    decode: dict[str, object] | None = None,
) -> AsyncIterator[Service]:
    secret_file = folder / "secret"
    secret_file.write_text(f"{SECRET}\n")
    of_prefill = phase_config(model_path, secret_file, "prefill", **(prefill or {}))
    of_decode = phase_config(model_path, secret_file, "decode", **(decode or {}))
    async with (
        LocalCluster(of_prefill, model_path, frontend_id="prefill-frontend") as prefill_cluster,
        LocalCluster(of_decode, model_path, frontend_id="decode-frontend") as decode_cluster,
    ):
        yield Service(prefill_cluster, decode_cluster, read_secrets(secret_file))
