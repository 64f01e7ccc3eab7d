"""Whole groups under a seeded network that loses, repeats and reorders, with crashes and changes of the membership.

Checked all along: one leader a term; equal entries at equal (index, term) have equal pasts; every replica applies the
same entries; a confirmed read is not older than anything applied before it was asked for. In the end, when the faults
stop, everything proposed gets through again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from random import Random

import pytest

from iotdb_cluster.raft import (
    LOCAL_APPEND,
    LOCAL_APPLY,
    NO_LIMIT,
    ConfChange,
    ConfChangeSingle,
    ConfChangeType,
    Config,
    ConfState,
    Entries,
    EntryKind,
    HardState,
    MemoryLog,
    Message,
    MessageType,
    ProposalDropped,
    RawNode,
    Ready,
    Snapshot,
    UnknownPeer,
    decode_conf_change,
    decode_message,
    encode_message,
)


class SnapshotLog(MemoryLog):
    """Makes a snapshot of the machine's present state when it is asked for one."""

    replica: Replica

    def snapshot(self) -> Snapshot:
        self.replica.take_snapshot()
        return super().snapshot()


@dataclass
class Replica:
    id: int
    random: Random
    asynchronous: bool
    log: SnapshotLog
    raw: RawNode = field(init=False)
    machine: list[bytes] = field(init=False)  # payload of every applied entry; what a snapshot carries
    appends: list[Message] = field(init=False)
    applies: list[Message] = field(init=False)
    up: bool = True

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """From what is durable; whatever was under way is lost."""
        self.up = True
        self.log.replica = self
        self.appends = []
        self.applies = []
        self.load(self.log.newest_snapshot)
        self.raw = RawNode(
            Config(
                self.id,
                self.log,
                self.random,
                applied=self.log.newest_snapshot.index,
                async_storage_writes=self.asynchronous,
                message_bytes_max=200,
                inflight_messages_max=4,
                inflight_bytes_max=1000,
                committed_bytes_per_ready_max=150,
            )
        )

    def take_snapshot(self) -> int:
        """Its index: that of the last applied entry."""
        log, index = self.log, len(self.machine)
        overtaken = index < self.raw._raft.restored_index  # the configuration is already that of the snapshot
        if not overtaken and log.newest_snapshot.index < index <= log.last_index():
            members = self.raw.conf_state
            log.newest_snapshot = Snapshot(index, log.term(index), members, b"\n".join(self.machine))
            log.conf_state = members
        return log.newest_snapshot.index

    def load(self, snapshot: Snapshot) -> None:
        self.machine = snapshot.data.split(b"\n") if snapshot.index else []


