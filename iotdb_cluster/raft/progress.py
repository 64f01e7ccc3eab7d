"""What a leader knows of one member's log, and how much it may still send there."""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from iotdb_cluster.errors import check

__all__ = ["Inflights", "Progress", "ProgressState"]


class ProgressState(IntEnum):
    PROBE = 0  # the point of agreement is unknown: one append message at a time
    REPLICATE = 1  # appends go out ahead of their acknowledgements, within the window
    SNAPSHOT = 2  # nothing but the snapshot helps: no appends until it is there


class Inflights:
    """The window: append messages on their way, each known by its last index and its payload bytes."""

    __slots__ = ("bytes", "bytes_max", "messages_max", "queue")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        """`bytes_max` 0 means no limit. The message that reaches the limit of bytes may go beyond it."""
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self.queue: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self.queue)

    @property
    def full(self) -> bool:
        return len(self.queue) >= self.messages_max or 0 < self.bytes_max <= self.bytes

    def has_room(self, count: int, size: int) -> bool:
        """Whether it is not full after so many more messages of so many bytes."""
        return len(self.queue) + count < self.messages_max and (
            not self.bytes_max or self.bytes + size < self.bytes_max
        )

    def add(self, index: int, size: int) -> None:
        check(not self.full, "an append message to %d goes beyond a full window", index)
        self.queue.append((index, size))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Forget the messages whose last index is at most `index`."""
        queue = self.queue
        while queue and queue[0][0] <= index:
            self.bytes -= queue.popleft()[1]

    def clear(self) -> None:
        self.queue.clear()
        self.bytes = 0


class Progress:
    """One member as its leader sees it; `match < next` always.

    `match` is the last index known to be durable there, `next` the next one to send, `sent_commit` the highest commit
    index sent since, `paused` stops appends until an answer comes, `active` whether it was heard of since the last
    check of the quorum.
    """

    __slots__ = (
        "active",
        "inflights",
        "learner",
        "match",
        "next",
        "paused",
        "pending_snapshot",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        match: int,
        next: int,  # noqa: A002
        inflights: Inflights,
        *,
        learner: bool = False,
        active: bool = False,
    ) -> None:
        self.match = match
        self.next = next
        self.inflights = inflights
        self.learner = learner
        self.active = active
        self.state = ProgressState.PROBE
        self.sent_commit = 0
        self.pending_snapshot = 0
        self.paused = False

    def copy(self) -> Progress:
        """A copy that shares the window."""
        twin = Progress(self.match, self.next, self.inflights, learner=self.learner, active=self.active)
        twin.state = self.state
        twin.sent_commit = self.sent_commit
        twin.pending_snapshot = self.pending_snapshot
        twin.paused = self.paused
        return twin

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.pending_snapshot = 0
        self.inflights.clear()

    def become_probe(self) -> None:
        # A snapshot that was sent may have arrived although nobody said so: probe behind it first.
        start = self.pending_snapshot if self.state is ProgressState.SNAPSHOT else 0
        self._enter(ProgressState.PROBE)
        self.next = max(self.match, start) + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        self._enter(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._enter(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def sent_entries(self, count: int, size: int) -> None:
        """An append message with `count` entries of `size` payload bytes went out."""
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, size)
            self.paused = self.inflights.full
        else:
            check(self.state is ProgressState.PROBE, "an append was sent to a member that awaits a snapshot")
            if count:
                self.paused = True

    def sent_one(self, index: int, size: int, commit: int) -> None:
        """As `sent_entries` of the entry `index`, with a commit index; the window has room for one more behind it."""
        self.next = index + 1
        self.inflights.queue.append((index, size))
        self.inflights.bytes += size
        self.sent_commit = commit

    def can_bump_commit(self, commit: int) -> bool:
        """Whether an append without entries would tell the member a newer commit index that it can use."""
        return self.sent_commit < commit and self.sent_commit < self.next - 1

    def maybe_update(self, index: int) -> bool:
        """Take an acknowledgement; False where it is old."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """Take a refusal of an append behind `rejected`, `hint` being where to look next; False where it is old."""
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.match)
            return True
        if self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    @property
    def is_paused(self) -> bool:
        return self.paused or self.state is ProgressState.SNAPSHOT
