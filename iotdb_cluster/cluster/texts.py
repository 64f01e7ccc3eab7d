"""Inserts whose values came as text: the series' type converts them, a missing series gets the type they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.catalog import Catalog, Known, StorageGroupRef
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.cluster.writes import Writer
from iotdb_cluster.columns import Block, Column, DataType, Tablet, shape_of
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc.handler import TextRow
from iotdb_cluster.schema.inference import convert, infer_type, insert_failure

__all__ = ["Converted", "TextConverter", "write_texts"]


T = TypeVar("T")


class Converted:
    """What became of each row: a block to be written, or none; and why a row, or some of its values, cannot be."""

    def __init__(self, count: int) -> None:
        self.blocks: list[Block] = []
        self.rows: list[int] = []  # of each block the row it was
        self.errors: list[CallerError | None] = [None] * count


class TextConverter:
    """Turns rows of texts into typed blocks."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings

    async def convert(self, rows: Sequence[TextRow], deadline: Deadline) -> Converted:
        """The rows as blocks, series created where that is allowed."""
        result = Converted(len(rows))
        members: dict[int, tuple[StorageGroupRef, list[int]]] = {}
        for place, row in enumerate(rows):
            try:
                if not row.measurements:
                    raise CallerError(Status.QUERY_PROCESS_ERROR, "Measurements are null")
                group = await self._catalog.storage_group(row.device, deadline)
                members.setdefault(group.id, (group, []))[1].append(place)
            except CallerError as error:
                result.errors[place] = error
        for group, places in members.values():
            try:
                known = await self._types(group, [rows[place] for place in places], deadline)
            except CallerError as error:
                for place in places:
                    result.errors[place] = error
                continue
            for place in places:
                block, result.errors[place] = self._typed(rows[place], known)
                if block is not None:
                    result.blocks.append(block)
                    result.rows.append(place)
        return result

    async def _types(self, group: StorageGroupRef, rows: Sequence[TextRow], deadline: Deadline) -> Known:
        wanted: dict[str, dict[str, DataType]] = {}
        for row in rows:
            wanted.setdefault(row.device, {}).update(dict.fromkeys(row.measurements, DataType.TEXT))
        known = await self._catalog.ensure(group, wanted, deadline, create=False)
        missing: dict[str, dict[str, DataType]] = {}
        failures: dict[str, dict[str, CallerError]] = {}
        for row in rows:
            there = known.types.get(row.device, {})
            given = row.types or (None,) * len(row.measurements)
            for name, text, kind in zip(row.measurements, row.values, given, strict=True):
                if name in there or name in missing.get(row.device, {}):
                    continue
                try:
                    chosen = kind if kind is not None else infer_type(text, self._settings.inference)
                    missing.setdefault(row.device, {})[name] = chosen
                except CallerError as error:
                    failures.setdefault(row.device, {})[name] = error
        if not missing:
            return Known(known.epoch, known.types, failures, known.names)
        made = await self._catalog.ensure(group, missing, deadline)
        return Known(
            min(known.epoch, made.epoch),
            _merged(known.types, made.types),
            _merged(failures, made.errors),
            known.names,
        )

    def _typed(self, row: TextRow, known: Known) -> tuple[Block | None, CallerError | None]:
        """(the row's values that can be stored, why others cannot)."""
        types, errors = known.types.get(row.device, {}), known.errors.get(row.device, {})
        cells: dict[str, Column] = {}
        failed: list[str] = []
        missing: list[str] = []
        cause: CallerError | None = None
        for name, text in zip(row.measurements, row.values, strict=True):
            kind = types.get(name)
            if kind is None:
                missing.append(f"{row.device}.{name}")
                cause = cause or errors.get(name)
                continue
            try:
                cells[name] = Column.of(DataType(kind), [convert(text, DataType(kind))])
            except CallerError as failure:
                failed.append(name)
                cause = cause or failure
        error: CallerError | None = None
        if failed and cause is not None:
            error = insert_failure(failed, cause.message)
        elif missing:
            error = cause or CallerError(Status.TIMESERIES_NOT_EXIST, f"Path [{' '.join(missing)}] does not exist")
        if not cells:
            return None, error
        shape = shape_of(tuple(cells), tuple(column.type for column in cells.values()))
        return Tablet(row.device, shape, np.array([row.time], np.int64), list(cells.values())), error


async def write_texts(
    converter: TextConverter, writer: Writer, rows: Sequence[TextRow], now_ms: int, deadline: Deadline
) -> list[CallerError | None]:
    """Convert rows and write them, all in one call of the writer; why a row was not written whole, by its place."""
    converted = await converter.convert(rows, deadline)
    if converted.blocks:
        for failure in await writer.insert(converted.blocks, now_ms, deadline):
            converted.errors[converted.rows[failure.origin]] = failure.error
    return converted.errors


def _merged(left: Mapping[str, Mapping[str, T]], right: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    return {key: {**left.get(key, {}), **right.get(key, {})} for key in (*left, *right)}
