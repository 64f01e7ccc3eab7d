"""A cluster of real processes for tests: started on ports and data of its own, ended by process id.

with Processes(tmp_path) as cluster:
    cluster.ports, cluster.kill(2), cluster.launch(2), cluster.wait()
"""

import atexit
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iotdb_cluster.tools.loopback import Loopback, Member

ROOT = Path(__file__).parents[2]
# The distance of two offsets: no test has nodes for more ports of a kind. Ports for clients lie above those that the
# system usually gives to connections, see also _held.
PORTS_OF_A_KIND = 20
OFFSETS = range(5_440, 9_000, PORTS_OF_A_KIND)
KEYS = {"max_raft_log_persist_data_size_per_file": 8_388_608, "disk_free_min_bytes": 1_048_576}
ELSEWHERE = (9003, 18080, 55560)  # meta, web, clients
AMONG_CONNECTIONS = (31999, 40010)  # nodetool, data: the system draws ports for connections from around these
# Bound sockets, by offset, to the end of this process: a node may listen where one is bound (SO_REUSEADDR), and the
# system gives such a port to no connection. A node that starts late, or again, finds its ports free.
_held: dict[int, list[socket.socket]] = {}


def free_offset() -> int:
    """A distance from the default ports at which every port of a small cluster is free, and stays so.

    Workers of one test run have offsets of their own, so that two that ask at once do not meet.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    offsets = list(OFFSETS)[worker % 8 :: 8]
    random.Random(f"{os.getpid()} {time.monotonic_ns()}").shuffle(offsets)
    for offset in offsets:
        probes, kept = _bound(ELSEWHERE, offset), _bound(AMONG_CONNECTIONS, offset)
        if probes and kept:
            _close([*probes, *_held.pop(offset, [])])
            _held[offset] = kept
            return offset
        _close([*probes, *kept])
    raise RuntimeError(f"no distance of {list(OFFSETS)} has all its ports free")


def _bound(bases: tuple[int, ...], offset: int) -> list[socket.socket]:
    """Sockets bound to the ports of these kinds; none where one of them is taken."""
    bound: list[socket.socket] = []
    for port in (base + offset + i for base in bases for i in range(PORTS_OF_A_KIND)):
        probe = socket.socket()
        bound.append(probe)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            _close(bound)
            return []
    return bound


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


@atexit.register
def _release() -> None:
    _close(itertools.chain(*_held.values()))


class Processes:
    """The nodes of one directory; nodes are named by their number, from 1."""

    def __init__(self, directory: Path, nodes: int = 3, replication: int | None = None, **keys: Any) -> None:
        self.directory = directory
        self.loopback = Loopback(directory, {**KEYS, **keys})
        self.loopback.settle(nodes, replication, free_offset())
        self.started_s = 0.0

    def __enter__(self) -> "Processes":
        began = time.monotonic()
        self.loopback.start()
        self.started_s = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def members(self) -> list[Member]:
        return self.loopback.members

    @property
    def ports(self) -> list[int]:
        """Where clients connect, by node."""
        return [member.client_port for member in self.members]

    def member(self, number: int) -> Member:
        return self.members[number - 1]

    def pid(self, number: int) -> int | None:
        return self.loopback.pid(self.member(number))

    def kill(self, number: int) -> None:
        """kill -9, and wait until it is gone; nothing where the node does not run."""
        pid = self.pid(number)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            while self.pid(number) is not None:
                time.sleep(0.005)

    def launch(self, *numbers: int) -> None:
        """Start processes and return at once."""
        for number in numbers:
            self.loopback.launch(self.member(number))

    def wait(self) -> None:
        """Until every node serves."""
        self.loopback.wait_until_serving()

    def wait_for(self, number: int) -> None:
        """Until one node serves."""
        self.loopback.wait_until_serving([self.member(number)])

    def add(self, timeout_s: float = 120) -> int:
        """One more node that joins, with its data; its number."""
        return self.loopback.add(timeout_s).number

    def remove(self, number: int, *, through: int, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Remove a node, dead or alive, asking another one, and wait until it has left."""
        seed, port = self.member(through).seed, str(self.member(number).meta_port)
        words = ["127.0.0.1", port, "-seed_nodes", seed, "-home", str(self.directory), "-t", str(timeout_s)]
        run = run_tool("remove", *words, timeout_s=timeout_s + 30)
        if run.returncode:
            raise RuntimeError(f"node {number} is not removed ({run.returncode}): {run.stdout}{run.stderr}")
        return run

    def stop(self) -> None:
        """End what runs, cleanly."""
        self.loopback.stop(self.members, quietly=True)

    def nodetool(self, *words: str, node: int = 1, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        port = str(self.member(node).nodetool_port)
        return run_tool("nodetool", "-p", port, *words, timeout_s=timeout_s)

    def log(self, number: int) -> str:
        """All that the node has said."""
        try:
            return (self.member(number).directory / "logs" / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def complaints(self) -> list[str]:
        """Lines of the nodes' logs that no test should see: errors and tracebacks."""
        words = (" ERROR ", " CRITICAL ", "Traceback ", "never awaited", "never retrieved")
        return [
            f"node {member.number}: {line}"
            for member in self.members
            for line in self.log(member.number).splitlines()
            if any(word in line for word in words)
        ]

    def tails(self, lines: int = 25) -> str:
        """The end of each node's log, for the report of a failure."""
        parts = []
        for member in self.members:
            parts.append(f"--- node {member.number} (pid {self.pid(member.number)})")
            parts += self.log(member.number).splitlines()[-lines:]
        return "\n".join(parts)


def run_tool(name: str, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """A command of `iotdb_cluster.tools`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"iotdb_cluster.tools.{name}", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def concluded(target: str, directory: Path, figures: dict[str, Any], *, seed: int, began: float, keep: bool) -> int:
    """The end of a long form: data are removed unless they are wanted, the JSON line is printed; the exit code.

    `figures` holds `ok`; `began` is of `time.monotonic`.
    """
    if keep or not figures["ok"]:
        print(f"data and logs are kept in {directory}", file=sys.stderr)
    else:
        shutil.rmtree(directory)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    facts = {"seed": seed, "commit": commit.stdout.strip(), "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps({"target": target, **figures, **facts}))
    return 0 if figures["ok"] else 1
