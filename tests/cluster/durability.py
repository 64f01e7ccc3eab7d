"""Writers through every node while nodes are killed: what was acknowledged must be there afterwards, everywhere.

    python tests/cluster/durability.py --minutes 5 --seed 1

starts three nodes on ports and data of their own, writes through all of them (tablets, records, SQL), and again and
again kills one node or all of them (-9), in the midst of FLUSH too, and starts them. At the end each acknowledged point
is asked for through every port, and the digests of the replicas are compared. Prints one JSON object as its last line;
exit 0 only where nothing is missing.
"""

import argparse
import itertools
import json
import logging
import random
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

KINDS = ("tablet", "records", "sql")
ROWS = 20  # of a tablet, and of a call of records
WAIT_S_MAX = 5.0  # no write through a living node may wait longer
WEEK_MS = 604_800_000
DOUBLE = 4
PROBLEMS_SHOWN = 12


@dataclass
class Written:
    """What became of one writer's points: time -> value. A value is never written twice."""

    device: str
    acknowledged: dict[int, float] = field(default_factory=dict)
    attempted: dict[int, float] = field(default_factory=dict)


@dataclass
class Call:
    """One write call: which node, when, and whether it was acknowledged."""

    node: int
    began: float
    ended: float
    ok: bool
    error: str = ""


class Writer(threading.Thread):
    """Writes through one node without a pause, each point once; goes on after whatever fails."""

    def __init__(self, trial: "Trial", node: int, kind: str, number: int) -> None:
        super().__init__(daemon=True)
        self._trial = trial
        self.node = node
        self._port = trial.cluster.ports[node - 1]
        self._kind = kind
        self._random = random.Random(f"{trial.seed} {number}")
        self._next = itertools.count(1)
        self._values = itertools.count(number * 1_000_000_000)
        self._peer: Any = None
        self.written = Written(f"root.dur{number % 4}.w{number}")
        self.calls: list[Call] = []

    def run(self) -> None:
        while not self._trial.stopped.is_set():
            self._trial.running.wait()
            self._one_call()
        self._drop()

    def _one_call(self) -> None:
        rows = 1 if self._kind == "sql" else ROWS
        # every fourth row lies in a later week, in another group's slot
        times = [n + (n % 4 == 0) * WEEK_MS * (n % 3) for n in itertools.islice(self._next, rows)]
        points = dict(zip(times, map(float, itertools.islice(self._values, rows)), strict=True))
        began = time.monotonic()
        try:
            if self._peer is None:
                self._peer = self._trial.connect(self._port)
                began = time.monotonic()  # logging in is no write
            self.written.attempted.update(points)
            bad = self._trial.replay.first_bad(self._send(points))
            error = "" if bad is None else f"{bad.code}: {bad.message}"
        except Exception as failed:  # whatever the client's libraries raise when the node goes away
            self._drop()
            error = repr(failed)
        call = Call(self.node, began, time.monotonic(), not error, error)
        self.calls.append(call)
        if call.ok:
            self.written.acknowledged.update(points)
        else:
            time.sleep(0.05)

    def _send(self, points: dict[int, float]) -> Any:
        peer, types, device = self._peer, self._peer.types, self.written.device
        if self._kind == "sql":
            ((when, value),) = points.items()
            sql = f"INSERT INTO {device}(timestamp, v) VALUES ({when}, {value})"
            return peer.client.executeStatement(
                types.TSExecuteStatementReq(peer.session, sql, peer.statement, 1000)
            ).status
        if self._kind == "records":
            values = [struct.pack(">bd", DOUBLE, value) for value in points.values()]
            count = len(points)
            return peer.client.insertRecords(
                types.TSInsertRecordsReq(peer.session, [device] * count, [["v"]] * count, values, list(points))
            )
        count = len(points)
        return peer.client.insertTablet(
            types.TSInsertTabletReq(
                peer.session, device, ["v"], struct.pack(f">{count}d", *points.values()),
                struct.pack(f">{count}q", *points), [DOUBLE], count,
            )
        )  # fmt: skip

    def _drop(self) -> None:
        if self._peer is not None:
            self._peer.transport.close()
            self._peer = None


