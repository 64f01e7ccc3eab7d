"""Who is in the group: configurations, and the changes from one to the next (joint consensus).

A change gives a new configuration and new progress, or raises; the old ones are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from iotdb_cluster.raft.message import ConfChange, ConfChangeSingle, ConfChangeType, ConfState
from iotdb_cluster.raft.progress import Progress

__all__ = [
    "ChangeRefused",
    "Configuration",
    "Members",
    "apply_change",
    "enter_joint",
    "leave_joint",
    "restore",
    "simple",
]

NewProgress = Callable[[bool], Progress]  # learner -> progress of a member that was not there before


class ChangeRefused(Exception):
    """The change does not fit the configuration."""


def _sorted(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(ids))


@dataclass(frozen=True, slots=True)
class Configuration:
    """Sorted ids. `outgoing` is empty unless joint; `learners_next` become learners when the joint phase is left."""

    incoming: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def voters(self) -> tuple[int, ...]:
        """Voters of both halves."""
        return _sorted({*self.incoming, *self.outgoing}) if self.outgoing else self.incoming

    def conf_state(self) -> ConfState:
        return ConfState(self.incoming, self.learners, self.outgoing, self.learners_next, self.auto_leave)


@dataclass(frozen=True, slots=True)
class Members:
    """A configuration and the progress of each of its members, in the order of their ids."""

    configuration: Configuration
    progress: dict[int, Progress]


class _Draft:
    """A change under way."""

    def __init__(self, members: Members, new_progress: NewProgress) -> None:
        configuration = members.configuration
        self.incoming = set(configuration.incoming)
        self.outgoing = set(configuration.outgoing)
        self.learners = set(configuration.learners)
        self.learners_next = set(configuration.learners_next)
        self.auto_leave = configuration.auto_leave
        self.progress = {member: progress.copy() for member, progress in members.progress.items()}
        self.new_progress = new_progress

    def apply(self, changes: Iterable[ConfChangeSingle]) -> None:
        for kind, node in changes:
            if node == 0:  # what was replaced by a change of nobody
                continue
            if kind is ConfChangeType.ADD_NODE:
                self._make_voter(node)
            elif kind is ConfChangeType.ADD_LEARNER:
                self._make_learner(node)
            elif kind is ConfChangeType.REMOVE_NODE:
                self._remove(node)
        if not self.incoming:
            raise ChangeRefused("the change removes all voters")

    def _make_voter(self, node: int) -> None:
        progress = self.progress.get(node)
        if progress is None:
            self.progress[node] = self.new_progress(False)
        else:
            progress.learner = False
        self.learners.discard(node)
        self.learners_next.discard(node)
        self.incoming.add(node)

    def _make_learner(self, node: int) -> None:
        progress = self.progress.get(node)
        if progress is None:
            self.progress[node] = self.new_progress(True)
            self.learners.add(node)
            return
        if progress.learner:
            return
        self._remove(node)
        self.progress[node] = progress
        if node in self.outgoing:  # still votes there: becomes a learner when that half goes
            self.learners_next.add(node)
        else:
            progress.learner = True
            self.learners.add(node)

    def _remove(self, node: int) -> None:
        self.incoming.discard(node)
        self.learners.discard(node)
        self.learners_next.discard(node)
        if node not in self.outgoing:
            self.progress.pop(node, None)

    def leave(self) -> None:
        for node in sorted(self.learners_next):
            self.learners.add(node)
            self.progress[node].learner = True
        self.learners_next.clear()
        for node in sorted(self.outgoing - self.incoming - self.learners):
            self.progress.pop(node, None)
        self.outgoing.clear()
        self.auto_leave = False

    def finish(self) -> Members:
        configuration = Configuration(
            _sorted(self.incoming),
            _sorted(self.outgoing),
            _sorted(self.learners),
            _sorted(self.learners_next),
            self.auto_leave,
        )
        members = Members(configuration, {node: self.progress[node] for node in sorted(self.progress)})
        _verify(members)
        return members


def _verify(members: Members) -> None:
    """ChangeRefused where the sets contradict each other."""
    configuration = members.configuration
    progress = members.progress
    for node in (*configuration.voters, *configuration.learners, *configuration.learners_next):
        if node not in progress:
            raise ChangeRefused(f"there is no progress of member {node}")
    for node in configuration.learners_next:
        if node not in configuration.outgoing:
            raise ChangeRefused(f"{node} is to become a learner but is no outgoing voter")
        if progress[node].learner:
            raise ChangeRefused(f"{node} is to become a learner but is one already")
    for node in configuration.learners:
        if node in configuration.outgoing or node in configuration.incoming:
            raise ChangeRefused(f"{node} is both learner and voter")
        if not progress[node].learner:
            raise ChangeRefused(f"{node} is a learner whose progress does not say so")
    if not configuration.joint and (configuration.learners_next or configuration.auto_leave):
        raise ChangeRefused("what belongs to a joint configuration is set in one that is not joint")


def simple(members: Members, changes: Iterable[ConfChangeSingle], new_progress: NewProgress) -> Members:
    """At most one voter comes or goes; any two majorities before and after overlap."""
    if members.configuration.joint:
        raise ChangeRefused("a simple change does not apply in a joint configuration")
    draft = _Draft(members, new_progress)
    draft.apply(changes)
    if len(draft.incoming.symmetric_difference(members.configuration.incoming)) > 1:
        raise ChangeRefused("more than one voter changes without a joint configuration")
    return draft.finish()


def enter_joint(
    members: Members, changes: Iterable[ConfChangeSingle], new_progress: NewProgress, *, auto_leave: bool
) -> Members:
    """From now on both the old and the new majority are needed."""
    if members.configuration.joint:
        raise ChangeRefused("the configuration is joint already")
    if not members.configuration.incoming:
        raise ChangeRefused("a configuration without voters cannot become joint")
    draft = _Draft(members, new_progress)
    draft.outgoing = set(draft.incoming)
    draft.apply(changes)
    draft.auto_leave = auto_leave
    return draft.finish()


def leave_joint(members: Members, new_progress: NewProgress) -> Members:
    """The old half goes; who was only there is no member any more."""
    if not members.configuration.joint:
        raise ChangeRefused("a configuration that is not joint cannot be left")
    draft = _Draft(members, new_progress)
    draft.leave()
    return draft.finish()


def apply_change(members: Members, change: ConfChange, new_progress: NewProgress) -> Members:
    """Members after a configuration entry. Raises ChangeRefused."""
    if change.leaves_joint:
        return leave_joint(members, new_progress)
    if change.enters_joint:
        return enter_joint(members, change.changes, new_progress, auto_leave=change.auto_leave)
    return simple(members, change.changes, new_progress)


def restore(state: ConfState, new_progress: NewProgress) -> Members:
    """Members of a stored configuration: replay how it can have come about."""
    members = Members(Configuration(), {})

    def adds(kind: ConfChangeType, nodes: Iterable[int]) -> list[ConfChangeSingle]:
        return [ConfChangeSingle(kind, node) for node in nodes]

    target = [
        *adds(ConfChangeType.REMOVE_NODE, state.voters_outgoing),
        *adds(ConfChangeType.ADD_NODE, state.voters),
        *adds(ConfChangeType.ADD_LEARNER, state.learners),
        *adds(ConfChangeType.ADD_LEARNER, state.learners_next),
    ]
    if not state.voters_outgoing:
        for change in target:
            members = simple(members, [change], new_progress)
        return members
    for change in adds(ConfChangeType.ADD_NODE, state.voters_outgoing):
        members = simple(members, [change], new_progress)
    return enter_joint(members, target, new_progress, auto_leave=state.auto_leave)
