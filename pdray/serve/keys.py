"""API keys and whose they are: a YAML file of hashes, one entry for each key.

A key has 256 random bits, so its plain SHA-256 tells nobody what it is: salt and slow hashes guard
what people think up, and would cost every request their time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pdray.config_report import config_error, validation_problems
from pdray.config_sections import Name, Section
from pdray.config_yaml import read_yaml
from pdray.core.errors import AuthenticationError, ConfigError

logger = logging.getLogger(__name__)

KEY_PREFIX = "pdray-"
_KEY_BYTES = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """A tenant may have several keys, so that one can follow another."""

    tenant: str
    digest: bytes

    @property
    def line(self) -> str:
        """What stands in the file."""
        return f"- {{tenant: {self.tenant}, sha256: {self.digest.hex()}}}"


class _Entry(Section):
    tenant: Name
    sha256: str


def new_key(tenant: str) -> tuple[str, KeyEntry]:
    """The key, which is the tenant's alone, and its entry. Raises ConfigError for a bad name."""
    try:
        TypeAdapter(Name).validate_python(tenant)
    except ValidationError as error:
        raise config_error("--tenant", [f"{tenant!r}: {_words(error)}"]) from None
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, KeyEntry(tenant=tenant, digest=digest_of(key))


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def read_keys(path: Path) -> list[KeyEntry]:
    """Raises ConfigError for what is no list of entries, or an empty one."""
    data = read_yaml(path)
    if not isinstance(data, list) or not data:
        raise config_error(
            str(path), ["holds no list of {tenant, sha256}; `pdray key new` makes entries"]
        )
    return [_entry(path, index, item) for index, item in enumerate(data)]


def _entry(path: Path, index: int, item: object) -> KeyEntry:
    source = f"{path}: entry {index + 1}"
    try:
        entry = _Entry.model_validate(item)
    except ValidationError as error:
        raise config_error(source, validation_problems(error, _Entry)) from None
    if not _SHA256.fullmatch(entry.sha256):
        raise config_error(source, ["sha256: should have 64 digits of 0-9a-f, of `pdray key new`"])
    return KeyEntry(tenant=entry.tenant, digest=bytes.fromhex(entry.sha256))


def _words(error: ValidationError) -> str:
    return error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")


def tenant_of(key: str, entries: Sequence[KeyEntry]) -> str | None:
    """None for an unknown key. Takes as long whichever entry it is, and whether one is."""
    digest, tenant = digest_of(key), None
    for entry in entries:
        if hmac.compare_digest(digest, entry.digest):
            tenant = entry.tenant
    return tenant


class KeyRing:
    """The keys of one file. A changed file counts from the next request on; one that cannot be
    read any more, or is no good, leaves the keys as they were. Raises ConfigError when made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._entries = read_keys(path)

    def tenant_of(self, authorization: str | None) -> str:
        """By the header's value. Raises AuthenticationError."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise AuthenticationError(
                "no API key; accepted: the header Authorization: Bearer KEY, as OpenAI's clients "
                "send it"
            )
        self._look_again()
        tenant = tenant_of(key.strip(), self._entries)
        if tenant is None:
            raise AuthenticationError("this API key is not known here")
        return tenant

    def _look_again(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._entries = read_keys(self._path)
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)

    def _stamp(self) -> tuple[int, int, int] | None:
        """What is another whenever the file is; None where there is none."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
