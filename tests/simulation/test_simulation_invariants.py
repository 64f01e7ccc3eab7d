"""The invariants find what they are there for, on replicas made up for the purpose; and bits flip where they may."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from iotdb_cluster.errors import InvariantViolation
from iotdb_cluster.raft import ConfState, Entries, HardState, Snapshot
from iotdb_cluster.simulation.damage import flip_a_bit
from iotdb_cluster.simulation.disk import PowerCut, SimulatedDisk
from iotdb_cluster.simulation.invariants import DIGEST_ENTRIES, LOOK_TURNS, Invariants


@dataclass
class Raw:
    term: int = 1
    vote: int = 0
    commit: int = 0
    is_leader: bool = False


@dataclass
class Log:
    hard_state: HardState = HardState(1, 0, 0)  # noqa: RUF009
    terms: list[int] = field(default_factory=lambda: [1])
    payloads: list[bytes] = field(default_factory=lambda: [b""])

    def first_index(self) -> int:
        return 1

    def last_index(self) -> int:
        return len(self.terms) - 1

    def term(self, index: int) -> int:
        return self.terms[index]

    def read(self, low: int, high: int, _: int) -> Entries:
        return Entries(low, self.terms[low:high], [0] * (high - low), self.payloads[low:high])


class Machine:
    """Its content is what was applied."""

    def __init__(self, content: str = "") -> None:
        self.data = self.store = self
        self.corrupt: dict[Any, str] = {}
        self.mirrors_finished = 0
        self.content = content

    def digest(self) -> str:
        return self.content

    def apply(self, entries: Entries) -> list[Any]:
        self.content += "".join(f"{data!r}" for data in entries.data)
        return [None] * len(entries)

    def install(self, snapshot: Snapshot) -> None:
        self.content = snapshot.data.decode()


@dataclass
class Replica:
    id: int = 1
    replica: int = 7
    applied: int = 0
    raw: Raw = field(default_factory=Raw)
    log: Log = field(default_factory=Log)
    machine: Any = field(default_factory=Machine)


class World:
    """Two nodes, a replica each."""

    def __init__(self) -> None:
        self.a, self.b = Replica(), Replica(replica=8)
        self.nodes = dict.fromkeys("ab", self)
        self.disk = SimulatedDisk()
        self.running = {"a": self._node(self.a), "b": self._node(self.b)}
        self.invariants = Invariants(self, self.running)  # type: ignore[arg-type]
        self.look()

    @staticmethod
    def _node(replica: Replica) -> Any:
        class Node:
            @staticmethod
            def replicas() -> list[Replica]:
                return [replica]

        return Node()

    def is_running(self, _: str) -> bool:
        return True

    def look(self) -> None:
        for _ in range(LOOK_TURNS):
            self.invariants.turn()

    def restart(self, name: str, replica: Replica) -> None:
        self.running[name] = self._node(replica)
        self.look()


def entries(first: int, *payloads: bytes, term: int = 1) -> Entries:
    return Entries(first, [term] * len(payloads), [0] * len(payloads), list(payloads))


def test_two_leaders_of_a_term() -> None:
    world = World()
    world.a.raw.is_leader = True
    world.look()
    world.a.raw.is_leader = False
    world.b.raw.is_leader = True
    with pytest.raises(AssertionError, match="both led group 1 in term 1"):
        world.look()


def test_another_entry_at_an_applied_index() -> None:
    world = World()
    world.a.machine.apply(entries(1, b"x", b"y"))
    world.b.machine.apply(entries(1, b"x"))
    with pytest.raises(AssertionError, match="as entry 2"):
        world.b.machine.apply(entries(2, b"z"))


def test_an_entry_applied_twice_or_left_out() -> None:
    world = World()
    world.a.machine.apply(entries(1, b"x"))
    for first in (1, 3):
        with pytest.raises(InvariantViolation):
            world.a.machine.apply(entries(first, b"x"))


def test_content_that_differs_at_an_index() -> None:
    world = World()
    run = entries(1, *[b"x"] * (DIGEST_ENTRIES + 3))
    world.a.machine.apply(run)
    world.b.machine.inner.content = "something else"
    with pytest.raises(AssertionError, match=f"differ in group 1, both at entry {DIGEST_ENTRIES - 1}"):
        world.b.machine.apply(run)


def test_runs_of_any_length_are_compared_at_the_same_indexes() -> None:
    world = World()
    many = [b"%d" % number for number in range(3 * DIGEST_ENTRIES)]
    world.a.machine.apply(entries(1, *many))
    for first in range(0, len(many), 5):
        world.b.machine.apply(entries(first + 1, *many[first : first + 5]))
    assert world.invariants.compared == 6


def test_a_log_that_does_not_match() -> None:
    world = World()
    world.a.log.terms, world.a.log.payloads = [1, 1, 2], [b"", b"x", b"y"]
    world.look()
    world.b.log.terms, world.b.log.payloads = [1, 1, 2], [b"", b"x", b"z"]
    with pytest.raises(AssertionError, match="entry 2 of term 2"):
        world.look()


def test_the_log_of_an_earlier_life_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was started a moment ago is running, and what is known of it is still its earlier life."""

    def gone(*_: Any) -> Entries:
        raise PowerCut

    world = World()
    world.a.log.terms, world.a.log.payloads = [1, 1], [b"", b"x"]
    monkeypatch.setattr(Log, "read", gone)
    world.look()


