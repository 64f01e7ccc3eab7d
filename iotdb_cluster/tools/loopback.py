"""`start-cluster.sh` and `stop-cluster.sh`: a cluster of processes on this machine, all on loopback.

`DIR/cluster.json` remembers how many nodes there are, or were, how many of these founded the cluster, the replication
number and the distance of their ports from the defaults; `DIR/node<i>/` holds `conf/`, `logs/`, `node.pid` and `data/`
of node i. A node that was removed from the cluster leaves the file `removed` there, and is not started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from iotdb_cluster.cluster.keys import CLUSTER_FILE
from iotdb_cluster.tools.admin_client import AdminUnreachable, ask
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, DATA_UNUSABLE, DONE, UNREACHABLE
from iotdb_cluster.tools.homes import REMOVED_FILE, is_alive, running_node
from iotdb_cluster.tools.memory import default_memtable_mb

__all__ = ["Loopback", "main"]

ROOT = Path(__file__).parents[2]
FREE_BYTES_MIN = 512 * 1024 * 1024  # of the disk, a node: two log segments, the reserve, and something to write
START_TIMEOUT_S = 60
ADD_TIMEOUT_S = 3_600  # for the data to arrive
STOP_TIMEOUT_S = 30
NODE_CODES = range(1, 5)  # exit codes of a node that are handed on
_KEPT = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED, TERMINATED = 130, 143
NODES_MAX = 64
OFFSETS = (-8_000, 9_800)  # with them every port of every node is one, and those of different kinds stay apart


class CannotStart(Exception):
    """Said to the user as it is; `code` is the exit code."""

    def __init__(self, message: str, code: int = BAD_ARGUMENTS) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the loopback cluster: its directory and ports (design: processes, ports, commands)."""

    number: int
    directory: Path
    offset: int

    @property
    def meta_port(self) -> int:
        return 9003 + 2 * (self.number - 1) + self.offset

    @property
    def data_port(self) -> int:
        return 40010 + 2 * (self.number - 1) + self.offset

    @property
    def client_port(self) -> int:
        return 55560 + self.number - 1 + self.offset

    @property
    def nodetool_port(self) -> int:
        return 31999 + self.number - 1 + self.offset

    @property
    def web_port(self) -> int:
        return 18080 + self.number - 1 + self.offset

    @property
    def needed_ports(self) -> list[int]:
        return [self.meta_port, self.meta_port + 1, self.data_port, self.data_port + 1, self.client_port]

    @property
    def seed(self) -> str:
        return f"127.0.0.1:{self.meta_port}:{self.data_port}:{self.client_port}"

    @property
    def removed(self) -> bool:
        """It has learned that it is no member of the cluster any more."""
        return (self.directory / REMOVED_FILE).exists()

    @property
    def pid(self) -> int | None:
        """The process that runs this node, or None."""
        return running_node(self.directory)