class Trial:
    """Writers on a running cluster, and what is done to it meanwhile."""

    def __init__(self, cluster: Any, replay: ModuleType, seed: int = 1) -> None:
        logging.getLogger("thrift").setLevel(logging.CRITICAL)  # that a killed node refuses connections is no news
        self.cluster = cluster
        self.replay = replay
        self.seed = seed
        self.random = random.Random(seed)
        self.stopped = threading.Event()
        self.running = threading.Event()
        self.down: list[tuple[int, float, float]] = []  # node, killed, serving again
        nodes = range(1, len(cluster.ports) + 1)
        self.writers = [
            Writer(self, node, kind, number) for number, (node, kind) in enumerate(itertools.product(nodes, KINDS))
        ]

    def connect(self, port: int) -> Any:
        return self.replay.Peer("127.0.0.1", port, {})

    def begin(self) -> None:
        peer = self.connect(self.cluster.ports[0])
        for writer in self.writers:
            made = peer.answer(f"CREATE TIMESERIES {writer.written.device}.v WITH DATATYPE=DOUBLE, ENCODING=GORILLA")
            if made != ["ok"]:
                raise RuntimeError(f"{writer.written.device}: {made}")
        peer.close()
        self.running.set()
        for writer in self.writers:
            writer.start()

    def end(self) -> None:
        """Stop the writers; the calls that are under way come to their end."""
        self.stopped.set()
        self.running.set()
        for writer in self.writers:
            writer.join(60)
            if writer.is_alive():
                raise RuntimeError(f"a write of {writer.written.device} does not come to an end")

    # --- what is done to the nodes ------------------------------------------------------------------------------------

    def kill_and_restart(self, *nodes: int, pause_s: float = 1.0) -> None:
        """kill -9 of these at once; started again in the order given."""
        killed = time.monotonic()
        for node in sorted(nodes):
            self.cluster.kill(node)
        time.sleep(pause_s)
        for node in nodes:
            self.cluster.launch(node)
            time.sleep(self.random.uniform(0, 0.3) if len(nodes) > 1 else 0)
        self.cluster.wait()
        self.down += [(node, killed, time.monotonic()) for node in nodes]

    def stop_and_start(self) -> None:
        """A clean stop of all, and a start."""
        began = time.monotonic()
        self.cluster.stop()
        self.cluster.loopback.start()
        self.down += [(member.number, began, time.monotonic()) for member in self.cluster.members]

    def kill_during_flush(self, node: int) -> None:
        """kill -9 of a node while FLUSH, asked of it, is under way."""
        peer = self.connect(self.cluster.ports[node - 1])

        def flush() -> None:
            try:
                peer.answer("FLUSH")
            except Exception as ended:  # the node is killed under it: any way to end is right
                print(f"FLUSH ended with {type(ended).__name__}", file=sys.stderr)

        flusher = threading.Thread(target=flush)
        flusher.start()
        time.sleep(self.random.uniform(0, 0.1))
        self.kill_and_restart(node, pause_s=0.2)
        flusher.join()
        peer.transport.close()

    # --- what must hold -----------------------------------------------------------------------------------------------

    def verify(self) -> dict[str, Any]:
        """Figures; how many promises were broken (`problems`), with examples."""
        problems: list[str] = []
        for port in self.cluster.ports:
            problems += self._missing(port)
        problems += self._slow()
        problems += self._unequal()
        problems += self.cluster.complaints()
        calls = [call for writer in self.writers for call in writer.calls]
        errors: dict[str, int] = {}
        for call in calls:
            if call.error:
                key = call.error.split("(")[0][:80]
                errors[key] = errors.get(key, 0) + 1
        return {
            "calls": len(calls),
            "failed": sum(not call.ok for call in calls),
            "points": sum(len(writer.written.acknowledged) for writer in self.writers),
            "longest_wait_s": round(max((call.ended - call.began for call, _ in self._fair()), default=0.0), 3),
            "outages": len(self.down),
            "errors": dict(sorted(errors.items(), key=lambda item: -item[1])[:10]),
            "problems": len(problems),
            "examples": list(dict.fromkeys(problems))[:PROBLEMS_SHOWN],
        }

    def _missing(self, port: int) -> Iterator[str]:
        peer = self.connect(port)
        for writer in self.writers:
            written = writer.written
            answer = peer.answer(f"SELECT v FROM {written.device}")
            if not written.acknowledged and answer[0].startswith("error"):
                continue
            if answer[0] != f"Time:INT64 | {written.device}.v:DOUBLE":
                yield f"port {port}: {written.device}: {answer[:3]}"
                continue
            found = {int(when): float(value) for when, value in (line.split(" | ") for line in answer[1:])}
            lost = [when for when, value in written.acknowledged.items() if found.get(when) != value]
            if lost:
                yield (
                    f"port {port}: {written.device} lost {len(lost)} of {len(written.acknowledged)} acknowledged "
                    f"points, such as {lost[:3]}"
                )
            alien = [when for when, value in found.items() if written.attempted.get(when) != value]
            if alien:
                yield f"port {port}: {written.device} has {len(alien)} points that nobody wrote, such as {alien[:3]}"
        peer.close()

    def _fair(self) -> Iterator[tuple[Call, Writer]]:
        """The calls through a node that lived all the while, with a quorum of nodes."""
        for writer in self.writers:
            for call in writer.calls:
                overlapping = {node for node, low, high in self.down if low <= call.ended and call.began <= high}
                if call.node not in overlapping and len(overlapping) * 2 < len(self.cluster.ports):
                    yield call, writer

    def _slow(self) -> Iterator[str]:
        for call, writer in self._fair():
            waited = call.ended - call.began
            if waited > WAIT_S_MAX:
                yield f"a write of {writer.written.device} through node {call.node} waited {waited:.1f} s; {call.error}"
            elif call.error and "TTransportException" not in call.error:
                yield f"a write of {writer.written.device} through node {call.node}, which lived, failed: {call.error}"

    def _unequal(self) -> Iterator[str]:
        run = self.cluster.nodetool("--json", "digest")
        if run.returncode not in (0, 2) or not run.stdout:
            yield f"nodetool digest: {run.stderr}"
            return
        for row in json.loads(run.stdout)["groups"]:
            wanted = min(self.cluster.loopback.replication, len(self.cluster.ports))
            if not row["equal"] or len(row["digests"]) != wanted:
                yield f"group {row['group']}: digests {row['digests']}"


