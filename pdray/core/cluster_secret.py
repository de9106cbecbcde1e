"""The secret that the applications of one cluster share, and the keys that are made of it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pdray.core.errors import ConfigError
from pdray.core.request import WorkerId

MIN_SECRET_CHARS = 32


@dataclass(frozen=True, slots=True)
class ClusterSecret:
    """No key made of it says anything about another, nor about the secret."""

    _secret: bytes = field(repr=False)

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


def secret_of_worker(
    secrets: Sequence[ClusterSecret], worker_id: WorkerId, link_key: bytes
) -> ClusterSecret | None:
    """The secret that this worker was started with; None where it is not among them any more."""
    for secret in secrets:
        if hmac.compare_digest(secret.link_key_of(worker_id), link_key):
            return secret
    return None