class Cluster:
    def __init__(self, seed: int, *, asynchronous: bool, changes: bool) -> None:
        self.random = Random(seed)
        self.changes = changes
        count = self.random.choice((3, 4, 5))
        members = ConfState(tuple(range(1, count + 1)))
        self.replicas: dict[int, Replica] = {}
        for number in range(1, count + (3 if changes else 1)):
            log = SnapshotLog()
            if number <= count:  # the others know nothing and get a snapshot
                log.install(Snapshot(1, 1, members, b"begin"))
            self.replicas[number] = Replica(number, Random(f"{seed}/{number}"), asynchronous, log)
        self.network: list[Message] = []
        self.faulty = True
        self.leaders: dict[int, int] = {}
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.applied_max = 1
        self.reads: dict[bytes, tuple[int, int]] = {}
        self.reads_done = 0
        self.snapshots = 0
        self.restarts = 0
        self.sequence = 0

    # --- one step -------------------------------------------------------------------------------------------------
    def step(self) -> None:
        random = self.random
        replica = random.choice(list(self.replicas.values()))
        chance = random.random()
        if self.faulty and chance < (0.003 if replica.up else 0.05):
            replica.up = not replica.up
            if replica.up:
                self.restarts += 1
                replica.start()
        elif replica.up:
            if chance < 0.25:
                replica.raw.tick()
            elif chance < 0.40:
                self.propose(replica)
            elif chance < 0.45:
                self.sequence += 1
                context = b"r%d" % self.sequence
                self.reads[context] = (self.applied_max, replica.id)
                replica.raw.read_index(context)
            elif chance < 0.46:
                replica.raw.transfer_leader(random.choice(list(self.replicas)))
            elif chance < 0.47:
                self.compact(replica)
            elif chance < 0.48 and self.changes and self.faulty:
                self.propose_change(replica)
            elif chance < 0.485:
                replica.raw.forget_leader()
            elif replica.raw.has_ready():
                self.handle(replica)
            self.work(replica)
            self.hand_over(replica)
        for _ in range(3):
            self.deliver()

    def propose(self, replica: Replica) -> None:
        self.sequence += 1
        payloads = [b"p%d.%d" % (self.sequence, i) for i in range(self.random.randint(1, 4))]
        try:
            replica.raw.propose(payloads)
        except ProposalDropped:
            return

    def propose_change(self, replica: Replica) -> None:
        random = self.random
        kinds = [
            ConfChangeType.ADD_NODE,
            ConfChangeType.ADD_NODE,
            ConfChangeType.ADD_LEARNER,
            ConfChangeType.REMOVE_NODE,
        ]
        # As in the server, nobody removes itself while it leads: the last but one voter could not be elected then,
        # where the leader's log is the longer one (see docs/design/consensus.md).
        others = [number for number in self.replicas if number != replica.raw.leader]
        changes = [ConfChangeSingle(random.choice(kinds), random.choice(others)) for _ in range(random.randint(0, 3))]
        try:
            replica.raw.propose_conf_change(ConfChange(tuple(changes)))
        except ProposalDropped:
            return

    def hand_over(self, replica: Replica) -> None:
        """As the server does: a leader that is no voter any more hands the lead to one."""
        raw = replica.raw
        if raw.is_leader and raw.id not in raw.configuration.voters and raw.transferee == 0:
            raw.transfer_leader(self.random.choice(raw.configuration.voters))

    def compact(self, replica: Replica) -> None:
        """A snapshot of what is applied; the log keeps a few entries before it."""
        index = replica.take_snapshot()
        if index - 3 >= replica.log.first_index():
            replica.log.compact(index - 3)

    # --- the driver's part ----------------------------------------------------------------------------------------
    def handle(self, replica: Replica) -> None:
        raw = replica.raw
        ready = raw.ready()
        for state in ready.read_states:
            floor, asker = self.reads[state.context]
            assert asker == replica.id
            assert state.index >= floor, "a read is older than what was applied before it"
            self.reads_done += 1
        if not replica.asynchronous:
            self.write(replica, ready.hard_state, ready.entries, ready.snapshot)
        for message in ready.messages:
            if message.to == LOCAL_APPEND:
                replica.appends.append(message)
            elif message.to == LOCAL_APPLY:
                replica.applies.append(message)
            else:
                self.send(message)
        if not replica.asynchronous:
            self.apply(replica, ready.committed)
            raw.advance()
        if raw.is_leader:
            assert self.leaders.setdefault(raw.term, raw.id) == raw.id, "two leaders of one term"
        self.check_ready(ready)

    def check_ready(self, ready: Ready) -> None:
        assert ready.must_sync or not ready.entries

    def work(self, replica: Replica) -> None:
        """The log writer and the state machine get on, each at its own pace."""
        if replica.appends and self.random.random() < 0.7:
            message = replica.appends.pop(0)
            hard = HardState(message.term, message.vote, message.commit) if message.term else None
            self.write(replica, hard, message.entries, message.snapshot)
            self.respond(replica, message)
        if replica.applies and self.random.random() < 0.5:
            message = replica.applies.pop(0)
            self.apply(replica, message.entries)
            self.respond(replica, message)

    def respond(self, replica: Replica, message: Message) -> None:
        for response in message.responses:
            if response.to == replica.id:
                replica.raw.step(response)
            else:
                self.send(response)

    def write(self, replica: Replica, hard: HardState | None, entries: Entries, snapshot: Snapshot | None) -> None:
        if hard is not None:
            assert hard.term >= replica.log.hard_state.term
            replica.log.hard_state = hard
        if snapshot is not None:
            replica.log.install(snapshot)
            replica.load(snapshot)
            self.snapshots += 1
        replica.log.append(entries)

    def apply(self, replica: Replica, entries: Entries) -> None:
        for at, (term, kind, payload) in enumerate(zip(entries.terms, entries.kinds, entries.data, strict=True)):
            index = entries.first + at
            if index <= len(replica.machine):
                continue  # came with a snapshot that overtook this work
            assert index == len(replica.machine) + 1
            assert self.applied.setdefault(index, (term, payload)) == (term, payload), (
                "two entries applied at one index"
            )
            if kind != EntryKind.NORMAL:
                replica.raw.apply_conf_change(decode_conf_change(payload), index)
                payload = b"change"
            replica.machine.append(payload)
            self.applied_max = max(self.applied_max, index)

    # --- the network ----------------------------------------------------------------------------------------------
    def send(self, message: Message) -> None:
        frame = encode_message(message)
        copies = 1
        if self.faulty:
            copies = self.random.choices((0, 1, 2), (12, 80, 8))[0]
        if message.type is MessageType.SNAP and not copies:
            self.report(message, ok=False)
        self.network.extend(decode_message(frame) for _ in range(copies))

    def deliver(self) -> None:
        if not self.network:
            return
        at = self.random.randrange(min(len(self.network), 8 if self.faulty else 1))
        message = self.network.pop(at)
        target = self.replicas[message.to]
        arrived = target.up
        if arrived:
            with contextlib.suppress(ProposalDropped, UnknownPeer):
                target.raw.step(message)
        if message.type is MessageType.SNAP:
            self.report(message, ok=arrived)

    def report(self, message: Message, *, ok: bool) -> None:
        sender = self.replicas[message.source]
        if sender.up:
            sender.raw.report_snapshot(message.to, ok=ok)

    # --- in the end -----------------------------------------------------------------------------------------------
    def check_logs(self) -> None:
        """Log matching, over what is durable."""
        logs = [replica.log for replica in self.replicas.values()]
        for a in logs:
            for b in logs:
                low = max(a.first_index(), b.first_index())
                high = min(a.last_index(), b.last_index())
                common = [i for i in range(low, high + 1) if a.term(i) == b.term(i)]
                if common and a is not b:
                    past = common[-1] + 1
                    assert a.entries(low, past, NO_LIMIT) == b.entries(low, past, NO_LIMIT)

    def heal(self) -> None:
        self.faulty = False
        for replica in self.replicas.values():
            if not replica.up:
                replica.start()

    def members(self) -> list[Replica]:
        newest = max(self.replicas.values(), key=lambda replica: (replica.raw.term, replica.raw.commit))
        return [self.replicas[i] for i in (*newest.raw.configuration.voters, *newest.raw.configuration.learners)]

    def caught_up(self) -> bool:
        members = self.members()
        return all(len(replica.machine) == self.applied_max for replica in members) and all(
            not replica.raw.has_ready() for replica in members
        )


