"""Nodes join, leave and die under inserts and strong reads: nothing acknowledged is lost, nothing stale is read.

    python tests/cluster/membership.py --minutes 5 --seed 1

starts three nodes on ports and data of their own, with writers and readers that use whatever node serves. Then, at
random: a node is added, a living one removed, one killed (-9) and started again, or killed and removed dead.
`--script` does instead what the release asks for, once: add a 4th and a 5th node, remove the 1st, kill the 2nd and
remove it dead, add one again. What must hold:

* every acknowledged point is there at the end, through every port, and none that nobody wrote;
* a strong read shows every point acknowledged before it began;
* a call fails only on a connection to a node that was killed, or has left; of a failed call each atomic unit (the rows
  of one time partition) is there wholly or not at all;
* no single call through another node takes 2 s or more;
* afterwards the slots are even within 1 of the average, and the replicas' digests equal.

Prints one JSON object as its last line; exit 0 only if all of it holds.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

STALL_S_MAX = 2.0
WRITERS, READERS = 6, 3
READ_POINTS = 40  # the latest acknowledged ones that a read must show
SETTLE_S = 2.0
CHANGE_S_MAX = 600.0  # of one join or leave
NODES_MIN, NODES_MAX = 3, 6
PROBLEMS_SHOWN = 12
PULSE_S = 0.02
SLOW_S, SLOW_SHOWN = 1.0, 5  # calls that are told with what went on meanwhile
LINES_SHOWN, LINE_CHARS = 30, 240


@dataclass
class Call:
    """One call: through which node, when, and what was wrong with it. `points`: what it wrote."""

    node: int
    began: float
    ended: float
    error: str = ""
    points: dict[int, float] = field(default_factory=dict)


class Client(threading.Thread):
    """Uses one node until that fails, then another one that is in service."""

    def __init__(self, trial: "Soak", number: int) -> None:
        super().__init__(daemon=True)
        self.trial = trial
        self.random = random.Random(f"{trial.seed} {type(self).__name__} {number}")
        self.node = 0
        self.peer: Any = None
        self.calls: list[Call] = []

    def run(self) -> None:
        while not self.trial.stopped.is_set():
            if self.peer is not None and self.random.random() < 0.01:
                self.drop()
            if self.peer is None and not self.connect():
                time.sleep(0.02)
                continue
            self.one_call()
        self.drop()

    def connect(self) -> bool:
        self.node = self.random.choice(sorted(self.trial.serving))
        try:
            self.peer = self.trial.connect(self.node)
        except Exception:  # it has just gone: another one is tried
            return False
        return True

    def one_call(self) -> None:
        raise NotImplementedError

    def drop(self) -> None:
        if self.peer is not None:
            self.peer.transport.close()
            self.peer = None


class Writer(Client):
    """Writes a device, each point once, in tablets, records and SQL by turns."""

    def __init__(self, trial: "Soak", number: int) -> None:
        super().__init__(trial, number)
        self.device = f"root.soak{number}.d"
        self.acknowledged: dict[int, float] = {}
        self._send = trial.durability.Writer._send
        self._kinds = itertools.cycle(trial.durability.KINDS)
        self._times = itertools.count(1)
        self._values = itertools.count(number * 1_000_000_000)
        self.written = trial.durability.Written(self.device)
        self._kind = ""

    @property
    def _peer(self) -> Any:
        return self.peer

    def one_call(self) -> None:
        self._kind = next(self._kinds)
        rows = 1 if self._kind == "sql" else self.trial.durability.ROWS
        week = self.trial.durability.WEEK_MS
        times = [n + (n % 4 == 0) * week * (n % 5) for n in itertools.islice(self._times, rows)]
        points = dict(zip(times, map(float, itertools.islice(self._values, rows)), strict=True))
        call = Call(self.node, time.monotonic(), 0.0, points=points)
        try:
            bad = self.trial.replay.first_bad(self._send(self, points))
            call.error = "" if bad is None else f"{bad.code}: {bad.message}"
        except Exception as failed:  # whatever the client's libraries raise when the node goes away
            self.drop()
            call.error = repr(failed)
        call.ended = time.monotonic()
        self.calls.append(call)
        if not call.error:
            self.acknowledged.update(points)
        time.sleep(0.01)


class Reader(Client):
    """Asks, at strong, for points that are acknowledged already."""

    def __init__(self, trial: "Soak", number: int) -> None:
        super().__init__(trial, number)
        self.stale: list[str] = []

    def one_call(self) -> None:
        writer = self.random.choice(self.trial.writers)
        known = dict(itertools.islice(reversed(dict(writer.acknowledged).items()), READ_POINTS))
        if not known:
            time.sleep(0.05)
            return
        # Of one week: a few rows, which come with the query's answer. What takes several fetches may end with an error.
        week = self.random.choice(list(known)) // self.trial.durability.WEEK_MS
        known = {when: value for when, value in known.items() if when // self.trial.durability.WEEK_MS == week}
        call = Call(self.node, time.monotonic(), 0.0)
        try:
            answer = self.peer.answer(
                f"SELECT v FROM {writer.device} WHERE time >= {min(known)} AND time <= {max(known)}"
            )
            if answer[0].startswith("error"):
                call.error = " ".join(answer[:2])
            else:
                found = {int(when): float(value) for when, value in (line.split(" | ") for line in answer[1:])}
                missing = [when for when, value in known.items() if found.get(when) != value]
                if missing:
                    self.stale.append(f"{writer.device} through node {self.node}: {len(missing)} such as {missing[:3]}")
        except Exception as failed:  # whatever the client's libraries raise when the node goes away
            self.drop()
            call.error = repr(failed)
        call.ended = time.monotonic()
        self.calls.append(call)
        time.sleep(0.02)


class Pulse(threading.Thread):
    """When this process itself stood still: on a busy machine a call may seem slow that was not."""

    def __init__(self, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self.stopped = stopped
        self.paused: list[tuple[float, float]] = []

    def run(self) -> None:
        before = time.monotonic()
        while not self.stopped.is_set():
            time.sleep(PULSE_S)
            now = time.monotonic()
            if now - before > 3 * PULSE_S:
                self.paused.append((before, now))
            before = now

    def during(self, call: Call) -> float:
        """Seconds of a call."""
        return sum(max(0.0, min(high, call.ended) - max(low, call.began)) for low, high in self.paused)


class Soak:
    """A cluster under load, and changes of its members."""

    def __init__(self, cluster: Any, replay: ModuleType, durability: ModuleType, seed: int) -> None:
        self.cluster = cluster
        self.replay = replay
        self.durability = durability
        self.seed = seed
        self.random = random.Random(seed)
        self.stopped = threading.Event()
        self.serving = {member.number for member in cluster.members}
        self.gone: dict[int, list[tuple[float, float]]] = defaultdict(list)  # node -> when it was not in service
        self.changes: list[str] = []
        self.problems: list[str] = []
        self.writers = [Writer(self, number) for number in range(WRITERS)]
        self.readers = [Reader(self, number) for number in range(READERS)]
        self.pulse = Pulse(self.stopped)

    def connect(self, node: int) -> Any:
        return self.replay.Peer("127.0.0.1", self.cluster.member(node).client_port, {})

    def begin(self) -> None:
        peer = self.connect(min(self.serving))
        for writer in self.writers:
            made = peer.answer(f"CREATE TIMESERIES {writer.device}.v WITH DATATYPE=DOUBLE, ENCODING=GORILLA")
            if made != ["ok"]:
                raise RuntimeError(f"{writer.device}: {made}")
        peer.close()
        self.pulse.start()
        for client in (*self.writers, *self.readers):
            client.start()

    def end(self) -> None:
        self.stopped.set()
        for client in (*self.writers, *self.readers):
            client.join(60)
            if client.is_alive():
                raise RuntimeError(f"a call of {client} does not come to an end")

    # --- changes of members -------------------------------------------------------------------------------------------

    def add(self) -> None:
        number = self.cluster.add(timeout_s=CHANGE_S_MAX)
        self.changes.append(f"add {number}")
        self.serving.add(number)

    def remove(self, node: int) -> None:
        """Remove a living node: clients may use it until it has left."""
        began = time.monotonic()
        self.changes.append(f"remove {node}")
        self.cluster.remove(node, through=self._another(node), timeout_s=CHANGE_S_MAX)
        self.serving.discard(node)
        self.gone[node].append((began, float("inf")))

    def kill(self, node: int) -> None:
        self.changes.append(f"kill {node}")
        self.serving.discard(node)
        self.gone[node].append((time.monotonic(), float("inf")))
        self.cluster.kill(node)

    def remove_dead(self, node: int) -> None:
        self.changes.append(f"remove dead {node}")
        self.cluster.remove(node, through=self._another(node), timeout_s=CHANGE_S_MAX)

    def restart(self, node: int) -> None:
        self.changes.append(f"start {node}")
        self.cluster.launch(node)
        self.cluster.wait_for(node)
        began, _ = self.gone[node].pop()
        self.gone[node].append((began, time.monotonic() + 0.5))
        self.serving.add(node)

    def _another(self, node: int) -> int:
        return self.random.choice(sorted(self.serving - {node}))

    def script(self) -> None:
        """What the release asks for."""
        time.sleep(SETTLE_S)
        self.add()
        self.add()
        self.remove(1)
        self.kill(2)
        time.sleep(SETTLE_S)
        self.remove_dead(2)
        self.add()
        time.sleep(SETTLE_S)

    def at_random(self, minutes: float) -> None:
        ends = time.monotonic() + 60 * minutes
        while time.monotonic() < ends:
            time.sleep(self.random.uniform(0, SETTLE_S))
            room = len(self.serving) < NODES_MAX
            spare = len(self.serving) > NODES_MIN
            what = self.random.choice([*(["add"] if room else []), *(["remove", "dead"] if spare else []), "restart"])
            node = self.random.choice(sorted(self.serving))
            if what == "add":
                self.add()
            elif what == "remove":
                self.remove(node)
            else:
                self.kill(node)
                time.sleep(self.random.uniform(0.5, 3))
                if what == "dead":
                    self.remove_dead(node)
                else:
                    self.restart(node)

    # --- what must hold -----------------------------------------------------------------------------------------------

    def verify(self, stall_s_max: float = STALL_S_MAX) -> dict[str, Any]:
        """Figures; how many promises were broken (`problems`), with examples."""
        problems = list(self.problems)
        contents = self._contents(problems)
        for reader in self.readers:
            problems += [f"stale: {text}" for text in reader.stale]
        problems += self._failures(stall_s_max)
        problems += self._halves(contents)
        problems += self._uneven()
        problems += self._unequal()
        problems += self.cluster.complaints()
        calls = [call for client in (*self.writers, *self.readers) for call in client.calls]
        fair = [call for call in calls if not self._was_gone(call)]
        return {
            "changes": self.changes,
            "calls": len(calls),
            "failed": sum(bool(call.error) for call in calls),
            "points": sum(len(writer.acknowledged) for writer in self.writers),
            "reads": sum(len(reader.calls) for reader in self.readers),
            "longest_wait_s": round(max((call.ended - call.began for call in fair), default=0.0), 3),
            "slowest": self._slowest([call for call in fair if not call.error]),
            "problems": len(problems),
            "examples": list(dict.fromkeys(problems))[:PROBLEMS_SHOWN],
        }

    def _slowest(self, calls: list[Call]) -> list[str]:
        """The slowest calls that took more than a second, each with what the nodes said meanwhile."""
        slow = sorted((call for call in calls if call.ended - call.began >= SLOW_S), key=lambda c: c.began - c.ended)
        said = sorted(
            (line[11:23], f"{member.number}: {line[11:23]} {line.partition(' - ')[2]}"[:LINE_CHARS])
            for member in (self.cluster.members if slow else ())
            for line in self.cluster.log(member.number).splitlines()
            if line[:2] == "20"
        )
        found = []
        for call in slow[:SLOW_SHOWN]:
            low, high = (_clock(when) for when in (call.began - 0.5, call.ended + 0.1))
            what = f"{_kind(call)} through node {call.node}, this process paused {self.pulse.during(call):.2f} s"
            found.append(f"{_clock(call.began)}: {call.ended - call.began:.2f} s, {what}")
            found += [text for when, text in said if low <= when <= high][:LINES_SHOWN]
        return found

    def _was_gone(self, call: Call) -> bool:
        return any(low <= call.ended and call.began <= high for low, high in self.gone[call.node])

    def _contents(self, problems: list[str]) -> dict[str, dict[int, float]]:
        """What the cluster holds of each device, the same through every port."""
        found: dict[str, dict[int, float]] = {}
        for node in sorted(self.serving):
            peer = self.connect(node)
            for writer in self.writers:
                answer = peer.answer(f"SELECT v FROM {writer.device}")
                rows = {int(when): float(value) for when, value in (line.split(" | ") for line in answer[1:])}
                lost = [when for when, value in writer.acknowledged.items() if rows.get(when) != value]
                if lost:
                    problems.append(f"node {node}: {writer.device} lost {len(lost)} acknowledged points, as {lost[:3]}")
                if found.setdefault(writer.device, rows) != rows:
                    problems.append(f"node {node}: {writer.device} differs from what another node shows")
            peer.close()
        return found

    def _failures(self, stall_s_max: float) -> Iterator[str]:
        for client in (*self.writers, *self.readers):
            for call in client.calls:
                if self._was_gone(call):
                    continue
                if call.error:
                    yield f"a call through node {call.node}, which was in service, failed: {call.error[:300]}"
                elif call.ended - call.began >= stall_s_max:
                    took = f"took {call.ended - call.began:.2f} s"
                    yield f"{_kind(call)} through node {call.node}, begun at {_clock(call.began)}, {took}"

    def _halves(self, contents: dict[str, dict[int, float]]) -> Iterator[str]:
        """Units of failed calls of which a part is there; points that nobody wrote."""
        for writer in self.writers:
            rows = contents.get(writer.device, {})
            attempted: dict[int, float] = {}
            for call in writer.calls:
                attempted.update(call.points)
                units: dict[int, list[bool]] = defaultdict(list)
                for when, value in call.points.items():
                    units[when // self.durability.WEEK_MS].append(rows.get(when) == value)
                if any(any(there) and not all(there) for there in units.values()):
                    yield f"{writer.device}: a part of an atomic unit is there, of a call that ended with {call.error}"
            alien = [when for when, value in rows.items() if attempted.get(when) != value]
            if alien:
                yield f"{writer.device} has {len(alien)} points that nobody wrote, such as {alien[:3]}"

    def _tool(self, *words: str) -> Any:
        run = self.cluster.nodetool("--json", *words, node=min(self.serving), timeout_s=120)
        if run.returncode not in (0, 2) or not run.stdout:
            raise RuntimeError(f"nodetool {words}: {run.stdout} {run.stderr}")
        return json.loads(run.stdout)

    def _uneven(self) -> Iterator[str]:
        groups = self._tool("host", "-a")["groups"]
        counts = [int(count) for _, count in groups]
        if sum(counts) != 10_000 or len(counts) != len(self.serving):
            yield f"{len(self.serving)} nodes have groups with slots {counts}"
        average = sum(counts) / max(1, len(counts))
        if any(abs(count - average) >= 1 for count in counts):
            yield f"slots are not even: {counts}"

    def _unequal(self) -> Iterator[str]:
        wanted = min(self.cluster.loopback.replication, len(self.serving))
        for row in self._tool("digest")["groups"]:
            if not row["equal"] or len(row["digests"]) != wanted:
                yield f"group {row['group']}: digests {row['digests']}"


def _kind(call: Call) -> str:
    return "an insert" if call.points else "a read"


def _clock(monotonic: float) -> str:
    """A moment as the nodes' logs have it, without the date."""
    when = time.time() - time.monotonic() + monotonic
    return time.strftime("%H:%M:%S", time.localtime(when)) + f",{int(when % 1 * 1000):03d}"


def main() -> int:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "conformance")]
    import durability
    import processes
    import replay

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replication", type=int, default=3)
    parser.add_argument("--script", action="store_true", help="what the release asks for, once")
    parser.add_argument("--keep", action="store_true", help="leave the data and logs where they are")
    options = parser.parse_args()
    began = time.monotonic()
    what = "the script of the release" if options.script else f"changes at random for {options.minutes:g} minutes"
    print(f"three nodes, {WRITERS} writers, {READERS} readers, {what}; 20 minutes more at most", file=sys.stderr)
    directory = Path(tempfile.mkdtemp(prefix="membership-"))
    with processes.Processes(directory, 3, options.replication) as cluster:
        soak = Soak(cluster, replay, durability, options.seed)
        soak.begin()
        if options.script:
            soak.script()
        else:
            soak.at_random(options.minutes)
        soak.end()
        figures = soak.verify()
        if figures["problems"]:
            print(cluster.tails(), file=sys.stderr)
        print(*figures.pop("slowest"), sep="\n", file=sys.stderr)
    figures = {"ok": not figures["problems"], **figures}
    return processes.concluded("soak-membership", directory, figures, seed=options.seed, began=began, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