class Loopback:
    """The cluster in one directory; `keys` are written into the property files of nodes that have none yet.

    Raises CannotStart where `cluster.json` is not what was written there.
    """

    def __init__(self, directory: Path, keys: Mapping[str, Any] | None = None) -> None:
        self.directory = directory.resolve()
        self.memory = self.directory / "cluster.json"
        self.keys = dict(keys or {})
        self.nodes = 0
        self.founders = 0
        self.replication = 0
        self.offset = 0
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._said_before: dict[int, int] = {}  # bytes of the console log before the launch
        if self.memory.exists():
            try:
                known = json.loads(self.memory.read_text())
                self.nodes, self.replication = int(known["nodes"]), int(known["replication"])
                self.offset = int(known["port_offset"])
                self.founders = int(known.get("founders", self.nodes))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CannotStart(f"{self.memory} cannot be read: {error!r}", DATA_UNUSABLE) from None

    @property
    def members(self) -> list[Member]:
        """All that there ever were, by number."""
        return [Member(i, self.directory / f"node{i}", self.offset) for i in range(1, self.nodes + 1)]

    @property
    def present(self) -> list[Member]:
        """Those that were not removed, as far as they know."""
        return [member for member in self.members if not member.removed]

    def settle(self, nodes: int | None, replication: int | None, offset: int | None) -> None:
        """Take the numbers given for a new cluster; refuse those that differ from the data's."""
        if not self.nodes:
            self.nodes, self.offset = 3 if nodes is None else nodes, offset or 0
            self.founders = self.nodes
            self.replication = min(3, self.nodes) if replication is None else replication
            if not 1 <= self.nodes <= NODES_MAX:
                raise CannotStart(f"{self.nodes} nodes: a number from 1 to {NODES_MAX} is wanted")
            if self.replication < 1:
                raise CannotStart(f"a replication number of {self.replication}: at least 1 is wanted")
            if not OFFSETS[0] <= self.offset <= OFFSETS[1]:
                raise CannotStart(
                    f"a port offset of {self.offset}: a number from {OFFSETS[0]} to {OFFSETS[1]} is wanted"
                )
            return
        for what, given, known in (
            ("nodes", nodes, len(self.present)),
            ("replicas", replication, self.replication),
            ("port offset", offset, self.offset),
        ):
            if given is not None and given != known:
                raise CannotStart(
                    f"{self.directory} holds a cluster with {what} = {known}, not {given}: leave the number out, "
                    "or give another directory (--data)"
                )

    def start(self) -> list[Member]:
        """Start those that do not run; the ones started. Raises CannotStart, with nothing left running."""
        missing = [member for member in self.present if member.pid is None]
        self._check_room(missing)
        self._check_ports(missing)
        started: list[Member] = []
        try:
            self._remember()
            for member in missing:
                started.append(member)
                self.launch(member)
            self.wait_until_serving()
        except BaseException:
            self.stop(started, quietly=True)
            raise
        return started

    def add(self, timeout_s: float = ADD_TIMEOUT_S) -> Member:
        """One more node: started as one that joins, back when it serves and its data has arrived.

        Raises CannotStart; then the node that was launched is stopped, and forgotten where it was not admitted.
        """
        running = [member for member in self.present if member.pid is not None]
        if not running:
            raise CannotStart(f"no node of {self.directory} runs: start the cluster first", UNREACHABLE)
        if len(self.members) >= NODES_MAX:
            raise CannotStart(f"the directory has had {NODES_MAX} nodes: no more fit between the ports")
        told = self._told(running)
        self.replication = int(told["replication"])
        seeds = [text for _, text, *_ in told["nodes"]]
        for known in self.present:
            if known.pid is None and known.seed not in seeds:  # it was down when it was removed, and does not know
                (known.directory / REMOVED_FILE).write_text("removed while it was down\n")
        self.nodes += 1
        member = self.members[-1]
        try:
            self._check_room([member])
            self._check_ports([member])
            self._remember()
            self.launch(member, seeds)
            self._wait_until_joined(member, running, timeout_s)
        except BaseException:
            self.stop([member], quietly=True)
            if not (member.directory / "data" / "system" / "joined").exists():
                shutil.rmtree(member.directory, ignore_errors=True)
                self.nodes -= 1
                self._remember()
            raise
        return member

    def _told(self, members: Sequence[Member]) -> dict[str, Any]:
        """What the first of the members that answers says of the change of membership under way."""
        failure = "nobody was asked"
        for member in members:
            try:
                answer = ask("127.0.0.1", member.nodetool_port, {"command": "migration"})
            except AdminUnreachable as error:
                failure = str(error)
                continue
            if "error" not in answer and not answer.get("forming"):
                return answer
            failure = str(answer.get("error", "the cluster is being created"))
        raise CannotStart(f"no node of {self.directory} says how the cluster is: {failure}", UNREACHABLE)

    def _wait_until_joined(self, member: Member, others: Sequence[Member], timeout_s: float) -> None:
        serve_by, end = time.monotonic() + START_TIMEOUT_S, time.monotonic() + timeout_s
        while not self._serves(member):
            if self.pid(member) is None:
                child = self._children.get(member.number)
                code = UNREACHABLE if child is None or child.returncode not in NODE_CODES else child.returncode
                raise CannotStart(f"node {member.number} ended: {self._last_word(member)}", code)
            if time.monotonic() > serve_by:
                raise CannotStart(
                    f"node {member.number} does not serve after {START_TIMEOUT_S} s: {self._last_word(member)}",
                    UNREACHABLE,
                )
            time.sleep(0.05)
        said = -1
        while True:
            told = self._told([member, *others])
            if told["change"] is None:
                return
            if told["slots_left"] != said:
                said = told["slots_left"]
                click.echo(f"node {member.number} has joined; {said} slots left to move", err=True)
            if time.monotonic() > end:
                raise CannotStart(
                    f"the data of node {member.number} has not arrived after {timeout_s:.0f} s: "
                    f"{'; '.join(told['waiting']) or told['steps'][:1]}",
                    UNREACHABLE,
                )
            time.sleep(0.2)

    def stop(self, members: list[Member], quietly: bool = False) -> int:
        """End these nodes; how many ran."""
        pids = {member.number: self.pid(member) for member in members}
        running = {number: pid for number, pid in pids.items() if pid is not None}
        for number, pid in running.items():
            if not quietly:
                click.echo(f"stopping node {number} (pid {pid})")
            self._signal(number, pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for number, pid in running.items():
            while self._runs(number, pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            if self._runs(number, pid):
                click.echo(f"node {number} does not end within {STOP_TIMEOUT_S} s: killing it", err=True)
                self._signal(number, pid, signal.SIGKILL)
                while self._runs(number, pid):
                    time.sleep(0.02)
        return len(running)

    def pid(self, member: Member) -> int | None:
        """The process that runs a node, also one that was launched just now and has no pid file yet; or None."""
        child = self._children.get(member.number)
        return child.pid if child is not None and child.poll() is None else member.pid

    def _runs(self, number: int, pid: int) -> bool:
        child = self._children.get(number)
        return child.poll() is None if child is not None and child.pid == pid else is_alive(pid)

    def _signal(self, number: int, pid: int, what: signal.Signals) -> None:
        if self._runs(number, pid):
            with contextlib.suppress(ProcessLookupError):  # it ended in between: what was wanted
                os.kill(pid, what)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        known = {
            "version": 1,
            "nodes": self.nodes,
            "founders": self.founders,
            "replication": self.replication,
            "port_offset": self.offset,
        }
        temporary = self.memory.with_suffix(".new")
        temporary.write_text(json.dumps(known) + "\n")
        temporary.replace(self.memory)

    def _check_room(self, missing: list[Member]) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotStart(f"the data directory cannot be made: {error}", DATA_UNUSABLE) from None
        free = shutil.disk_usage(self.directory).free
        if free < FREE_BYTES_MIN * max(1, len(missing)):
            raise CannotStart(
                f"{self.directory} has {free >> 20} MiB free; {FREE_BYTES_MIN >> 20} MiB a node are needed",
                DATA_UNUSABLE,
            )

    def _check_ports(self, missing: list[Member]) -> None:
        taken = [f"{port} (node {member.number})" for member in missing for port in member.needed_ports if _taken(port)]
        if taken:
            raise CannotStart(
                f"taken ports on 127.0.0.1: {', '.join(taken)}. Another cluster may be running: stop it "
                "(stop-cluster.sh --data ITS_DIRECTORY), or use other ports (--port-offset 1000)"
            )
        for member in missing:
            for what, port in (("nodetool", member.nodetool_port), ("web", member.web_port)):
                if _taken(port):
                    click.echo(f"warning: port {port} is taken: node {member.number} runs without {what}", err=True)

    def launch(self, member: Member, joins: Sequence[str] = ()) -> None:
        """Start the process of one node and return at once; `joins`: the seeds that it asks to be admitted."""
        conf = member.directory / "conf"
        conf.mkdir(parents=True, exist_ok=True)
        (member.directory / "logs").mkdir(exist_ok=True)
        seeds = ",".join(joins or [founder.seed for founder in self.members[: self.founders]])
        lines = {
            "cluster_rpc_ip": "127.0.0.1",
            "internal_meta_port": member.meta_port,
            "internal_data_port": member.data_port,
            "cluster_rpc_port": member.client_port,
            "nodetool_port": member.nodetool_port,
            "web_port": member.web_port,
            "seed_nodes": seeds,
            "default_replica_num": self.replication,
            "memtable_memory_mb": default_memtable_mb(len(self.members)),
            **self.keys,
        }
        file = conf / CLUSTER_FILE
        if not file.exists():
            file.write_text("# Written by start-cluster.sh; keys: docs/configuration.md\n"
                            + "".join(f"{key}={value}\n" for key, value in lines.items()))  # fmt: skip
        with (member.directory / "logs" / "console.log").open("ab") as console, _signals_wait():
            self._said_before[member.number] = console.tell()
            self._children[member.number] = subprocess.Popen(
                [sys.executable, "-m", "iotdb_cluster.tools.node", "-c", str(conf), "-home", str(member.directory)]
                + (["-a"] if joins else []),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "2"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def wait_until_serving(self, members: Sequence[Member] | None = None) -> None:
        """All, or these. Raises CannotStart where a node ends, or does not serve in time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = {member.number: member for member in (self.present if members is None else members)}
        while waiting:
            for number, member in list(waiting.items()):
                if self._serves(member):
                    del waiting[number]
                elif self.pid(member) is None and member.removed:
                    click.echo(f"node {number} is left out: {self._last_word(member)}", err=True)
                    del waiting[number]
                elif self.pid(member) is None:
                    child = self._children.get(number)
                    code = UNREACHABLE if child is None or child.returncode not in NODE_CODES else child.returncode
                    raise CannotStart(f"node {number} ended: {self._last_word(member)}", code)
            if waiting and time.monotonic() > deadline:
                who = ", ".join(f"node {number}: {self._last_word(member)}" for number, member in waiting.items())
                raise CannotStart(f"not serving after {START_TIMEOUT_S} s: {who}", UNREACHABLE)
            time.sleep(0.05)

    def _last_word(self, member: Member) -> str:
        """What the node said last since its launch, and why."""
        with contextlib.suppress(OSError), (member.directory / "logs" / "console.log").open("rb") as console:
            console.seek(self._said_before.get(member.number, 0))
            lines = console.read().decode(errors="replace").strip().splitlines()
            failures = [line for line in lines if " ERROR " in line or " CRITICAL " in line]
            if "Traceback" in "".join(lines):
                return f"{': '.join(dict.fromkeys([*failures[-1:], lines[-1]]))} (all of it in {console.name})"
            if lines:
                return (failures or lines)[-1]
        return f"it left no word in {member.directory / 'logs'}"

    def _serves(self, member: Member) -> bool:
        try:
            answer = ask("127.0.0.1", member.nodetool_port, {"command": "health"}, timeout_s=2)
        except AdminUnreachable:
            answer = {}
        if answer.get("client_port") == member.client_port:
            return bool(answer.get("serving"))
        if member.number in self._children:  # another has the nodetool port: the node's own word
            with (member.directory / "logs" / "console.log").open("rb") as console:
                console.seek(self._said_before[member.number])
                return f"serves clients on port {member.client_port}".encode() in console.read()
        return member.pid is not None and _taken(member.client_port)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Keep SIGINT and SIGTERM until the end of the block: a process that was started must be known before they act."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {what: signal.signal(what, lambda number, _: came.append(number)) for what in _KEPT}
    try:
        yield
    finally:
        for what, handler in before.items():
            signal.signal(what, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@click.group()
def main() -> None:
    """A cluster on this machine."""


@main.command()
@click.argument("nodes", type=int, required=False)
@click.option("--replication", type=int, help="Replicas of every slot (default: 3, or the number of nodes).")
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option("--port-offset", type=int, help="Added to every default port (default 0).")
@click.option("--add", is_flag=True, help="One more node; return when it has joined and its data has arrived.")
def start(nodes: int | None, replication: int | None, data: Path, port_offset: int | None, add: bool) -> None:
    """Start those of NODES (default 3) loopback nodes that do not run; return when all serve."""
    cluster = Loopback(data)
    began = time.monotonic()
    if add:
        if (nodes, replication, port_offset) != (None, None, None):
            raise click.UsageError("--add takes no numbers: the node joins the cluster as it is")
        if not cluster.nodes:
            raise CannotStart(f"{cluster.directory} holds no cluster: start one first")
        member = cluster.add()
        click.echo(f"node {member.number} has joined and has its data, after {time.monotonic() - began:.1f} s")
        click.echo(f"clients connect to 127.0.0.1, port {member.client_port} too; nodetool port {member.nodetool_port}")
        return
    cluster.settle(nodes, replication, port_offset)
    started = cluster.start()
    _tell(cluster, len(started), time.monotonic() - began, "" if data == Path("data") else f" --data {data}")


def _tell(cluster: Loopback, started: int, seconds: float, suffix: str) -> None:
    """What runs now, and how to go on."""
    present = cluster.present
    ports = ", ".join(str(member.client_port) for member in present)
    if started:
        click.echo(f"{started} of {len(present)} nodes started in {seconds:.1f} s")
    else:
        click.echo(f"all {len(present)} nodes are running")
    click.echo(f"clients connect to 127.0.0.1, port {ports} (any of them), user root, password root")
    click.echo(f"replication {cluster.replication}; data and logs in {cluster.directory}/node1 .. node{cluster.nodes}")
    first = present[0]
    click.echo(
        "next:  .venv/bin/python examples/quickstart.py" + (f" --port {first.client_port}" if cluster.offset else "")
    )
    click.echo("       sbin/start-cli.sh" + (f" -p {first.client_port}" if cluster.offset else ""))
    click.echo(f"       sbin/nodetool.sh -p {first.nodetool_port} status")
    click.echo(f"       sbin/stop-cluster.sh{suffix}")


@main.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
def stop(data: Path) -> None:
    """Stop what runs there."""
    cluster = Loopback(data)
    count = cluster.stop(cluster.members)
    click.echo(f"{count} nodes stopped" if count else "nothing runs there")


def run(words: Sequence[str] | None = None) -> int:
    """The exit code; a wrong word on the command line is one of 1, as the documents promise."""
    command = list(sys.argv[1:] if words is None else words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what was started is ended first
    try:
        main.main(args=command, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return BAD_ARGUMENTS
    except click.exceptions.Exit as error:
        return error.exit_code
    except CannotStart as error:
        click.echo(f"{command[0]}-cluster: {error}", err=True)
        return error.code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: what was started is ended", err=True)
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(run())
