"""The secret that two applications share, and what they make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdray.core.cluster_secret import ClusterSecret, owner_of, read_secrets
from pdray.core.errors import ConfigError, HandleRefusedError
from pdray.core.parked import LeaseKey, ParkedLease
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
    assert secrets[0].secret_id != secrets[1].secret_id


def test_a_leases_owner_is_dialled_with_the_secret_that_it_was_started_with() -> None:
    old, new = ClusterSecret(FIRST.encode()), ClusterSecret(SECOND.encode())
    lease = ParkedLease(
        key=LeaseKey(lease_id="w/0", secret=b"s"),
        secret_id=old.secret_id,
        owner_id=WorkerId("w"),
        owner_host="10.0.0.7",
        owner_port=1234,
        layout_digest="layout",
    )
    address = owner_of(lease, (new, old))
    assert address.link_key == old.link_key_of(WorkerId("w"))
    assert (address.worker_id, address.host, address.port) == ("w", "10.0.0.7", 1234)
    with pytest.raises(HandleRefusedError, match="not taken here"):
        owner_of(lease, (new,))


def test_it_is_not_printed() -> None:
    assert FIRST not in repr(ClusterSecret(FIRST.encode()))
