"""Two nodes with a network each and a cable between them, where Linux permits network namespaces."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """Where a process of a test runs.

    Attributes:
        address: for the others.
        within: what stands in front of its command.
        environment: that it needs.
    """

    address: str = "127.0.0.1"
    within: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Nodes that reach each other over a cable alone; twice this machine where that is not permitted."""
    holders: list[subprocess.Popen] = []
    try:
        try:
            nodes = _cabled(holders)
        except (OSError, subprocess.CalledProcessError):
            nodes = [Node(), Node()]
        yield nodes
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def _cabled(holders: list[subprocess.Popen]) -> list[Node]:
    nodes = []
    for number in range(2):
        within = nodes[0].within if nodes else ()
        holders.append(_holder(*within, "unshare", *([] if nodes else ["--map-root-user"]), "--net"))
        inside = ("nsenter", f"--target={holders[-1].pid}", "--user", "--preserve-credentials", "--net")
        nodes.append(Node(f"10.83.0.{number + 1}", inside, {"GLOO_SOCKET_IFNAME": f"cable{number}"}))
    _ip(nodes[0], f"link add cable0 type veth peer name cable1 netns {holders[1].pid}")
    for number, node in enumerate(nodes):
        _ip(node, "link set lo up")
        _ip(node, f"address add {node.address}/24 dev cable{number}")
        _ip(node, f"link set cable{number} up")
    return nodes


def _holder(*command: str) -> subprocess.Popen:
    """A process that keeps a network alive."""
    command = (*command, "sh", "-c", "echo; exec sleep 600")
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if holder.stdout.readline() != "\n":
        _, error = holder.communicate()
        raise OSError(error)
    return holder


def _ip(node: Node, command: str) -> None:
    subprocess.run(
        [*node.within, shutil.which("ip") or "/usr/sbin/ip", *command.split()], check=True, capture_output=True
    )
