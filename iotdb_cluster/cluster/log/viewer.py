"""What a log directory, or one of its segment files, holds: as facts for a program, or as lines for a person.

Nothing is changed; damage is told and passed over.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from iotdb_cluster.cluster.log.record import Compact, Configuration, Install, Record, State, decode_entries
from iotdb_cluster.cluster.log.recovery import Found, Run, load_accepted, scan, scan_segment
from iotdb_cluster.cluster.log.segment import Segment, open_segment, segment_number, segment_numbers
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.raft import EntryKind
from iotdb_cluster.world import FileSystem

__all__ = ["describe", "fact_line", "log_facts"]

Fact = dict[str, Any]


def log_facts(files: FileSystem, path: str, entries: Callable[[bytes], str] | None = None) -> Iterator[Fact]:
    """A fact for each segment, batch, record, and the end of the log, at `path`: a log directory or a segment file.

    With `entries`, which says what a payload is, also one for each entry. Raises OSError where there is no such path.
    """
    number = segment_number(posixpath.basename(path))
    directory = path if number is None else posixpath.dirname(path) or "."
    if number is None and not segment_numbers(files, path):
        raise FileNotFoundError(f"{path}: no log segments are there, and it is no segment file")
    segments: list[Segment] = []
    found: list[Found] = []
    try:
        for one in segment_numbers(files, directory) if number is None else [number]:
            yield from _segment(files, directory, one, segments, found)
        oldest, end = 0, None
        if number is None:
            try:
                result = scan(segments, load_accepted(files, directory), False)
                end = result.chain[-1] if result.chain else None
                oldest = result.chain[0].head.sequence if result.chain else 0
                yield from ({"what": "lost", "first": first, "last": last} for first, last in result.lost)
            except CorruptData as exception:
                yield {"what": "corrupt", "text": str(exception)}
        else:
            end = max((one for one in found if one.records is not None), key=_sequence, default=None)
        for batch in sorted(found, key=lambda one: (one.head.sequence, one.segment.number, one.offset)):
            yield _batch(batch, oldest)
            for record in batch.records or ():
                yield {"what": "record", "batch": batch.head.sequence, **_record(record)}
                if isinstance(record, Run) and entries is not None:
                    yield from _entries(batch.segment, record, entries)
        if end is not None:
            place = {"path": end.segment.path, "offset": end.end}
            yield {"what": "end", "sequence": end.head.sequence, "of": "log" if number is None else "file", **place}
    finally:
        for segment in segments:
            segment.file.close()


def _sequence(batch: Found) -> int:
    return batch.head.sequence


def _segment(
    files: FileSystem, directory: str, number: int, segments: list[Segment], found: list[Found]
) -> Iterator[Fact]:
    try:
        segment = open_segment(files, directory, number)
        segments.append(segment)
        batches = scan_segment(segment)
    except CorruptData as exception:
        yield {"what": "damaged", "text": str(exception)}
        return
    found.extend(batches)
    yield {
        "what": "segment",
        "path": segment.path,
        "bytes": segment.size,
        "log": f"{segment.log_id:016x}",
        "batches": len(batches),
    }


def _batch(batch: Found, oldest: int) -> Fact:
    head = batch.head
    return {
        "what": "batch",
        "sequence": head.sequence,
        "path": batch.segment.path,
        "offset": batch.offset,
        "records": head.records,
        "bytes": head.total_bytes,
        "oldest": head.oldest,
        "state": "torn or damaged" if batch.records is None else "whole" if head.sequence >= oldest else "not needed",
    }


def _record(record: Record | Run) -> Fact:
    fact: Fact = {"kind": type(record).__name__.lower(), "replica": record.replica}
    if isinstance(record, Run):
        last = record.first + record.number - 1
        terms = [[index, term] for index, term in record.starts]
        return {**fact, "kind": "append", "first": record.first, "last": last, "terms": terms, "bytes": record.place[1]}
    if isinstance(record, State):
        return {**fact, **record.hard_state._asdict()}
    if isinstance(record, Configuration):
        return {**fact, "index": record.index, "members": str(record.conf_state)}
    if isinstance(record, Compact):
        return {**fact, "index": record.index, "term": record.term}
    if isinstance(record, Install):
        return {**fact, "index": record.index, "term": record.term, "members": str(record.conf_state)}
    return fact


def _entries(segment: Segment, run: Run, text: Callable[[bytes], str]) -> Iterator[Fact]:
    position, length, _ = run.place
    try:
        entries = decode_entries(segment.file.read(position & 0xFFFFFFFF, length))
    except CorruptData as exception:
        yield {"what": "damaged", "text": f"{segment.path} offset {position & 0xFFFFFFFF}: {exception}"}
        return
    for index, (term, kind, data) in enumerate(zip(entries.terms, entries.kinds, entries.data, strict=True), run.first):
        normal = kind == EntryKind.NORMAL
        said = text(data) if normal and data else "empty" if normal else EntryKind(kind).name.lower().replace("_", " ")
        yield {
            "what": "entry",
            "replica": run.replica,
            "index": index,
            "term": term,
            "bytes": len(data),
            "text": said,
        }


# --- for a person -----------------------------------------------------------------------------------------------------


def describe(files: FileSystem, path: str, entries: Callable[[bytes], str] | None = None) -> Iterator[str]:
    """As `log_facts`, a line each."""
    for fact in log_facts(files, path, entries):
        yield fact_line(fact)


def fact_line(fact: Fact) -> str:
    return _LINES[fact["what"]](fact)


def _record_line(fact: Fact) -> str:
    start = f"  replica {fact['replica']}: "
    kind = fact["kind"]
    if kind == "append":
        terms = ", ".join(f"{term} from {index}" for index, term in fact["terms"])
        return f"{start}append {fact['first']}..{fact['last']}, term {terms}, {fact['bytes']} bytes"
    if kind == "state":
        return f"{start}state term {fact['term']}, vote {fact['vote']}, commit {fact['commit']}"
    if kind == "configuration":
        return f"{start}configuration {fact['members']}"
    if kind == "compact":
        return f"{start}compact to {fact['index']}, term {fact['term']}"
    if kind == "install":
        return f"{start}install {fact['index']}, term {fact['term']}, {fact['members']}"
    return start + str(kind)


_LINES: dict[str, Callable[[Fact], str]] = {
    "segment": lambda f: f"{f['path']}: {f['bytes']} bytes, log {f['log']}, {f['batches']} batches",
    "damaged": lambda f: f"damaged: {f['text']}",
    "corrupt": lambda f: f"corrupt: {f['text']}",
    "lost": lambda f: f"batches {f['first']} to {f['last']} are lost, as accepted",
    "batch": lambda f: (
        f"batch {f['sequence']} at {f['path']} offset {f['offset']}: {f['records']} records, {f['bytes']} bytes, "
        f"oldest needed {f['oldest']}, {f['state']}"
    ),
    "record": _record_line,
    "entry": lambda f: f"    {f['index']} term {f['term']}: {f['bytes']} bytes, {f['text']}",
    "end": lambda f: f"the {f['of']} ends behind batch {f['sequence']}, at {f['path']} offset {f['offset']}",
}
