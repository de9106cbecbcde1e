"""The secret that two applications share, and what they make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdray.core.cluster_secret import ClusterSecret, read_secrets, secret_of_worker
from pdray.core.errors import ConfigError
from pdray.core.request import WorkerId

FIRST, SECOND = "1" * 64, "2" * 64


def test_the_newest_is_first_and_comments_are_none(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"# since May\n{FIRST}\n\n  {SECOND}  \n")
    assert read_secrets(path) == (ClusterSecret(FIRST.encode()), ClusterSecret(SECOND.encode()))


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", f"{FIRST}\nshort\n"])
def test_a_file_without_good_secrets_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    with pytest.raises(ConfigError, match="at least 32 random characters"):
        read_secrets(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secrets(tmp_path / "none")


def test_every_key_is_another() -> None:
    secrets = [ClusterSecret(FIRST.encode()), ClusterSecret(SECOND.encode())]
    ids = [WorkerId("prefill-0-a"), WorkerId("prefill-0-b")]
    keys = [secret.link_key_of(worker_id) for secret in secrets for worker_id in ids]
    keys += [secret.handle_key for secret in secrets]
    assert len(set(keys)) == len(keys)


def test_it_is_known_which_secret_a_worker_has() -> None:
    old, new = ClusterSecret(FIRST.encode()), ClusterSecret(SECOND.encode())
    worker_id = WorkerId("prefill-0-a")
    key = old.link_key_of(worker_id)
    assert secret_of_worker((new, old), worker_id, key) == old
    assert secret_of_worker((new,), worker_id, key) is None


def test_it_is_not_printed() -> None:
    assert FIRST not in repr(ClusterSecret(FIRST.encode()))
