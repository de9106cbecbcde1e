"""The secret that the applications of one cluster share, and the keys that are made of it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pdray.core.errors import ConfigError, HandleProblem, HandleRefusedError
from pdray.core.parked import ParkedLease
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId

MIN_SECRET_CHARS = 32
_ID_CHARS = 16


@dataclass(frozen=True, slots=True)
class ClusterSecret:
    """No key made of it says anything about another, nor about the secret."""

    _secret: bytes = field(repr=False)

    @property
    def secret_id(self) -> str:
        """Names it, and says nothing about it."""
        return self._derive(b"id").hex()[:_ID_CHARS]

    @property
    def handle_key(self) -> bytes:
        """Signs KV handles."""
        return self._derive(b"kv handle")

    def link_key_of(self, worker_id: WorkerId) -> bytes:
        """Opens this worker's link. A worker's id names one life of it, and so does its key."""
        return self._derive(b"link", worker_id.encode())

    def _derive(self, *purpose: bytes) -> bytes:
        return hmac.digest(self._secret, b"pdray\0" + b"\0".join(purpose), hashlib.sha256)


def read_secrets(path: Path) -> tuple[ClusterSecret, ...]:
    """One on each line, the newest first: that one is used for what is made now, all of them are
    taken. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    secrets = [text for line in lines if (text := line.strip()) and not text.startswith("#")]
    if not secrets or min(map(len, secrets)) < MIN_SECRET_CHARS:
        raise ConfigError(
            f"{path}: should have one secret on each line, of at least {MIN_SECRET_CHARS} random "
            "characters (openssl rand -hex 32), the newest first"
        )
    return tuple(ClusterSecret(secret.encode()) for secret in secrets)


def newest_secret(secret_file: str | None) -> ClusterSecret | None:
    """None where there is no file. Raises ConfigError."""
    return None if secret_file is None else read_secrets(Path(secret_file))[0]


def owner_of(lease: ParkedLease, secrets: Sequence[ClusterSecret]) -> WorkerAddress:
    """Where the lease's owner can be dialled. Raises HandleRefusedError where the secret that it
    was started with is not among these."""
    for secret in secrets:
        if secret.secret_id == lease.secret_id:
            return WorkerAddress(
                worker_id=lease.owner_id,
                host=lease.owner_host,
                port=lease.owner_port,
                link_key=secret.link_key_of(lease.owner_id),
            )
    raise HandleRefusedError(
        f"kv_handle: its worker {lease.owner_id} has a cluster secret that is not taken here",
        problem=HandleProblem.FORGED,
    )
