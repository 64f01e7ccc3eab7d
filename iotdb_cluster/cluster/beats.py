"""One heartbeat a peer for all quiet groups: what both ends know of them, and one hash that says that it is the same.

A *beat* goes from the node that leads to another, once a tick. It names only the groups whose cover changed since the
peer's last answer, and carries one 64-bit hash over (group, generation, replica, term, commit) of all that are covered.
A newly covered group comes as a heartbeat of its own, which the peer's replica takes as such. An *answer* says whether
the hash is equal, and names the covered groups whose replica there is not (or no longer) a follower of the sender in
that term: those are excepted. An equal hash is a heartbeat, and its answer, for every other covered group. After an
unequal one, or from a peer that has started again, the next beat is whole: it names all groups.

Nothing here knows of time, sockets or cores. Numbers of a beat count up within the sender's life (a random number of
each start); what comes late or twice changes nothing.

A beat, big-endian: u64 life, u64 number, u8 whole, u64 hash, u32 covered, u32 dropped; for each covered u32 group,
u32 generation, u64 replica, u64 leader's replica, u64 term, u64 commit; for each dropped u32 group. An answer: u64 life
and u64 number of the beat, u64 life of who answers, u8 equal, u32 exceptions, and for each u32 group.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import mmh3

from iotdb_cluster.errors import CorruptData

__all__ = ["Answer", "Beat", "BeatReceiver", "BeatSender", "Commits", "Covered"]

_BEAT = struct.Struct(">QQBQII")
_COVERED = struct.Struct(">IIQQQQ")
_ANSWER = struct.Struct(">QQQBI")
_MARK = struct.Struct(">IIQQQ")


class Covered(NamedTuple):
    """A quiet group as its leader sees a member: which replica, led by which, in which term, committed up to where."""

    group: int
    generation: int
    replica: int
    leader: int
    term: int
    commit: int

    @property
    def mark(self) -> int:
        """Its part in the hash over all, which is their exclusive or."""
        packed = _MARK.pack(self.group, self.generation, self.replica, self.term, self.commit)
        return int(mmh3.hash64(packed, signed=False)[0])


@dataclass(slots=True, frozen=True)
class Commits:
    """What a loop turn has committed, for members that have it: a heartbeat without an answer for each group.

    Bytes: for each group the fields of `Covered`.
    """

    covered: tuple[Covered, ...]

    def encode(self) -> bytes:
        return b"".join([_COVERED.pack(*one) for one in self.covered])

    @classmethod
    def decode(cls, data: memoryview) -> Commits:
        """CorruptData where the bytes are cut."""
        if len(data) % _COVERED.size:
            raise CorruptData(f"commit indexes have {len(data)} bytes")
        return cls(tuple(map(Covered._make, _COVERED.iter_unpack(data))))


@dataclass(slots=True, frozen=True)
class Beat:
    life: int
    number: int
    whole: bool
    hash: int
    covered: tuple[Covered, ...]
    dropped: tuple[int, ...]

    def encode(self) -> bytes:
        head = _BEAT.pack(self.life, self.number, self.whole, self.hash, len(self.covered), len(self.dropped))
        named = b"".join(_COVERED.pack(*one) for one in self.covered)
        return head + named + struct.pack(f">{len(self.dropped)}I", *self.dropped)

    @classmethod
    def decode(cls, data: memoryview) -> Beat:
        """CorruptData where the bytes are cut or too many."""
        if len(data) < _BEAT.size:
            raise CorruptData(f"a beat has {len(data)} bytes")
        life, number, whole, total, covered, dropped = _BEAT.unpack_from(data)
        at = _BEAT.size + covered * _COVERED.size
        if len(data) != at + 4 * dropped:
            raise CorruptData(f"a beat of {covered} and {dropped} groups has {len(data)} bytes")
        named = tuple(Covered(*one) for one in _COVERED.iter_unpack(data[_BEAT.size : at]))
        return cls(life, number, bool(whole), total, named, struct.unpack_from(f">{dropped}I", data, at))


@dataclass(slots=True, frozen=True)
class Answer:
    life: int
    number: int
    own_life: int
    equal: bool
    excepted: tuple[int, ...]

    def encode(self) -> bytes:
        head = _ANSWER.pack(self.life, self.number, self.own_life, self.equal, len(self.excepted))
        return head + struct.pack(f">{len(self.excepted)}I", *self.excepted)

    @classmethod
    def decode(cls, data: memoryview) -> Answer:
        """CorruptData where the bytes are cut or too many."""
        if len(data) < _ANSWER.size:
            raise CorruptData(f"an answer to a beat has {len(data)} bytes")
        life, number, own_life, equal, count = _ANSWER.unpack_from(data)
        if len(data) != _ANSWER.size + 4 * count:
            raise CorruptData(f"an answer to a beat with {count} exceptions has {len(data)} bytes")
        return cls(life, number, own_life, bool(equal), struct.unpack_from(f">{count}I", data, _ANSWER.size))


class BeatSender:
    """The leader's end towards one peer."""

    __slots__ = (
        "_dropped",
        "_hash",
        "_life",
        "_number",
        "_peer_life",
        "_unsettled",
        "_whole",
        "_whole_number",
        "pairs",
    )

    def __init__(self, life: int) -> None:
        self._life = life
        self._number = 0
        self._hash = 0
        self.pairs: dict[int, Covered] = {}  # by group: what the peer is, or is to be, told
        self._unsettled: dict[
            int, int
        ] = {}  # groups that no answer has confirmed: the first beat that named them, or 0
        self._dropped: dict[int, int] = {}  # the same of groups that are covered no more
        self._whole = True  # the next beat names all
        self._whole_number = 0
        self._peer_life = 0

    def cover(self, pair: Covered) -> None:
        self._remove(pair.group)
        self.pairs[pair.group] = pair
        self._hash ^= pair.mark
        self._unsettled[pair.group] = 0
        self._dropped.pop(pair.group, None)

    def drop(self, group: int) -> None:
        """The group is covered no more: it has heartbeats of its own again."""
        if self._remove(group):
            self._dropped[group] = 0

    def lost(self) -> None:
        """The peer does not answer: nothing is covered any more; what it knows, the next (whole) beat replaces."""
        self.pairs, self._unsettled, self._dropped = {}, {}, {}
        self._hash = 0
        self._whole = True

    def _remove(self, group: int) -> bool:
        pair = self.pairs.pop(group, None)
        if pair is None:
            return False
        self._hash ^= pair.mark
        self._unsettled.pop(group, None)
        return True

    def settled(self, group: int) -> bool:
        """Whether the peer has confirmed that it covers the group as it stands here."""
        return group in self.pairs and group not in self._unsettled

    def beat(self) -> Beat | None:
        """What is to be said now; None where nothing is covered and the peer knows it."""
        if not self.pairs and not self._dropped:
            return None
        self._number += 1
        number, whole = self._number, self._whole
        if whole:
            self._whole, self._whole_number = False, number
            self._unsettled = dict.fromkeys(self.pairs, number)
        unsettled, dropped = self._unsettled, self._dropped
        for changes in (unsettled, dropped):
            for group, first in changes.items():
                if not first:
                    changes[group] = number
        named = tuple(self.pairs[group] for group in unsettled)
        return Beat(self._life, number, whole, self._hash, named, tuple(dropped))

    def answered(self, answer: Answer) -> tuple[bool, tuple[int, ...]]:
        """(whether it is an answer of the peer for all that is settled, groups that it excepts and that are dropped)"""
        if answer.life != self._life or not self._whole_number <= answer.number <= self._number:
            return False, ()
        if answer.own_life != self._peer_life:
            known, self._peer_life = self._peer_life, answer.own_life
            if known:  # it has started again, and was told nothing
                self._whole = True
                return False, ()
        if not answer.equal:
            self._whole = True
            return False, ()
        for changes in (self._unsettled, self._dropped):
            for group in [group for group, first in changes.items() if 0 < first <= answer.number]:
                del changes[group]
        excepted = tuple(group for group in answer.excepted if group in self.pairs)
        for group in excepted:
            self.drop(group)
        return True, excepted


