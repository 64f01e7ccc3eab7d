"""The shell's `import`: rows of a CSV file as typed inserts, streamed; rows that are not taken go to a file.

Heads: `Time,root.sg.d.s1,...` or `Time,Device,s1,...`, each column with its type in brackets where the file says it;
else the existing series' type counts, else what the first value looks like. An empty field is no value. Texts may be
quoted.
"""

from __future__ import annotations

import csv
import itertools
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from iotdb_cluster.columns import DataType
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.tools.cli_connection import Connection, Refused, Results, first_bad
from iotdb_cluster.tools.cli_times import PER_SECOND

__all__ = ["import_csv"]

BATCH_ROWS = 1_000
REASONS_SHOWN_MAX = 20
_TYPED = re.compile(r"(.*)\((BOOLEAN|INT32|INT64|FLOAT|DOUBLE|TEXT)\)\s*\Z", re.DOTALL)
_FORMS = (
    "%Y/%m/%d %H:%M:%S.%f",
    "%Y/%m/%d %H:%M:%S",
    "%Y.%m.%d %H:%M:%S.%f",
    "%Y.%m.%d %H:%M:%S",
    "%Y/%m/%d",
    "%Y.%m.%d",
)
_PACKS = {DataType.INT32: ">bi", DataType.INT64: ">bq", DataType.FLOAT: ">bf", DataType.DOUBLE: ">bd"}
_INT32_MAX = (1 << 31) - 1


@dataclass(slots=True)
class _Row:
    number: int
    cells: list[str]
    time: int
    device: str
    names: list[str]
    values: bytes


@dataclass(slots=True)
class _Import:
    """What is known while a file is read."""

    connection: Connection
    precision: str
    zone: tzinfo
    by_device: bool
    names: list[str]
    declared: list[DataType | None]
    types: dict[str, DataType] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def parse(self, number: int, cells: list[str]) -> list[_Row]:
        """The row as one of each device that it has values for; ValueError says what is wrong with it."""
        if len(cells) != len(self.names):
            raise ValueError(f"Line '{number}': {len(cells)} fields where the head has {len(self.names)}")
        time = _time(cells[0], self.precision, self.zone)
        first = 2 if self.by_device else 1
        rows: dict[str, _Row] = {}
        for at in range(first, len(cells)):
            if cells[at] == "":
                continue
            path = f"{cells[1]}.{self.names[at]}" if self.by_device else self.names[at]
            device, _, name = path.rpartition(".")
            kind = self.declared[at] or self._type(device, path, cells[at])
            try:
                value = _packed(kind, cells[at])
            except (ValueError, struct.error, OverflowError):
                raise ValueError(
                    f"Line '{number}', column '{path}': '{cells[at]}' can't convert to '{kind.name}'"
                ) from None
            row = rows.setdefault(device, _Row(number, cells, time, device, [], b""))
            row.names.append(name)
            row.values += value
        return list(rows.values())

    def _type(self, device: str, path: str, text: str) -> DataType:
        """The series' own type, else what the first value looks like."""
        if device not in self.asked:
            self.asked.add(device)
            found = self.connection.execute(f"SHOW TIMESERIES {device}")
            if isinstance(found, Results):
                for page in found.pages():
                    paths, kinds = (page.columns[at].cells.tolist() for at in (0, 3))
                    self.types |= {
                        one.decode(): DataType[kind.decode()] for one, kind in zip(paths, kinds, strict=True)
                    }
        known = self.types.get(path)
        if known is None:
            known = self.types[path] = _guess(text)
        return known


def _guess(text: str) -> DataType:
    if text.lower() in ("true", "false"):
        return DataType.BOOLEAN
    if re.fullmatch(r"[+-]?\d{1,19}", text):
        return DataType.INT32 if abs(int(text)) <= _INT32_MAX else DataType.INT64
    try:
        float(text)
    except ValueError:
        return DataType.TEXT
    return DataType.DOUBLE


