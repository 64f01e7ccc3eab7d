"""The records of a log directory as text, for a tool; nothing is changed, damage is told and passed over."""

from __future__ import annotations

from collections.abc import Iterator

from iotdb_cluster.cluster.log.record import Compact, Configuration, Install, Record, State
from iotdb_cluster.cluster.log.recovery import Found, Run, load_accepted, scan, scan_segment
from iotdb_cluster.cluster.log.segment import open_segment, segment_numbers, segment_path
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.world import FileSystem

__all__ = ["describe"]


def describe(files: FileSystem, path: str) -> Iterator[str]:
    """Lines about the segments, batches and records of the log in directory `path`. Raises OSError."""
    segments = []
    found: list[Found] = []
    for number in segment_numbers(files, path):
        try:
            segment = open_segment(files, path, number)
            segments.append(segment)
            batches = scan_segment(segment)
        except CorruptData as exception:
            yield f"damaged: {exception}"
            continue
        found.extend(batches)
        yield f"{segment_path(path, number)}: {segment.size} bytes, log {segment.log_id:016x}, {len(batches)} batches"
    try:
        result = scan(segments, load_accepted(files, path), False)
        oldest = result.chain[0].head.sequence if result.chain else 0
        for first, last in result.lost:
            yield f"batches {first} to {last} are lost, as accepted"
    except CorruptData as exception:
        oldest = 0
        yield f"corrupt: {exception}"
    for batch in sorted(found, key=lambda batch: (batch.head.sequence, batch.segment.number, batch.offset)):
        head = batch.head
        state = "torn or damaged" if batch.records is None else "whole" if head.sequence >= oldest else "not needed"
        yield (
            f"batch {head.sequence} at {batch}: {head.records} records, {head.total_bytes} bytes, "
            f"oldest needed {head.oldest}, {state}"
        )
        for record in batch.records or ():
            yield f"  {_text(record)}"
    for segment in segments:
        segment.file.close()


def _text(record: Record | Run) -> str:
    start = f"replica {record.replica}: "
    if isinstance(record, Run):
        terms = ", ".join(f"{term} from {index}" for index, term in record.starts)
        return (
            f"{start}append {record.first}..{record.first + record.number - 1}, term {terms}, {record.place[1]} bytes"
        )
    if isinstance(record, State):
        state = record.hard_state
        return f"{start}state term {state.term}, vote {state.vote}, commit {state.commit}"
    if isinstance(record, Configuration):
        return f"{start}configuration {record.conf_state}"
    if isinstance(record, Compact):
        return f"{start}compact to {record.index}, term {record.term}"
    if isinstance(record, Install):
        return f"{start}install {record.index}, term {record.term}, {record.conf_state}"
    return f"{start}{type(record).__name__.lower()}"
