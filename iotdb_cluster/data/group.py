"""The state machine of one data group: a schema slice and a storage slice, driven by the group's log alone.

Threads: everything on the event loop, but for the flush jobs of a checkpoint and what `publisher` gives, which belong
on a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.data.checkpoints import Checkpoint, SchemaBlob, load_newest, newest_files, write_checkpoint
from iotdb_cluster.data.copies import GroupCopy, copy_of
from iotdb_cluster.data.deletes import Intent
from iotdb_cluster.data.digests import digester
from iotdb_cluster.data.entries import (
    AlterSeries,
    Body,
    CreateSeries,
    DeleteIntent,
    DeleteRetire,
    DeleteUnit,
    DropStorageGroup,
    EnsureSeries,
    Expire,
    Header,
    IntentKind,
    Kind,
    ListPartition,
    OpenUnit,
    Own,
    decode_body,
    decode_header,
    decode_insert,
)
from iotdb_cluster.data.outcomes import DONE, NotReady, Result, StaleRequest
from iotdb_cluster.data.schema_slot import (
    add_intent,
    alter,
    check_intent,
    check_retiring,
    create,
    ensure,
    list_partition,
    repeated_intent,
    retire,
)
from iotdb_cluster.data.state import GroupState, SlotState, StorageGroupState, UnitState
from iotdb_cluster.errors import CallerError, CorruptData, StaleSchema, Status, SystemFault, check
from iotdb_cluster.limits import ENTRY_BYTES_MAX, INT64_MIN
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import NO_REQUEST, Admission, refusal
from iotdb_cluster.schema import PathPattern, SchemaTree, Series, split_path
from iotdb_cluster.storage import Store, StoreOptions, UnitId, UnitReader
from iotdb_cluster.world import FileSystem

__all__ = ["DataGroup", "GroupOptions"]

_BEFORE_ALL = (0, 0)  # no entry stands there
_NEEDS_REQUEST = frozenset(
    {
        Kind.INSERT,
        Kind.ENSURE_SERIES,
        Kind.CREATE_SERIES,
        Kind.ALTER_SERIES,
        Kind.DELETE_INTENT,
        Kind.EXPIRE,
    }
)


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """Settings of a replica. They change nothing that `apply` decides."""

    store: StoreOptions = field(default_factory=StoreOptions)


class DataGroup:
    """One replica of a data group. Make one with `open`.

    `applied` is the log index of the last applied entry. After a restart it is that of the newest checkpoint: the log
    is replayed from there, each entry's fate is decided again on the very state that it met, and the storage skips
    points that its files hold already.
    """

    def __init__(
        self, number: int, files: FileSystem, directory: str, store: Store, state: GroupState, index: int, term: int
    ) -> None:
        self.number = number
        self.store = store
        self.applied = index
        self.applied_term = term
        self._files = files
        self._directory = directory
        self._state = state
        self._published = index
        self._schema_files: dict[int, int] = {}  # storage group -> index of its blob in the newest checkpoint
        self._handlers: dict[Kind, Callable[[int, Header, Any, bool], Any]] = {
            Kind.ENSURE_SERIES: self._ensure,
            Kind.CREATE_SERIES: self._create,
            Kind.ALTER_SERIES: self._alter,
            Kind.LIST_PARTITION: self._list_partition,
            Kind.OPEN_UNIT: self._open_unit,
            Kind.DELETE_INTENT: self._delete_intent,
            Kind.DELETE_UNIT: self._delete_unit,
            Kind.DELETE_RETIRE: self._delete_retire,
            Kind.OWN: self._own,
            Kind.DROP_STORAGE_GROUP: self._drop_storage_group,
            Kind.EXPIRE: self._expire,
        }

    @classmethod
    def open(cls, number: int, files: FileSystem, directory: str, options: GroupOptions | None = None) -> DataGroup:
        """The replica as its newest checkpoint has it, or a new one; SystemFault (CorruptData) where that fails.

        Damaged units are listed in `store.corrupt`; the others serve. Units that the store has and the checkpoint does
        not were opened after it: the replay opens them. One that only the checkpoint has was dropped after it.
        """
        options = options or GroupOptions()
        try:
            files.make_directories(directory)
            files.sync_directory(directory.rpartition("/")[0] or "/")
        except OSError as error:
            raise SystemFault(f"group {number}: {directory} cannot be made: {error}") from error
        store = Store.open(files, f"{directory}/units", options.store)
        found = load_newest(files, directory)
        if found is None:
            state, index, term = GroupState(), 0, 0
        else:
            head, blobs = found
            state = GroupState.from_json(head, [SchemaTree.load(blob) for blob in blobs])
            index, term = head["position"]
        for key in sorted(state.units):
            store.open_unit(UnitId(*key), _BEFORE_ALL)
        group = cls(number, files, directory, store, state, index, term)
        if found is not None:
            group._schema_files = dict(head["schemas"])
        return group

    # --- applying -----------------------------------------------------------------------------------------------------

    def apply(self, index: int, term: int, payload: bytes) -> Result:
        """Apply the committed entry at (index, term), whole or not at all. An empty payload only moves `applied`.

        Bad input gives a Result with an error. Raises CorruptData for an entry that this program is too old for (the
        replica must stop: it would differ from the others), InvariantViolation for our bugs.
        """
        check(index > self.applied, "group %d applies entry %d after entry %d", self.number, index, self.applied)
        result = self._apply(index, payload) if payload else DONE
        self.applied, self.applied_term = index, term
        return result

    def apply_many(self, first: int, terms: Sequence[int], payloads: Sequence[bytes]) -> list[Result]:
        """Apply a run of entries from index `first` on; as `apply`. Configuration changes come as empty payloads."""
        check(first > self.applied, "group %d applies entry %d after entry %d", self.number, first, self.applied)
        results: list[Result] = []
        add = results.append
        for index, (term, payload) in enumerate(zip(terms, payloads, strict=True), first):
            add(self._apply(index, payload) if payload else DONE)
            self.applied, self.applied_term = index, term
        return results

    def _apply(self, index: int, payload: bytes) -> Result:
        kind, header = decode_header(payload)
        request = header.request
        repeat = False
        if request.node:
            admission = self._state.requests.admit(request)
            if admission is not Admission.NEW:
                if admission is not Admission.APPLIED:
                    return Result(error=StaleRequest(refusal(request, admission).message))
                if kind is Kind.INSERT:
                    return DONE
                repeat = True
        elif kind in _NEEDS_REQUEST:
            return Result(error=_bad(f"an entry of kind {kind.name} has no request id"))
        try:
            if kind is Kind.INSERT:
                self._insert(index, header, payload)
                value: Any = "done"
            else:
                value = self._handlers[kind](index, header, _body(kind, payload), repeat)
        except CallerError as error:
            return Result(error=error)
        if request.node and not repeat:
            self._state.requests.record(request)
        return DONE if value == "done" else Result(value)

    def _insert(self, index: int, header: Header, payload: bytes) -> None:
        unit = self._state.unit_of(header)
        _check_floor(unit, header)
        try:
            blocks = decode_insert(payload)
        except CorruptData as error:
            raise _bad(str(error)) from None
        self.store.write(UnitId(header.storage_group, header.partition), header.slot_epoch, index, blocks)

    # --- the kinds of entries: each gives the value of the Result, or raises CallerError before it changes anything ---

    def _schema(self, header: Header) -> StorageGroupState:
        """The schema slot's state of the header's storage group; raises as `schema`, 304 where it has none yet."""
        known = self.schema(header.storage_group, header.slot, header.slot_epoch)
        if known is None:
            raise CallerError(
                Status.TIMESERIES_NOT_EXIST, f"no series was ever created in storage group {header.storage_group}"
            )
        return known

    def _schema_or_new(self, header: Header, body: EnsureSeries | CreateSeries, index: int) -> StorageGroupState:
        known = self.schema(header.storage_group, header.slot, header.slot_epoch)
        if known is None:
            known = StorageGroupState(header.slot, SchemaTree(body.storage_group), changed=index)
            self._state.storage_groups[header.storage_group] = known
        _check_same_path(known, body)
        return known

    def _ensure(self, index: int, header: Header, body: EnsureSeries, repeat: bool) -> Any:
        return ensure(self._schema_or_new(header, body, index), body, index, repeat)

    def _create(self, index: int, header: Header, body: CreateSeries, repeat: bool) -> Any:
        return create(self._schema_or_new(header, body, index), body, index, repeat)

    def _alter(self, index: int, header: Header, body: AlterSeries, repeat: bool) -> Any:
        return "done" if repeat else alter(self._schema(header), body, index)

    def _list_partition(self, index: int, header: Header, body: ListPartition, repeat: bool) -> Any:
        del index, repeat
        return list_partition(self._schema(header), header, body)

    def _open_unit(self, index: int, header: Header, body: OpenUnit, repeat: bool) -> Any:
        del repeat
        self._open_if_closed(index, header, body)
        return "done"

    def _open_if_closed(self, index: int, header: Header, body: OpenUnit) -> UnitState:
        unit = self._state.opening(header, body)
        self.store.open_unit(UnitId(header.storage_group, header.partition), (header.slot_epoch, index))
        return unit

    def _delete_intent(self, index: int, header: Header, body: DeleteIntent, repeat: bool) -> Any:
        del index
        state = self._schema(header)
        return repeated_intent(state, header.request) if repeat else add_intent(state, header, body)

    def _delete_unit(self, index: int, header: Header, body: DeleteUnit, repeat: bool) -> Any:
        del repeat
        known = self._state.units.get((header.storage_group, header.partition))
        last = body.opening.last_intent if known is None else known.last_intent
        if last < body.previous:
            raise NotReady(f"delete {body.number} comes after {body.previous}, the unit has {last}")
        unit = self._open_if_closed(index, header, body.opening)
        if unit.last_intent >= body.number:
            return "done"
        delete = body.delete
        where = UnitId(header.storage_group, header.partition)
        pattern = "|".join(pattern.regex() for pattern in delete.patterns)
        self.store.delete(where, header.slot_epoch, index, pattern, delete.low, delete.high)
        unit.last_intent = body.number
        if delete.intent is IntentKind.TIMESERIES:
            unit.floor = body.number
        return "done"

    def _delete_retire(self, index: int, header: Header, body: DeleteRetire, repeat: bool) -> Any:
        del repeat
        return retire(self._schema(header), body, index)

    def _own(self, index: int, header: Header, body: Own, repeat: bool) -> Any:
        """{"slots": how many have a new epoch here}; what is older than known is ignored."""
        del index, header, repeat
        taken = 0
        for first, last, epoch in body.slots:
            decided = SlotState(epoch, body.meta_index)
            for slot in range(first, last + 1):
                known = self._state.slots.get(slot)
                if known is None or (epoch > known.epoch and body.meta_index >= known.meta_index):
                    self._state.slots[slot] = decided
                    taken += 1
        return {"slots": taken}

    def _drop_storage_group(self, index: int, header: Header, body: DropStorageGroup, repeat: bool) -> Any:
        del repeat
        number = header.storage_group
        if number in self._state.dropped:
            return "done"
        self._state.dropped[number] = body.meta_index
        self._state.storage_groups.pop(number, None)
        for key in [key for key in sorted(self._state.units) if key[0] == number]:
            epoch = self._state.slots[self._state.units.pop(key).slot].epoch
            self.store.drop_unit(UnitId(*key), (epoch, index))
        return "done"

    def _expire(self, index: int, header: Header, body: Expire, repeat: bool) -> Any:
        self._state.check_exists(header.storage_group)
        if repeat or body.before == INT64_MIN:
            return "done"
        for (storage_group, partition), unit in sorted(self._state.units.items()):
            if storage_group == header.storage_group:
                epoch = self._state.slots[unit.slot].epoch
                self.store.expire(UnitId(storage_group, partition), epoch, index, body.before)
        return "done"

    # --- before a proposal --------------------------------------------------------------------------------------------

    def validate(self, payload: bytes) -> None:
        """Everything that the leader checks before it proposes, against its state now: lengths, types, UTF-8, limits,
        ownership, the unit, the floor, series that are being deleted. What passes is refused by `apply` only if the
        state changes until then.

        Raises Moved, StaleSchema, NotReady, Retiring, StaleRequest, or CallerError with what is wrong. Changes nothing.
        """
        if len(payload) > ENTRY_BYTES_MAX:
            raise _bad(f"an entry of {len(payload)} bytes is larger than {ENTRY_BYTES_MAX}")
        try:
            kind, header = decode_header(payload)
        except CorruptData as error:
            raise _bad(str(error)) from None
        request = header.request
        if request.node:
            admission = self._state.requests.admit(request)
            if admission is Admission.APPLIED:
                return
            if admission is not Admission.NEW:
                raise StaleRequest(refusal(request, admission).message)
        elif kind in _NEEDS_REQUEST:
            raise _bad(f"an entry of kind {kind.name} has no request id")
        if kind is Kind.INSERT:
            _check_floor(self._state.unit_of(header), header)
            try:
                decode_insert(payload, strict=True)
            except CorruptData as error:
                raise _bad(str(error)) from None
        else:
            self._validate_body(header, _body(kind, payload))

    def _validate_body(self, header: Header, body: Body) -> None:
        state = self._state
        if isinstance(body, Own | DropStorageGroup):
            return
        state.check_exists(header.storage_group)
        if isinstance(body, Expire):
            return
        state.check_slot(header.slot, header.slot_epoch)
        if isinstance(body, OpenUnit | DeleteUnit):
            unit = state.units.get((header.storage_group, header.partition))
            if unit is not None:
                state.check_same_slot(header.slot, unit.slot)
            return
        if isinstance(body, EnsureSeries | CreateSeries):
            known = self.schema(header.storage_group, header.slot, header.slot_epoch)
            if known is not None:
                _check_same_path(known, body)
                check_retiring(known, body.series)
            return
        known = self._schema(header)
        if isinstance(body, AlterSeries):
            known.check_not_retiring(split_path(body.path))
        elif isinstance(body, DeleteIntent):
            check_intent(known, header.storage_group, body)

    # --- what the group knows -----------------------------------------------------------------------------------------

    def slot_epoch(self, slot: int) -> int:
        """The epoch under which this group owns the slot, 0 where it does not."""
        known = self._state.slots.get(slot)
        return 0 if known is None else known.epoch

    def slots(self) -> dict[int, int]:
        """Every slot that this group owns, with its epoch."""
        return {slot: known.epoch for slot, known in sorted(self._state.slots.items())}

    def is_dropped(self, storage_group: int) -> bool:
        return storage_group in self._state.dropped

    def units(self) -> dict[tuple[int, int], UnitState]:
        """The open units by (storage-group id, partition); not to be changed."""
        return self._state.units

    def storage_groups(self) -> list[int]:
        """The ids of the storage groups whose schema slot is here, ascending."""
        return sorted(self._state.storage_groups)

    def intents(self, storage_group: int) -> list[Intent]:
        """The open deletes of a storage group whose schema slot is here, oldest first; not to be changed."""
        known = self._state.storage_groups.get(storage_group)
        return [] if known is None else list(known.intents.values())

    def is_retired(self, storage_group: int, number: int) -> bool:
        """Whether delete `number` has come to its end here; CallerError 322 where the storage group was dropped."""
        self._state.check_exists(storage_group)
        known = self._state.storage_groups.get(storage_group)
        return known is not None and number <= known.last_intent and number not in known.intents

    def schema_header(self, storage_group: int) -> Header:
        """A header, without request id, for an entry to the storage group's schema slot here."""
        slot = self._state.storage_groups[storage_group].slot
        return Header(NO_REQUEST, storage_group, slot, self.slot_epoch(slot))

    def listed(self, storage_group: int, partition: int) -> tuple[int, OpenUnit]:
        """(slot, what opens the unit) of a partition in the directory."""
        one = self._state.storage_groups[storage_group].directory[partition]
        return one.slot, OpenUnit(one.floor, one.last_intent)

    # --- reads --------------------------------------------------------------------------------------------------------

    def reader(self, storage_group: int, partition: int, slot: int, slot_epoch: int, schema_epoch: int) -> UnitReader:
        """A reader that pins the unit as of `applied`; close it.

        Raises Moved, StaleSchema (plan again), CallerError 322, or NotReady; one with `unit_closed` says that the unit
        holds no points yet, which at an index that a read barrier gave is an answer.
        """
        header = Header(NO_REQUEST, storage_group, slot, slot_epoch, schema_epoch, partition)
        _check_floor(self._state.unit_of(header), header)
        return self.store.reader(UnitId(storage_group, partition))

    def schema(self, storage_group: int, slot: int, slot_epoch: int) -> StorageGroupState | None:
        """The schema slot's state for reading: `tree`, `epoch`, `directory`. None: nothing was ever created in it.

        Raises Moved, NotReady, or CallerError 322.
        """
        self._state.check_exists(storage_group)
        self._state.check_slot(slot, slot_epoch)
        known = self._state.storage_groups.get(storage_group)
        if known is not None:
            self._state.check_same_slot(slot, known.slot)
        return known

    def resolve(
        self, storage_group: int, slot: int, slot_epoch: int, devices: Mapping[str, Sequence[str]]
    ) -> tuple[int, dict[str, list[Series | None]]]:
        """(schema epoch, for each device the series of these measurements or aliases, None where there is none).

        What a coordinator may remember and write under that epoch; a write names `Series.measurement`, never an alias.
        Raises as `schema`, and Retiring where one of the series is being deleted: under the new epoch nobody may learn
        the old one's type.
        """
        known = self.schema(storage_group, slot, slot_epoch)
        if known is None:
            return 0, {device: [None] * len(names) for device, names in devices.items()}
        found = {device: known.tree.resolve(device, names) for device, names in devices.items()}
        if known.retiring:
            for series in (one for several in found.values() for one in several if one is not None):
                known.check_not_retiring(split_path(series.path))
        return known.epoch, found

    def match(
        self, storage_group: int, slot: int, slot_epoch: int, pattern: PathPattern, limit: int | None = None
    ) -> tuple[int, list[Series]]:
        """(schema epoch, the series that match, by path): for reads, so series that are being deleted stand there too.

        Raises as `schema`.
        """
        known = self.schema(storage_group, slot, slot_epoch)
        return (0, []) if known is None else (known.epoch, known.tree.match(pattern, limit=limit))

    def partitions(self, storage_group: int, slot: int, slot_epoch: int) -> list[int]:
        """The listed time partitions, ascending; raises as `schema`."""
        known = self.schema(storage_group, slot, slot_epoch)
        return [] if known is None else sorted(known.directory)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def freeze(self) -> Checkpoint:
        """The state at `applied`, and jobs that flush every memtable as it stands now.

        The caller calls `step` until it gives False, then `job.run()` of each on a worker, in order, and `job.finish()`
        on the loop. After these, and those that it got before, a worker runs what `publisher` gives; then the log up to
        `checkpoint.index` is not needed any more.
        """
        schemas = []
        for number, one in sorted(self._state.storage_groups.items()):
            saved = self._schema_files.get(number, -1)
            fresh = saved >= 0 and one.changed <= saved
            schemas.append(SchemaBlob(number, saved if fresh else self.applied, None if fresh else one.tree.snapshot()))
        state = {**self._state.to_json(), "position": [self.applied, self.applied_term]}
        return Checkpoint(self.applied, self.applied_term, state, tuple(schemas), self.store.seal())

    def publisher(self, checkpoint: Checkpoint) -> Callable[[], None]:
        """What a worker runs to make the checkpoint the newest one (SystemFault where the disk fails).

        InvariantViolation where a unit's points are not flushed up to its index, and it is not absent.
        """
        checkpoint.walk()
        for key in sorted(self._state.units):
            if self.store.is_absent(UnitId(*key)):  # it is fetched from another replica, at least up to here
                continue
            oldest = self.store.oldest_unflushed(UnitId(*key))
            check(
                oldest is None or oldest > checkpoint.index,
                "group %d: unit %s has index %s in memory and is to be checkpointed at %d",
                self.number,
                key,
                oldest,
                checkpoint.index,
            )

        def publish() -> None:
            try:
                write_checkpoint(self._files, self._directory, checkpoint)
            except OSError as error:
                raise SystemFault(f"group {self.number}: checkpoint {checkpoint.index} failed: {error}") from error
            self._schema_files = {blob.storage_group: blob.index for blob in checkpoint.schemas}
            self._published = checkpoint.index

        return publish

    @property
    def published(self) -> int:
        """The index of the newest checkpoint on disk: what a restart begins from."""
        return self._published

    @property
    def directory(self) -> str:
        return self._directory

    def read_checkpoint(self) -> tuple[int, int, list[tuple[str, bytes]]]:
        """(index, term, files) of the newest checkpoint, for `copy`; on a worker. CorruptData where it is damaged."""
        try:
            return newest_files(self._files, self._directory)
        except OSError as error:
            raise SystemFault(f"group {self.number}: its checkpoint cannot be read: {error}") from error

    def copy(self, checkpoint: tuple[int, int, list[tuple[str, bytes]]]) -> GroupCopy:
        """Pin the files that belong to what `read_checkpoint` gave; no other one may be published in between."""
        return copy_of(self.store, *checkpoint)

    def close(self) -> None:
        """Close the files of a replica that is not used any more."""
        self.store.close()

    def checkpoint_now(self) -> int:
        """A checkpoint from beginning to end on this thread; its index. For a clean stop, tools and tests."""
        checkpoint = self.freeze()
        for job in checkpoint.jobs:
            job.run()
            job.finish()
        self.publisher(checkpoint)()
        self.store.collect()
        return checkpoint.index

    def dump_state(self) -> bytes:
        """The whole state at `applied` but for the points: self-contained, equal on equal replicas."""
        state = {**self._state.to_json(), "position": [self.applied, self.applied_term]}
        return pack(state, [one.tree.dump() for _, one in sorted(self._state.storage_groups.items())])

    def load_state(self, data: bytes) -> None:
        """Take over what `dump_state` of another replica gave; units are opened, their points are the store's affair.

        CorruptData where it cannot be read.
        """
        try:
            head, blobs = unpack(data)
            index, term = head["position"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptData(f"a group's state cannot be read: {error!r}") from None
        state = GroupState.from_json(head, [SchemaTree.load(bytes(blob)) for blob in blobs])
        for key in sorted(self._state.units.keys() - state.units.keys()):
            self.store.drop_unit(UnitId(*key))
        for key in sorted(state.units.keys() - self._state.units.keys()):
            self.store.open_unit(UnitId(*key), _BEFORE_ALL)
        self._state = state
        self._schema_files = {}
        self.applied, self.applied_term = index, term

    def digest(self) -> str:
        """A hash over the logical content at `applied`: equal for equal replicas, however their files lie."""
        work, release = self.digester()
        try:
            return work()
        finally:
            release()

    def digester(self) -> tuple[Callable[[], str], Callable[[], None]]:
        """What a worker runs for `digest`, of the content as it is now; and what lets it go, on the loop."""
        return digester(self.store, self.dump_state(), sorted(self._state.units))


def _check_floor(unit: UnitState, header: Header) -> None:
    if header.schema_epoch < unit.floor:
        raise StaleSchema(
            f"the series were resolved under schema epoch {header.schema_epoch}; partition {header.partition} of"
            f" storage group {header.storage_group} has {unit.floor}"
        )


def _check_same_path(known: StorageGroupState, body: EnsureSeries | CreateSeries) -> None:
    if known.tree.storage_group != body.storage_group:
        raise _bad(f"the storage group is {known.tree.storage_group}, not {body.storage_group}")


def _bad(message: str) -> CallerError:
    return CallerError(Status.EXECUTE_STATEMENT_ERROR, message)


def _body(kind: Kind, payload: bytes) -> Body:
    try:
        return decode_body(kind, payload)
    except CorruptData as error:
        raise _bad(str(error)) from None