class BeatReceiver:
    """The other end: what one peer says that it leads here."""

    __slots__ = ("_hash", "_life", "_number", "_own_life", "excepted", "pairs")

    def __init__(self, own_life: int) -> None:
        self._own_life = own_life
        self._life = 0
        self._number = 0
        self._hash = 0
        self.pairs: dict[int, Covered] = {}
        self.excepted: dict[int, None] = {}  # of these: the replica here is no follower of the peer in that term

    def held(self) -> list[int]:
        """The groups whose replica here follows the peer's, as told."""
        return [group for group in self.pairs if group not in self.excepted]

    def take(
        self, beat: Beat, heartbeat: Callable[[Covered], bool], released: Callable[[Iterable[int]], None]
    ) -> Answer | None:
        """The answer to a beat; None to one that comes late or twice.

        `heartbeat(pair)` gives it to the replica, and says whether that follows the peer's in that term now.
        `released(groups)` is told first which groups the peer speaks for no longer.
        """
        if beat.life != self._life:
            self._life, self._number = beat.life, 0
            self._forget_all(released)
        if beat.number <= self._number:
            return None
        self._number = beat.number
        if beat.whole:
            self._forget_all(released)
        gone = [group for group in beat.dropped if group in self.pairs]
        released([group for group in gone if group not in self.excepted])
        for group in gone:
            self._forget(group)
        for pair in beat.covered:
            self._forget(pair.group)
            self.pairs[pair.group] = pair
            self._hash ^= pair.mark
            if not heartbeat(pair):
                self.excepted[pair.group] = None
        return Answer(beat.life, beat.number, self._own_life, self._hash == beat.hash, tuple(self.excepted))

    def except_(self, group: int) -> None:
        """The replica here follows the peer no longer in the term that it was told; said until the peer drops it."""
        if group in self.pairs:
            self.excepted[group] = None

    def _forget(self, group: int) -> None:
        pair = self.pairs.pop(group, None)
        if pair is not None:
            self._hash ^= pair.mark
            self.excepted.pop(group, None)

    def _forget_all(self, released: Callable[[Iterable[int]], None]) -> None:
        released(self.held())
        self.pairs, self.excepted, self._hash = {}, {}, 0