def settle(cluster: Cluster) -> None:
    """A proposal made after the faults is applied by all members before long."""
    cluster.heal()
    mark = b"the last one"
    for turn in range(600):
        for replica in cluster.replicas.values():
            if turn % 5 == 0:
                replica.raw.tick()
            leads = replica.raw.is_leader and replica.raw.transferee == 0
            if leads and turn > 100 and all(data != mark for _, data in cluster.applied.values()):
                _mark(replica, mark)
            while replica.raw.has_ready():
                cluster.handle(replica)
            cluster.work(replica)
            cluster.hand_over(replica)
        for _ in range(len(cluster.network)):
            cluster.deliver()
        if any(data == mark for _, data in cluster.applied.values()) and cluster.caught_up():
            return
    raise AssertionError(f"no progress after the faults: {[r.raw.status() for r in cluster.replicas.values()]}")


def _mark(replica: Replica, mark: bytes) -> None:
    try:
        replica.raw.propose([mark])
    except ProposalDropped:
        return


@pytest.mark.parametrize("changes", [False, True], ids=["fixed", "changing"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("seed", range(8))
def test_safety_and_liveness(seed: int, asynchronous: bool, changes: bool) -> None:
    cluster = Cluster(seed, asynchronous=asynchronous, changes=changes)
    for step in range(6000):
        cluster.step()
        if step % 200 == 0:
            cluster.check_logs()
    settle(cluster)
    cluster.check_logs()
    assert cluster.applied_max > 20


def test_the_runs_meet_what_they_are_for() -> None:
    runs = [Cluster(seed, asynchronous=True, changes=True) for seed in range(2)]
    for cluster in runs:
        for _ in range(6000):
            cluster.step()
    assert sum(cluster.reads_done for cluster in runs) > 20
    assert sum(cluster.snapshots for cluster in runs) > 2
    assert sum(len(cluster.leaders) for cluster in runs) > 10
    assert sum(cluster.restarts for cluster in runs) > 10


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        cluster = Cluster(3, asynchronous=True, changes=True)
        for _ in range(1500):
            cluster.step()
        runs.append((cluster.applied, cluster.leaders, cluster.reads_done))
    assert runs[0] == runs[1]
