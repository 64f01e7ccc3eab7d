"""The state machine of one data group: a schema slice and a storage slice, driven by the group's log alone.

Threads: everything on the event loop, but for the flush jobs of a checkpoint and what `publisher` gives, which belong
on a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iotdb_cluster.data.checkpoints import (
    Checkpoint,
    ImportBlob,
    SchemaBlob,
    load_newest,
    newest_files,
    write_checkpoint,
)
from iotdb_cluster.data.copies import GroupCopy, copy_of
from iotdb_cluster.data.digests import Digest
from iotdb_cluster.data.entries import (
    AlterSeries,
    Body,
    CreateSeries,
    DeleteIntent,
    DeleteRetire,
    DeleteUnit,
    Discard,
    Dissolve,
    DropSlots,
    DropStorageGroup,
    EnsureSeries,
    Expire,
    Fence,
    Header,
    Import,
    IntentKind,
    Kind,
    ListPartition,
    OpenUnit,
    Own,
    Ready,
    decode_body,
    decode_header,
    decode_insert,
)
from iotdb_cluster.data.handoff import Handoff, moves_directory
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
from iotdb_cluster.data.state import GroupState, StorageGroupState, UnitState
from iotdb_cluster.data.view import GroupView, check_floor
from iotdb_cluster.errors import CallerError, CorruptData, Status, SystemFault, check
from iotdb_cluster.limits import ENTRY_BYTES_MAX, INT64_MIN
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import Admission, refusal
from iotdb_cluster.schema import SchemaTree, split_path
from iotdb_cluster.storage import Store, StoreOptions, UnitId
from iotdb_cluster.world import FileSystem

__all__ = ["DataGroup", "GroupOptions"]

_BEFORE_ALL = (0, 0)  # no entry stands there
_MOVING = (Kind.OWN, Kind.FENCE, Kind.IMPORT, Kind.READY, Kind.DROP_SLOTS, Kind.DISCARD, Kind.DISSOLVE)
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


class DataGroup(GroupView):
    """One replica of a data group. Make one with `open`.

    `applied` is the log index of the last applied entry. After a restart it is that of the newest checkpoint: the log
    is replayed from there, each entry's fate is decided again on the very state that it met, and the storage skips
    points that its files hold already.
    """

    def __init__(
        self, number: int, files: FileSystem, directory: str, store: Store, state: GroupState, index: int, term: int
    ) -> None:
        super().__init__(number, store, state, Handoff(files, moves_directory(directory), store))
        self.applied = index
        self.applied_term = term
        self._files = files
        self._directory = directory
        self._published = index
        self.inserted: dict[int, int] = {}  # points by slot since the replica was opened: a measure of load, no state
        self._schema_files: dict[int, int] = {}  # storage group -> index of its blob in the newest checkpoint
        self._import_files: dict[int, int] = {}  # move -> the same
        self._handlers: dict[Kind, Callable[[int, Header, Any, bool], Any]] = {
            Kind.ENSURE_SERIES: self._ensure,
            Kind.CREATE_SERIES: self._create,
            Kind.ALTER_SERIES: self._alter,
            Kind.LIST_PARTITION: self._list_partition,
            Kind.OPEN_UNIT: self._open_unit,
            Kind.DELETE_INTENT: self._delete_intent,
            Kind.DELETE_UNIT: self._delete_unit,
            Kind.DELETE_RETIRE: self._delete_retire,
            Kind.DROP_STORAGE_GROUP: self._drop_storage_group,
            Kind.EXPIRE: self._expire,
            **dict.fromkeys(_MOVING, self._move),
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
            head, schemas, imports = found
            state = GroupState.from_json(head, [SchemaTree.load(blob) for blob in schemas], imports)
            index, term = head["position"]
        for key in sorted(state.units):
            store.open_unit(UnitId(*key), _BEFORE_ALL)
        group = cls(number, files, directory, store, state, index, term)
        if found is not None:
            group._schema_files = dict(head["schemas"])
            group._import_files = {move: one.changed for move, one in state.imports.items()}
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
        check_floor(unit, header)
        try:
            blocks = decode_insert(payload)
        except CorruptData as error:
            raise _bad(str(error)) from None
        self.store.write(UnitId(header.storage_group, header.partition), header.slot_epoch, index, blocks)
        points = sum([len(block) * len(block.shape) for block in blocks])
        self.inserted[header.slot] = self.inserted.get(header.slot, 0) + points

    # --- the kinds of entries: each gives the value of the Result, or raises CallerError before it changes anything ---

    def _schema(self, header: Header) -> StorageGroupState:
        """The schema slot's state of the header's storage group; raises as `schema`, 304 where it has none yet."""
        known = self._schema_here(header.storage_group, header.slot, header.slot_epoch)
        if known is None:
            raise CallerError(
                Status.TIMESERIES_NOT_EXIST, f"no series was ever created in storage group {header.storage_group}"
            )
        return known

    def _schema_or_new(self, header: Header, body: EnsureSeries | CreateSeries, index: int) -> StorageGroupState:
        known = self._schema_here(header.storage_group, header.slot, header.slot_epoch)
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
            unit.floor = max(unit.floor, body.number)
        return "done"

    def _delete_retire(self, index: int, header: Header, body: DeleteRetire, repeat: bool) -> Any:
        del repeat
        return retire(self._schema(header), body, index)

    def _drop_storage_group(self, index: int, header: Header, body: DropStorageGroup, repeat: bool) -> Any:
        del repeat
        self._handoff.drop_storage_group(self._state, index, header.storage_group, body.meta_index)
        return "done"

    def _move(self, index: int, header: Header, body: Body, repeat: bool) -> Any:
        """An entry about slots that move."""
        del header, repeat
        handoff, state = self._handoff, self._state
        self.moving_entries += 1
        match body:
            case Own():
                return handoff.own(state, index, body)
            case Fence():
                handoff.fence(state, body)
            case Import():
                handoff.take_part(state, index, body)
            case Ready():
                handoff.ready(state, body)
            case DropSlots():
                return handoff.drop(state, index, body)
            case Discard():
                handoff.discard(state, body)
            case Dissolve():
                handoff.dissolve(state, body)
        return "done"

    def _expire(self, index: int, header: Header, body: Expire, repeat: bool) -> Any:
        self._state.check_exists(header.storage_group)
        if repeat or body.before == INT64_MIN:
            return "done"
        for (storage_group, partition), unit in sorted(self._state.units.items()):
            slot = self._state.slots[unit.slot]
            if storage_group == header.storage_group and not slot.fence:  # else whoever owns it then expires it
                self.store.expire(UnitId(storage_group, partition), slot.epoch, index, body.before)
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
            unit = self._state.unit_of(header)
            self.check_told(header.slot, header.slot_epoch)
            check_floor(unit, header)
            try:
                decode_insert(payload, strict=True)
            except CorruptData as error:
                raise _bad(str(error)) from None
        else:
            self._validate_body(header, _body(kind, payload))

    def _validate_body(self, header: Header, body: Body) -> None:
        state = self._state
        if self._validate_move(body) or isinstance(body, DropStorageGroup):
            return
        state.check_exists(header.storage_group)
        if isinstance(body, Expire):
            return
        state.check_slot(header.slot, header.slot_epoch)
        self.check_told(header.slot, header.slot_epoch)
        if isinstance(body, OpenUnit | DeleteUnit):
            unit = state.units.get((header.storage_group, header.partition))
            if unit is not None:
                state.check_same_slot(header.slot, unit.slot)
            return
        if isinstance(body, EnsureSeries | CreateSeries):
            known = self._schema_here(header.storage_group, header.slot, header.slot_epoch)
            if known is not None:
                _check_same_path(known, body)
                check_retiring(known, body.series)
            return
        known = self._schema(header)
        if isinstance(body, AlterSeries):
            known.check_not_retiring(split_path(body.path))
        elif isinstance(body, DeleteIntent):
            check_intent(known, header.storage_group, body)

    def _validate_move(self, body: Body) -> bool:
        """False where it is no entry about slots that move."""
        handoff, state = self._handoff, self._state
        match body:
            case Own():
                handoff.check_own(state, body)
            case Fence():
                handoff.check_fence(state, body)
            case Import():
                handoff.check_import(state, body)
            case Ready():
                handoff.check_ready(state, body)
            case DropSlots():
                handoff.check_drop(state, body)
            case Dissolve():
                handoff.check_dissolve(state, body)
            case Discard():
                pass
            case _:
                return False
        return True

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
        imports = []
        for move, arriving in sorted(self._state.imports.items()):
            fresh = self._import_files.get(move) == arriving.changed
            parts = None if fresh else replace(arriving, found=dict(arriving.found))
            imports.append(ImportBlob(move, arriving.changed, parts))
        return Checkpoint(
            self.applied, self.applied_term, self._head(), tuple(schemas), tuple(imports), self.store.seal()
        )

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
            self.store.settle()
            try:
                write_checkpoint(self._files, self._directory, checkpoint)
            except OSError as error:
                raise SystemFault(f"group {self.number}: checkpoint {checkpoint.index} failed: {error}") from error
            self._schema_files = {blob.storage_group: blob.index for blob in checkpoint.schemas}
            self._import_files = {one.move: one.index for one in checkpoint.imports}
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
        trees = [one.tree.dump() for _, one in sorted(self._state.storage_groups.items())]
        return pack(self._head(), trees + self._imports())

    def _head(self) -> dict[str, Any]:
        return {**self._state.to_json(), "position": [self.applied, self.applied_term]}

    def _imports(self) -> list[bytes]:
        return [one.dump() for _, one in sorted(self._state.imports.items())]

    def load_state(self, data: bytes) -> None:
        """Take over what `dump_state` of another replica gave; units are opened, their points are the store's affair.

        CorruptData where it cannot be read.
        """
        try:
            head, blobs = unpack(data)
            index, term = head["position"]
            schemas = len(head["storage_groups"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptData(f"a group's state cannot be read: {error!r}") from None
        trees = [SchemaTree.load(bytes(blob)) for blob in blobs[:schemas]]
        state = GroupState.from_json(head, trees, blobs[schemas:])
        for key in sorted(self._state.units.keys() - state.units.keys()):
            self.store.drop_unit(UnitId(*key))
        for key in sorted(state.units.keys() - self._state.units.keys()):
            self.store.open_unit(UnitId(*key), _BEFORE_ALL)
        self._state = state
        self._schema_files, self._import_files = {}, {}
        self.applied, self.applied_term = index, term

    def digest(self) -> str:
        """A hash over the logical content at `applied`: equal for equal replicas, however their files lie."""
        with self.digester() as digest:
            while digest.step():
                pass
            return digest.compute()

    def digester(self) -> Digest:
        """The digest of the content as it is now, to be computed while that goes on changing."""
        return Digest(self.store, self._state.units, self.trees(), self._head(), self._imports())

    def trees(self) -> dict[int, SchemaTree]:
        """The schemas of the storage groups whose schema slot is here, by their ids; not to be changed."""
        return {number: one.tree for number, one in self._state.storage_groups.items()}


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