def _packed(kind: DataType, text: str) -> bytes:
    if kind is DataType.TEXT:
        data = text.replace("\\,", ",").encode()
        return struct.pack(">bi", kind, len(data)) + data
    if kind is DataType.BOOLEAN:
        return struct.pack(
            ">b?",
            kind,
            {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _no(text),
        )
    return struct.pack(_PACKS[kind], kind, int(text) if kind in (DataType.INT32, DataType.INT64) else float(text))


def _no(text: str) -> bool:
    raise ValueError(text)


def _time(text: str, precision: str, zone: tzinfo) -> int:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    moment = None
    for form in ("iso", *_FORMS):
        try:
            moment = datetime.fromisoformat(text) if form == "iso" else datetime.strptime(text, form)
            break
        except ValueError:
            continue
    if moment is None:
        raise ValueError(f"'{text}' is no time: write a number or a date such as 2021-01-31T12:00:00.000+08:00")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return micros * PER_SECOND[precision] // 1_000_000


def _head(cells: list[str]) -> tuple[list[str], list[DataType | None]]:
    names: list[str] = []
    kinds: list[DataType | None] = []
    for cell in cells:
        typed = _TYPED.match(cell.strip())
        names.append(typed[1] if typed else cell.strip())
        kinds.append(DataType[typed[2]] if typed else None)
    return names, kinds


def import_csv(connection: Connection, path: Path, precision: str, zone: tzinfo, say: Callable[..., None]) -> bool:
    """Whether every row was taken; the others stand in `PATH.failed`, with the reasons said."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        head = next(reader, None)
        if head is None:
            say("Empty file!")
            return False
        names, kinds = _head(head)
        if names[0].lower() != "time":
            say("No headers!")
            return False
        by_device = len(names) > 1 and names[1].lower() == "device"
        work = _Import(connection, precision, zone, by_device, names, kinds)
        failed: list[tuple[list[str], str]] = []
        count = 0
        for batch in _batches((reader.line_num, cells) for cells in reader if cells):
            count += len(batch)
            failed += _insert(work, batch)
    if not count:
        say("No records!")
        return False
    if failed:
        _keep(path, head, failed, say)
    say("Import completely!" if not failed else f"{count - len(failed)} of {count} rows were imported")
    return not failed


def _batches(rows: Iterator[tuple[int, list[str]]]) -> Iterator[list[tuple[int, list[str]]]]:
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield batch


def _insert(work: _Import, batch: list[tuple[int, list[str]]]) -> list[tuple[list[str], str]]:
    """The rows that were not taken, each with the reason."""
    failed: dict[int, tuple[list[str], str]] = {}
    records: list[_Row] = []
    for number, cells in batch:
        try:
            records += work.parse(number, cells)
        except (ValueError, Refused) as error:
            failed[number] = (cells, str(error))
    if records:
        status = _send(work.connection, records)
        bad = first_bad(status)
        parts: list[Any] = status.subStatus or [status] * len(records)
        for record, part in zip(records, parts, strict=True):
            if bad is not None and first_bad(part) is not None:
                failed[record.number] = (record.cells, f"Line '{record.number}': {part.code}: {part.message}")
    return [failed[number] for number in sorted(failed)]


def _send(connection: Connection, records: list[_Row]) -> Any:
    return connection.call(
        "insertRecords",
        client().TSInsertRecordsReq(
            connection.session,
            [record.device for record in records],
            [record.names for record in records],
            [record.values for record in records],
            [record.time for record in records],
        ),
    )


def _keep(path: Path, head: list[str], failed: list[tuple[list[str], str]], say: Callable[..., None]) -> None:
    target = path.with_name(path.name + ".failed")
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *(cells for cells, _ in failed)])
    say(*(reason for _, reason in failed[:REASONS_SHOWN_MAX]))
    if len(failed) > REASONS_SHOWN_MAX:
        say(f"... and {len(failed) - REASONS_SHOWN_MAX} more")
    say(f"Rows that were not imported are in {target}")