def rounds(trial: Trial) -> Iterator[Callable[[], None]]:
    """One misfortune after another, for ever."""
    nodes = list(range(1, len(trial.cluster.ports) + 1))
    while True:
        for node in trial.random.sample(nodes, len(nodes)):
            yield lambda node=node: trial.kill_and_restart(node, pause_s=trial.random.uniform(0.1, 3))
            yield lambda node=node: trial.kill_during_flush(node)
        order = trial.random.sample(nodes, len(nodes))
        yield lambda order=order: trial.kill_and_restart(*order, pause_s=0.1)


def main() -> int:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "conformance")]
    import processes
    import replay

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the data and logs where they are")
    options = parser.parse_args()
    began = time.monotonic()
    print(f"three nodes, nine writers, misfortunes for {options.minutes:g} minutes", file=sys.stderr)
    directory = Path(tempfile.mkdtemp(prefix="durability-"))
    with processes.Processes(directory) as cluster:
        trial = Trial(cluster, replay, options.seed)
        trial.begin()
        for misfortune in rounds(trial):
            if time.monotonic() - began > options.minutes * 60:
                break
            misfortune()
            time.sleep(trial.random.uniform(0, 2))
        trial.end()
        figures = trial.verify()
        if figures["problems"]:
            print(cluster.tails(), file=sys.stderr)
    figures = {"ok": not figures["problems"], **figures}
    return processes.concluded("durability", directory, figures, seed=options.seed, began=began, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
