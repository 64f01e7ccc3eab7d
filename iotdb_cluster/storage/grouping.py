"""Which series of a device share a time column in a file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from iotdb_cluster.columns import DataType

__all__ = ["SeriesKey", "shared_groups"]

SeriesKey = tuple[str, DataType]  # (measurement, type)

SPARSE_FACTOR = 3  # rows are kept together unless the table has more than so many times the cells that hold a value


def shared_groups(parts: Sequence[tuple[Collection[SeriesKey], int, int]]) -> Iterator[list[SeriesKey]]:
    """`parts` are (series, rows, cells) that are stored together now; each series comes in exactly one group.

    Parts that have a series in common become one group. If that would be mostly nulls each series stands alone.
    """
    group_of: dict[SeriesKey, int] = {}
    members: dict[int, list[int]] = {}
    for number, (keys, _, _) in enumerate(parts):
        met = sorted({group_of[key] for key in keys if key in group_of})
        joined = [number]
        for other in met[1:]:
            joined += members.pop(other)
        home = met[0] if met else number
        members.setdefault(home, []).extend(joined)
        for part in joined:
            group_of.update(dict.fromkeys(parts[part][0], home))
    for numbers in members.values():
        union = list(dict.fromkeys(key for number in sorted(numbers) for key in parts[number][0]))
        rows = sum(parts[number][1] for number in numbers)
        cells = sum(parts[number][2] for number in numbers)
        if rows * len(union) <= SPARSE_FACTOR * cells:
            yield union
        else:
            for key in union:
                yield [key]
