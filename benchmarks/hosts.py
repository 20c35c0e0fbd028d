"""Two "machines" on one: network namespaces with addresses of their own, for trying what runs across a network. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@contextlib.contextmanager
def hosts() -> Iterator[list[str]]:
    """Yield the names of two namespaces that reach each other as ADDRESSES. Raises OSError where none can be made."""
    names = [f"llm{os.getpid()}{letter}" for letter in "ab"]
    links = [f"v{name[-8:]}" for name in names]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add {links[0]} type veth peer name {links[1]}"]
    for name, link, address in zip(names, links, ADDRESSES, strict=True):
        commands += [f"ip link set {link} netns {name}", f"ip -n {name} addr add {address}/24 dev {link}"]
        commands += [f"ip -n {name} link set {link} up", f"ip -n {name} link set lo up"]
    try:
        for command in commands:
            result = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if result.returncode:
                raise OSError(f"{command}: {result.stderr.strip()}")
        yield names
    finally:
        with contextlib.suppress(FileNotFoundError):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
