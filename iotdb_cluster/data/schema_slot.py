"""What the schema slot of a storage group does with its entries: creations, the directory, deletes.

Each function takes the storage group's state and a decoded body, and gives the value of the entry's `Result`. It raises
CallerError before it changes anything, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from iotdb_cluster.data.deletes import Intent
from iotdb_cluster.data.entries import (
    AlterSeries,
    CreateSeries,
    DeleteIntent,
    DeleteRetire,
    EnsureSeries,
    Header,
    IntentKind,
    ListPartition,
)
from iotdb_cluster.data.state import GroupState, Listed, StorageGroupState
from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from iotdb_cluster.limits import OPEN_INTENTS_MAX, PARTITIONS_PER_STORAGE_GROUP_MAX
from iotdb_cluster.requests import RequestId
from iotdb_cluster.schema import PathPattern, Series, SeriesSpec, path_does_not_exist, split_path

__all__ = [
    "add_intent",
    "alter",
    "check_intent",
    "check_retiring",
    "create",
    "described",
    "ensure",
    "list_partition",
    "repeated_intent",
    "retire",
]

OPEN_UNIT_DELETES_MAX = 100_000  # (open intent, partition) pairs of one storage group: they stand in every checkpoint


def check_retiring(state: StorageGroupState, specs: tuple[SeriesSpec, ...]) -> None:
    """Raise Retiring where one of the series is being deleted; paths that are illegal are left for later."""
    if not state.retiring:
        return
    for spec in specs:
        try:
            nodes = split_path(spec.path)
        except CallerError:  # its own outcome says so
            continue
        known = state.tree.get(spec.path)
        state.check_not_retiring(nodes if known is None else split_path(known.path))


def ensure(state: StorageGroupState, body: EnsureSeries, index: int, repeat: bool) -> dict[str, Any]:
    """What exists now, see `described`; a repeated entry creates nothing.

    A repeated one waits for deletes too: what it answered then would name the old series under the new epoch.
    """
    check_retiring(state, body.series)
    if repeat:
        found: list[Series | CallerError] = [_existing(state, spec.path) for spec in body.series]
    else:
        before = len(state.tree)
        found = state.tree.ensure_series(body.series)
        if len(state.tree) != before:
            state.changed = index
    return described(state, found)


def described(state: StorageGroupState, found: Sequence[Series | CallerError]) -> dict[str, Any]:
    """{"epoch": schema epoch, "series": for each one its type, or [code, text] why it does not exist,
    "measurements": {place in the list: its real measurement} of those that were named by their alias}."""
    answers: list[int | list[Any]] = []
    renamed: dict[str, str] = {}
    for at, one in enumerate(found):
        if isinstance(one, CallerError):
            answers.append([int(one.code), one.message])
            continue
        answers.append(int(one.type))
        if one.by_alias:
            renamed[str(at)] = one.measurement
    return {"epoch": state.epoch, "series": answers, "measurements": renamed}


def _existing(state: StorageGroupState, path: str) -> Series | CallerError:
    try:
        return state.tree.get(path) or path_does_not_exist(path)
    except CallerError as error:
        return error


def create(state: StorageGroupState, body: CreateSeries, index: int, repeat: bool) -> dict[str, Any]:
    """{"epoch": schema epoch, "series": for each one None, or [code, text] why it was not created}.

    The outcomes of the first time are not kept: a repeated entry answers success for what exists.
    """
    check_retiring(state, body.series)
    answers: list[list[Any] | None] = []
    for spec in body.series:
        answers.append(None)
        try:
            if not repeat:
                state.tree.create_series(spec)
                state.changed = index
            elif state.tree.get(spec.path) is None:
                raise OutcomeUnknown(f"{spec.path} was not created, or deleted meanwhile")
        except CallerError as error:
            answers[-1] = [int(error.code), error.message]
    return {"epoch": state.epoch, "series": answers}


def alter(state: StorageGroupState, body: AlterSeries, index: int) -> str:
    """304 where there is no such series, 303 and 411 for the change."""
    known = state.tree.get(body.path)
    state.check_not_retiring(split_path(body.path if known is None else known.path))
    state.tree.alter(body.path, body.change)
    state.changed = index
    return "done"


# --- the directory of partitions --------------------------------------------------------------------------------------


def list_partition(state: StorageGroupState, header: Header, body: ListPartition) -> dict[str, int]:
    """{"floor", "last_intent"} with which the partition's unit is opened: of its first listing.

    The floor rises with each DELETE TIMESERIES: a unit of which all copies were lost is opened once more, and must not
    take what was resolved before.
    """
    listed = state.directory.get(header.partition)
    if listed is None:
        if len(state.directory) >= PARTITIONS_PER_STORAGE_GROUP_MAX:
            raise CallerError(
                Status.WRITE_PROCESS_REJECT,
                f"storage group {header.storage_group} has {len(state.directory)} time partitions, the most that it may"
                " have: are the timestamps in the server's precision?",
            )
        listed = Listed(body.slot, state.epoch, state.last_intent, state.last_intent)
        state.directory[header.partition] = listed
    GroupState.check_same_slot(body.slot, listed.slot)
    return {"floor": listed.floor, "last_intent": listed.last_intent}


# --- deletes ----------------------------------------------------------------------------------------------------------


def _concerned(state: StorageGroupState, body: DeleteIntent) -> list[int]:
    if body.intent is IntentKind.TIMESERIES:
        return sorted(state.directory)
    return sorted(partition for partition in state.directory if body.first <= partition <= body.last)


def check_intent(state: StorageGroupState, storage_group: int, body: DeleteIntent) -> list[int]:
    """The partitions that the delete concerns; CallerError where too much is open, or 304 where no series matches."""
    if len(state.intents) >= OPEN_INTENTS_MAX:
        raise CallerError(
            Status.WRITE_PROCESS_REJECT,
            f"{len(state.intents)} deletes of storage group {storage_group} are not finished: try again later",
        )
    partitions = _concerned(state, body)
    pairs = sum(len(intent.partitions) for intent in state.intents.values()) + len(partitions)
    if state.intents and pairs > OPEN_UNIT_DELETES_MAX:
        raise CallerError(
            Status.WRITE_PROCESS_REJECT,
            f"the deletes of storage group {storage_group} that are not finished concern {pairs} partitions: try later",
        )
    if body.intent is IntentKind.TIMESERIES and not any(state.tree.count(pattern) for pattern in body.patterns):
        texts = " ".join(str(pattern) for pattern in body.patterns)
        raise CallerError(Status.TIMESERIES_NOT_EXIST, f"Path [{texts}] does not exist")
    return partitions


def add_intent(state: StorageGroupState, header: Header, body: DeleteIntent) -> dict[str, int]:
    """{"intent": its number}: the delete is acknowledged when that number is retired."""
    partitions = check_intent(state, header.storage_group, body)
    number = state.last_intent + 1
    body = replace(body, patterns=_real_patterns(state, body.patterns))
    concerned = {}
    for partition in partitions:
        listed = state.directory[partition]
        concerned[partition] = listed.assigned
        listed.assigned = number
        if body.intent is IntentKind.TIMESERIES:  # should all copies of the unit be lost, it is opened so again
            listed.floor = number
    state.last_intent = number
    if body.intent is IntentKind.TIMESERIES:
        state.epoch = number
    state.add_intent(Intent(number, body, concerned, header.request[:3]))
    return {"intent": number}


def _real_patterns(state: StorageGroupState, patterns: Sequence[PathPattern]) -> tuple[PathPattern, ...]:
    """The patterns, and the paths of the series that they name by an alias, which the points do not know."""
    real = list(patterns)
    for pattern in patterns:
        if not pattern.has_wildcard:
            real.extend(PathPattern.exact(found.path) for found in state.tree.match(pattern) if found.by_alias)
    return tuple(real)


def repeated_intent(state: StorageGroupState, request: RequestId) -> dict[str, int]:
    """The answer to a delete that was logged before: its number, 0 where it is retired already."""
    for intent in state.intents.values():
        if intent.request == request[:3]:
            return {"intent": intent.number}
    return {"intent": 0}


def retire(state: StorageGroupState, body: DeleteRetire, index: int) -> dict[str, int]:
    """{"series": how many series went}; 0 where the intent was retired before."""
    if body.number > state.last_intent:
        raise CallerError(Status.INTERNAL_SERVER_ERROR, f"delete {body.number} was never begun")
    intent = state.remove_intent(body.number)
    if intent is None or intent.delete.intent is not IntentKind.TIMESERIES:
        return {"series": 0}
    removed = sum(len(state.tree.delete(pattern)) for pattern in intent.delete.patterns)
    if removed:
        state.changed = index
    return {"series": removed}
