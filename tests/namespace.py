"""A network namespace: another host as far as the network goes, whose cable can be pulled."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest


class Namespace:
    """Joined to this one by a pair of interfaces: ``near`` is ours, with ``near_address``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.near, self.far = f"{name}-n", f"{name}-f"
        self.near_address, self.far_address = "10.213.7.1", "10.213.7.2"
        self.command = ("ip", "netns", "exec", name)

    def make(self) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self.near, "type", "veth", "peer", self.far, "netns", self.name)
        _ip("address", "add", f"{self.near_address}/30", "dev", self.near)
        _ip("-n", self.name, "address", "add", f"{self.far_address}/30", "dev", self.far)
        _ip("link", "set", self.near, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        self.join()

    def cut(self) -> None:
        """Nothing gets through, and nobody is told."""
        _ip("-n", self.name, "link", "set", self.far, "down")

    def join(self) -> None:
        _ip("-n", self.name, "link", "set", self.far, "up")

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self.near)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", self.name)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """Skips the test where the machine does not let us have one."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2's ip is not installed")
    made = Namespace(name)
    made.remove()
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"no network namespaces here: {error.stderr}")
    try:
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
