"""What must hold at every step, whatever goes wrong: looked at from outside the nodes, over all of their lives.

Election safety (one leader a term), log matching (an index and term name one entry and one predecessor), state machine
safety (each index is applied once, in order, and is the same entry everywhere), equal content at equal applied indexes,
and a node's promises across its restarts: its term and vote, and the committed entries that its disk has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import crc32c

from iotdb_cluster.cluster.group import Group, Outcome, StateMachine
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.errors import SystemFault, check
from iotdb_cluster.raft import Compacted, ConfState, Entries, HardState, Snapshot, Unavailable
from iotdb_cluster.simulation.disk import PowerCut
from iotdb_cluster.simulation.world import Simulation

__all__ = ["Invariants"]

WATCH_TURNS: Final = 4  # turns of the loop between two looks for new replicas
LOOK_TURNS: Final = 40  # and at terms, votes and logs: a multiple of the other
DIGEST_ENTRIES: Final = 24  # every so manieth index the content of all replicas is compared
TAIL_BYTES_MAX: Final = 1 << 20


class _Print(NamedTuple):
    """What an entry is."""

    term: int
    kind: int
    checksum: int


@dataclass(slots=True)
class _Promises:
    """What a replica's disk has been seen to hold: it may not be less after a crash."""

    hard_state: HardState
    committed: int = 0


class _Watched:
    """A state machine between the driver and the one that it feeds: entries pass through, and are noted."""

    def __init__(self, watch: Invariants, name: str, group: Group, inner: StateMachine) -> None:
        self._watch = watch
        self._name = name
        self._group = group.id
        self.inner = inner
        self.applied = group.applied
        self._meet_anew()

    def apply(self, entries: Entries) -> list[Outcome]:
        check(
            entries.first == self.applied + 1,
            "%s applies entry %d of group %d after %d", self._name, entries.first, self._group, self.applied,
        )  # fmt: skip
        self._watch.applies(self._name, self._group, entries)
        if _mirrors_finished(self.inner) != self._mirrors:  # a damaged unit was fetched as of where another stood
            self._meet_anew()
        outcomes: list[Outcome] = []
        low = entries.first
        while low <= entries.last:
            high = min(entries.last, low + DIGEST_ENTRIES - 1 - low % DIGEST_ENTRIES)
            if low <= self.sound < high:
                high = self.sound
            outcomes += self.inner.apply(entries.slice(low, high + 1))
            self.applied = high
            if high == self.sound or (high % DIGEST_ENTRIES == DIGEST_ENTRIES - 1 and high > self.sound):
                self._watch.compare(self._name, self._group, high, self.inner)
            low = high + 1
        return outcomes

    def _meet_anew(self) -> None:
        # Files may be ahead of what is applied beside them, up to what anybody had applied by then: what is applied
        # again changes nothing, and below that index the content is not yet that of the index. There it is.
        self.sound = self._watch.meeting(self._group)
        self._mirrors = _mirrors_finished(self.inner)

    def configured(self, configuration: ConfState, index: int) -> None:
        self.inner.configured(configuration, index)

    def snapshot(self) -> Snapshot:
        return self.inner.snapshot()

    def require_staged(self, snapshot: Snapshot) -> None:
        self.inner.require_staged(snapshot)

    def install(self, snapshot: Snapshot) -> None:
        check(
            snapshot.index > self.applied,
            "%s installs snapshot %d of group %d over %d", self._name, snapshot.index, self._group, self.applied,
        )  # fmt: skip
        self.inner.install(snapshot)
        self.applied = snapshot.index
        self._meet_anew()
        if self.applied == self.sound:
            self._watch.compare(self._name, self._group, self.applied, self.inner)


