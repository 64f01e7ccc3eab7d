"""Lone entries against the ordinary steps: two replicas get the same inputs, one of them by way of `lone`.

What they send, write and apply is the same, and so is their state at the end of each turn, but for two things: of the
commits of one turn the last alone is told, and of several acknowledgements that go together the last alone is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest

from iotdb_cluster.raft import (
    COMMITTED,
    LOCAL_APPEND,
    LOCAL_APPLY,
    NEWS,
    ConfChange,
    ConfChangeSingle,
    ConfChangeType,
    Config,
    ConfState,
    Entries,
    EntryKind,
    MemoryLog,
    Message,
    MessageType,
    ProposalDropped,
    RawNode,
    UnknownPeer,
    decode_conf_change,
)

IDS = (1, 2, 3)


class Replica:
    """Turns, a disk that is slow, and what goes out; with `fast` by way of `lone` wherever that is possible."""

    def __init__(self, number: int, seed: int, fast: bool, window: int) -> None:
        self.fast = fast
        self.log = MemoryLog(ConfState(IDS))
        self.raw = RawNode(
            Config(
                number,
                self.log,
                Random(seed * 10 + number),
                async_storage_writes=True,
                disable_proposal_forwarding=True,
                inflight_messages_max=window,
                uncommitted_bytes_max=600,
                committed_bytes_per_ready_max=400,
                committed_entries_per_ready_max=5,
            )
        )
        self.writing: list[Callable[[], None]] = []
        self.lone: list[Callable[[], None]] = []  # of this turn, to be written ahead of all else
        self.out: list[Message] = []
        self.applied: list[bytes] = []
        self.reads: list[Any] = []
        self.works = 0
        self.news: dict[int, int] = {}  # the commit index that members are to hear of

    def step(self, message: Message) -> object:
        message = replace(message)
        try:
            if not (self.fast and self._lone_step(message)):
                self.raw.step(message)
        except (ProposalDropped, UnknownPeer) as error:
            return type(error)
        return None

    def _lone_step(self, message: Message) -> bool:
        raw, entries = self.raw, message.entries
        source, term, index = message.source, message.term, message.index
        if message.type is MessageType.APP_RESP and not message.reject:
            outcome = raw.lone_acknowledged(source, term, index)
            self._outcome(outcome, source)
        elif message.type is MessageType.APP and entries.terms == [term] and entries.kinds == [EntryKind.NORMAL]:
            outcome = index + 1 == entries.first and raw.lone_append(source, message.log_term, message.commit, entries)
            if outcome:
                self.lone.append(partial(self._lone_synced, entries, term, source))
        else:
            return False
        self.works += bool(outcome)
        return bool(outcome)

    def _outcome(self, outcome: int, source: int) -> None:
        if outcome == COMMITTED:
            self.news.update(dict.fromkeys(self.raw.other_members, self.raw.commit))
        elif outcome == NEWS:
            self.news[source] = self.raw.commit

    def propose(self, payload: bytes) -> object:
        try:
            if self.fast and (taken := self.raw.lone_propose(payload)) is not None:
                return self._lone_propose(*taken)
            return self.raw.propose([payload])
        except ProposalDropped:
            return ProposalDropped

    def _lone_propose(self, one: Entries, log_term: int, commit: int) -> object:
        raw, term, index = self.raw, self.raw.term, one.first
        self.works += 1
        for member in raw.other_members:
            self.out.append(Message(MessageType.APP, member, raw.id, term, log_term, index - 1, commit, entries=one))
        self.lone.append(partial(self._lone_synced, one, term, 0))
        return term, index

    def turn(self) -> None:
        raw = self.raw
        self.writing += self.lone
        self.lone = []
        while raw.has_ready():
            self._handle()
            while self.fast and (entries := raw.lone_committed()).terms:
                self._apply(entries)
                raw.lone_applied(entries)
        self.out.extend(
            Message(MessageType.APP, to, raw.id, raw.term, commit=commit) for to, commit in self.news.items()
        )
        self.news = {}

    def _lone_synced(self, entries: Entries, term: int, leader: int) -> None:
        self.log.append(entries)
        self._outcome(self.raw.lone_durable(term, entries.last), self.raw.id)
        if leader:
            self.out.append(Message(MessageType.APP_RESP, leader, self.raw.id, term, index=entries.last))

    def _handle(self) -> None:
        ready = self.raw.ready()
        self.reads.extend(ready.read_states)
        for message in ready.messages:
            if message.to == LOCAL_APPEND:
                self.writing.append(partial(self._synced, message))
            elif message.to == LOCAL_APPLY:
                self._apply(message.entries)
                self._respond(message)
            else:
                self.out.append(message)

    def _synced(self, message: Message) -> None:
        self.log.append(message.entries)
        self._respond(message)

    def _respond(self, message: Message) -> None:
        for response in message.responses:
            if response.to == self.raw.id:
                self.raw.step(response)
            else:
                self.out.append(response)

    def _apply(self, entries: Entries) -> None:
        for index, (kind, data) in enumerate(zip(entries.kinds, entries.data, strict=True), entries.first):
            self.applied.append(data)
            if kind != EntryKind.NORMAL:
                self.raw.apply_conf_change(decode_conf_change(data), index)

    def sync(self) -> None:
        """All that was asked to be written by now is durable."""
        writing, self.writing = self.writing, []
        for done in writing:
            done()

    def said(self) -> tuple[object, ...]:
        """What went out since the last look, in a form in which the two ways are the same."""
        out, self.out = self.out, []
        news: dict[int, int] = {}
        acks: dict[tuple[int, int], int] = {}
        others: Counter[str] = Counter()
        for one in out:
            if one.type is MessageType.APP and not one.entries.terms:
                news[one.to] = max(news.get(one.to, 0), one.commit)
            elif one.type is MessageType.APP_RESP and not one.reject:
                key = (one.to, one.term)
                acks[key] = max(acks.get(key, 0), one.index)
            else:
                entries = one.entries
                others[f"{one} {entries.first} {entries.terms} {entries.kinds} {entries.data}"] += 1
        return news, acks, others

    def state(self) -> tuple[object, ...]:
        raw, log = self.raw, self.log
        entries = log.entries(log.first_index(), log.last_index() + 1, 1 << 40)
        return raw.status(), raw.last_index, self.applied, self.reads, entries.terms, entries.data


class Twins:
    """One member of the group: both get the same inputs; the network carries what the plain one says."""

    def __init__(self, number: int, seed: int, window: int) -> None:
        self.number = number
        self.plain = Replica(number, seed, False, window)
        self.fast = Replica(number, seed, True, window)

    def both(self, work: Callable[[Replica], object]) -> None:
        assert work(self.plain) == work(self.fast)

    def end_turn(self) -> list[Message]:
        self.plain.turn()
        self.fast.turn()
        sent = list(self.plain.out)
        assert self.plain.said() == self.fast.said()
        assert self.plain.state() == self.fast.state()
        return sent


class Schedule:
    """Random events; a turn comes after one or a few of them, as in the driver."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.loss = self.random.choice((0.0, 0.0, 0.02, 0.1))
        window = self.random.choice((2, 4, 64))
        self.twins = {number: Twins(number, seed, window) for number in IDS}
        self.network: list[Message] = []
        self.proposed = 0

    def run(self, events: int) -> None:
        self.twins[1].both(lambda one: one.raw.campaign())
        weights = {
            self.deliver: 60,
            self.sync: 20,
            self.propose: 14,
            self.tick: 3,
            self.change: 0.3,
            self.transfer: 0.2,
            self.read: 0.5,
            self.commit_known: 3,
        }
        choices = list(weights)
        for _ in range(events):
            for event in self.random.choices(choices, list(weights.values()), k=self.random.choice((1, 1, 2, 4))):
                event(self.twins[self.random.choice(IDS)])
            for twins in self.twins.values():
                self.network.extend(twins.end_turn())
            del self.network[: len(self.network) - 200]

    def deliver(self, _: Twins) -> None:
        if not self.network:
            return
        at = 0 if self.random.random() < 0.8 else self.random.randrange(len(self.network))
        message = self.network.pop(at)
        if self.random.random() < self.loss:
            return
        if self.random.random() < 0.03:
            self.network.append(message)
        self.twins[message.to].both(lambda one: one.step(message))

    def sync(self, twins: Twins) -> None:
        twins.both(lambda one: one.sync())

    def propose(self, twins: Twins) -> None:
        leading = [one for one in self.twins.values() if one.plain.raw.is_leader]
        twins = self.random.choice(leading) if leading and self.random.random() < 0.9 else twins
        for _ in range(self.random.choice((1, 1, 1, 2, 12))):
            self.proposed += 1
            payload = b"%d" % self.proposed * self.random.choice((1, 1, 20))
            twins.both(lambda one, payload=payload: one.propose(payload))  # type: ignore[misc]

    def tick(self, twins: Twins) -> None:
        count = self.random.choice((1, 1, 1, 12))
        twins.both(lambda one: one.raw.tick(count))

    def change(self, twins: Twins) -> None:
        kind = self.random.choice((ConfChangeType.ADD_NODE, ConfChangeType.ADD_LEARNER))
        member = self.random.choice(IDS)

        def propose(one: Replica) -> object:
            try:
                return one.raw.propose_conf_change(ConfChange((ConfChangeSingle(kind, member),)))
            except ProposalDropped:
                return ProposalDropped

        twins.both(propose)

    def transfer(self, twins: Twins) -> None:
        target = self.random.choice(IDS)
        twins.both(lambda one: one.raw.transfer_leader(target))

    def read(self, twins: Twins) -> None:
        context = self.random.randbytes(4)
        twins.both(lambda one: one.raw.read_index(context))

    def commit_known(self, twins: Twins) -> None:
        """The leader tells what it has committed by a word for many groups."""
        raw = twins.plain.raw
        leader = self.twins.get(raw.leader)
        if leader is None or leader is twins or not leader.plain.raw.is_leader or leader.plain.raw.term != raw.term:
            return
        commit = min(leader.plain.raw.commit, leader.plain.raw.member_match(twins.number))
        twins.both(lambda one: one.raw.commit_known(commit))


@pytest.mark.parametrize("seed", range(40))
def test_lone_entries_are_as_the_ordinary_steps(seed: int) -> None:
    schedule = Schedule(seed)
    schedule.run(600)
    works = sum(twins.fast.works for twins in schedule.twins.values())
    assert works, "no step went by way of lone entries"
    assert any(twins.plain.applied for twins in schedule.twins.values())