def test_another_predecessor() -> None:
    world = World()
    world.a.log.terms, world.a.log.payloads = [1, 1, 3], [b"", b"x", b"y"]
    world.look()
    world.b.log.terms, world.b.log.payloads = [1, 2, 3], [b"", b"w", b"y"]
    with pytest.raises(AssertionError, match="after term 2"):
        world.look()


def test_a_commit_index_that_goes_back() -> None:
    world = World()
    world.a.raw.commit = 5
    world.look()
    world.a.raw.commit = 4
    with pytest.raises(AssertionError, match="went back"):
        world.look()


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        (HardState(4, 7, 0), HardState(3, 0, 0), "comes back in term 3"),
        (HardState(4, 7, 0), HardState(4, 8, 0), "forgot that it voted for 7"),
        (HardState(4, 7, 0), HardState(4, 0, 0), "forgot that it voted for 7"),
    ],
)
def test_promises_that_a_restart_breaks(before: HardState, after: HardState, what: str) -> None:
    world = World()
    world.a.log.hard_state = before
    world.look()
    with pytest.raises(AssertionError, match=what):
        world.restart("a", Replica(log=Log(after)))


def test_a_vote_that_the_core_forgets_though_its_log_has_it() -> None:
    world = World()
    world.a.log.hard_state = HardState(4, 7, 0)
    world.look()
    with pytest.raises(AssertionError, match="forgot its vote for 7"):
        world.restart("a", Replica(raw=Raw(4, 0), log=Log(HardState(4, 7, 0))))


def test_a_restart_that_keeps_its_promises() -> None:
    world = World()
    world.a.log.hard_state = HardState(4, 7, 0)
    world.look()
    world.restart("a", Replica(log=Log(HardState(5, 0, 0))))


def test_committed_entries_that_a_restart_loses() -> None:
    world = World()
    world.a.log.terms, world.a.log.payloads, world.a.raw.commit = [1, 1, 1], [b"", b"x", b"y"], 2
    world.look()
    with pytest.raises(AssertionError, match="up to 1; 2 was committed"):
        world.restart("a", Replica(log=Log(terms=[1, 1], payloads=[b"", b"x"])))


def _come_back(content: str) -> World:
    """A has applied twice `DIGEST_ENTRIES`; B comes back at entry 3 with this content, and catches up."""
    world = World()
    run = entries(1, *[b"x"] * (2 * DIGEST_ENTRIES))
    world.a.machine.apply(run)
    replica = Replica(replica=8, applied=3, machine=Machine(content))
    world.restart("b", replica)
    replica.machine.apply(run.slice(4, 2 * DIGEST_ENTRIES + 1))
    return world


def test_content_is_compared_only_from_where_files_may_have_been_ahead() -> None:
    assert _come_back("b'x'" * 3).invariants.compared == 4  # A at 23, 47 and where B meets it; B there only


def test_content_is_compared_where_a_replica_that_came_back_meets_the_others() -> None:
    with pytest.raises(AssertionError, match=f"a and b differ in group 1, both at entry {2 * DIGEST_ENTRIES}"):
        _come_back("ahead")


def _fetch_ahead(content: str, last: bytes) -> World:
    """B comes back at entry 3 where A is at 5, and gets a unit as of 9, where A is by then; it applies up to 9."""
    world = World()
    run = entries(1, *[b"x"] * 8, last)
    world.a.machine.apply(run.slice(1, 6))
    replica = Replica(replica=8, applied=3, machine=Machine("b'x'" * 3))
    world.restart("b", replica)
    world.a.machine.apply(run.slice(6, 10))
    inner = replica.machine.inner
    inner.content, inner.mirrors_finished = content, 1
    inner.apply = lambda entries: [None] * len(entries)  # what the unit holds is passed over
    replica.machine.apply(run.slice(4, 10))
    return world


def test_content_is_compared_only_from_where_a_unit_that_was_fetched_anew_may_have_been_ahead() -> None:
    assert _fetch_ahead("b'x'" * 8 + "b'y'", b"y").invariants.compared == 3  # A at 5 and 9, B at 9 alone


def test_content_is_compared_where_a_replica_meets_the_unit_that_it_fetched_anew() -> None:
    with pytest.raises(AssertionError, match="a and b differ in group 1, both at entry 9"):
        _fetch_ahead("b'x'" * 9, b"y")


def test_content_is_compared_where_a_snapshot_is_that_of_where_the_others_stand() -> None:
    world = World()
    world.a.machine.apply(entries(1, b"x", b"y"))
    with pytest.raises(AssertionError, match="a and b differ in group 1, both at entry 2"):
        world.b.machine.install(Snapshot(2, 1, ConfState(), b"b'x'b'z'"))


def test_bits_of_the_log_flip_only_behind_its_end() -> None:
    disk = SimulatedDisk(directories=("/data/wal", "/data/data"))
    file = disk.open("/data/wal/segment-00000001.log", create=True)
    for sequence in range(1, 9):
        file.write(4096 * sequence, b"ICLB" + bytes(12) + sequence.to_bytes(8, "big"))
    file.write(4096 * 12, b"\0")
    for seed in range(50):
        before = file.read(0, file.size())
        assert flip_a_bit(disk, random.Random(seed))
        after = file.read(0, file.size())
        (place,) = [at for at in range(len(before)) if before[at] != after[at]]
        assert 4096 <= place < 4096 * 6
        disk.flip(file.path, place, (before[place] ^ after[place]).bit_length() - 1)  # type: ignore[attr-defined]


def test_there_may_be_nothing_to_flip() -> None:
    assert flip_a_bit(SimulatedDisk(directories=("/data",)), random.Random(1)) == ""