class Invariants:
    """`turn` is called before every turn of the loop; it, and the watched state machines, raise what is wrong."""

    def __init__(self, simulation: Simulation, running: Mapping[str, Node]) -> None:
        self._simulation = simulation
        self._running = running
        self._turns = 0
        self._leaders: dict[tuple[int, int], str] = {}
        self._applied: dict[int, dict[int, _Print]] = {}  # by group and index
        self._newest: dict[int, int] = {}  # the highest index that any replica of a group has ever applied
        self._appended: dict[tuple[int, int, int], tuple[_Print, int]] = {}  # (group, index, term): and the term before
        self._contents: dict[tuple[int, int], tuple[str, str]] = {}  # (group, index): content, and who had it first
        self._promises: dict[tuple[str, int, int], _Promises] = {}  # by node, group and replica
        self._known: dict[str, tuple[Node, int]] = {}  # whose replicas are watched, and how many
        self._seen: dict[tuple[str, int], tuple[Group, int, int, int, int, HardState, bool]] = {}
        self.compared = 0

    # --- looked at between turns --------------------------------------------------------------------------------------

    def turn(self) -> None:
        self._turns += 1
        if self._turns % WATCH_TURNS:
            return
        look = self._turns % LOOK_TURNS == 0
        for name, node in self._running.items():
            replicas = node.replicas()
            if not look and self._known.get(name) == (node, len(replicas)):
                continue
            if not self._simulation.is_running(name):
                continue
            self._known[name] = (node, len(replicas))
            for group in replicas:
                if not isinstance(group.machine, _Watched):
                    self._begins(name, group)
                    group.machine = _Watched(self, name, group, group.machine)
                if look:
                    self._look(name, group)

    def _begins(self, name: str, group: Group) -> None:
        """A replica as it was recovered."""
        known = self._promises.get((name, group.id, group.replica))
        if known is None:
            return
        before, now = known.hard_state, group.log.hard_state
        if now.term < before.term:
            raise AssertionError(f"{name} comes back in term {now.term} of group {group.id}; it was in {before.term}")
        if now.term == before.term and before.vote and now.vote != before.vote:
            raise AssertionError(
                f"{name} forgot that it voted for {before.vote} in term {now.term} of group {group.id}: {now.vote}"
            )
        if group.raw.term == before.term and before.vote and group.raw.vote != before.vote:
            raise AssertionError(f"{name} forgot its vote for {before.vote} in term {before.term} of group {group.id}")
        last = group.log.last_index()
        if last < known.committed:
            raise AssertionError(
                f"{name} comes back with group {group.id} up to {last}; {known.committed} was committed and synced"
            )

    def _look(self, name: str, group: Group) -> None:
        raw, log = group.raw, group.log
        last = log.last_index()
        seen = self._seen.get((name, group.id))
        now = (group, raw.term, raw.commit, last, log.term(last), log.hard_state, raw.is_leader)
        if seen == now:
            return
        if raw.is_leader:
            other = self._leaders.setdefault((group.id, raw.term), name)
            if other != name:
                raise AssertionError(f"{other} and {name} both led group {group.id} in term {raw.term}")
        promises = self._promises.setdefault((name, group.id, group.replica), _Promises(log.hard_state))
        promises.hard_state = max(promises.hard_state, log.hard_state, key=lambda state: state.term)
        if log.hard_state.term == promises.hard_state.term:
            promises.hard_state = log.hard_state
        promises.committed = max(promises.committed, min(raw.commit, last))
        if seen is not None and seen[0] is group and (raw.term < seen[1] or raw.commit < seen[2]):
            raise AssertionError(f"group {group.id} on {name} went back from (term, commit) {seen[1:3]} to {now[1:3]}")
        self._seen[name, group.id] = now
        self._match(name, group, last)

    def _match(self, name: str, group: Group, last: int) -> None:
        """Log matching, of the durable entries that are not applied yet."""
        first = max(group.applied + 1, group.log.first_index())
        if first > last:
            return
        try:
            entries = group.log.read(first, last + 1, TAIL_BYTES_MAX)
            before = group.log.term(first - 1)
        except (OSError, SystemFault, Compacted, Unavailable, PowerCut):
            return  # the node will meet that by itself, or is of an earlier life: the next has not begun yet
        for offset, found in enumerate(_prints(entries)):
            index = first + offset
            known = self._appended.setdefault((group.id, index, found.term), (found, before))
            if known != (found, before):
                raise AssertionError(
                    f"group {group.id}, entry {index} of term {found.term}: {name} has {found} after term {before}, "
                    f"another had {known[0]} after term {known[1]}"
                )
            before = found.term

    # --- told by the state machines -----------------------------------------------------------------------------------

    def applies(self, name: str, group: int, entries: Entries) -> None:
        applied = self._applied.setdefault(group, {})
        for offset, found in enumerate(_prints(entries)):
            index = entries.first + offset
            known = applied.setdefault(index, found)
            if known != found:
                raise AssertionError(f"group {group}: {name} applies {found} as entry {index}, another applied {known}")
        self._newest[group] = max(self._newest.get(group, 0), entries.last)

    def meeting(self, group: int) -> int:
        """The index at which a replica that is behind, and changes hands now, must be equal to the others.

        It is the highest that any has ever applied; the content of those that stand there is noted.
        """
        index = self._newest.get(group, 0)
        if not index:
            return 0
        for name, node in self._running.items():
            if (group, index) in self._contents or not self._simulation.is_running(name):
                continue
            for replica in node.replicas():
                machine = replica.machine
                if replica.id != group or not isinstance(machine, _Watched):
                    continue
                if machine.applied == index >= machine.sound:
                    try:
                        self.compare(name, group, index, machine.inner)
                    except (OSError, SystemFault, PowerCut):
                        continue  # it will meet that by itself, or is of an earlier life
        return index

    def compare(self, name: str, group: int, index: int, machine: Any) -> None:
        """The content of a replica that has applied `index` and no more."""
        disk = self._simulation.nodes[name].disk
        if disk.rules:
            return  # a look at its files would meet the fault in the program's stead
        if hasattr(machine, "data") and machine.data.store.corrupt:
            return  # units that came with a move, without their files, are fetched from another replica
        content = _content(machine)
        self.compared += 1
        known, other = self._contents.setdefault((group, index), (content, name))
        if known != content:
            raise AssertionError(f"{other} and {name} differ in group {group}, both at entry {index}")


def _prints(entries: Entries) -> list[_Print]:
    return [
        _Print(term, int(kind), crc32c.crc32c(data))
        for term, kind, data in zip(entries.terms, entries.kinds, entries.data, strict=True)
    ]


def _mirrors_finished(machine: Any) -> int:
    return int(machine.data.store.mirrors_finished) if hasattr(machine, "data") else 0


def _content(machine: Any) -> str:
    if hasattr(machine, "data"):
        return str(machine.data.digest())
    return hashlib.sha256(machine.state.dump()).hexdigest()
