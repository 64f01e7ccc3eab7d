"""Long texts: taken, compared, and cut into batches of bounded bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from iotdb_cluster.columns import LONG_TEXT, Column, DataType, RowBatch, TextColumn
from iotdb_cluster.limits import SCAN_BATCH_BYTES
from iotdb_cluster.query.fragments import _cut

lists = some.lists(
    some.one_of(some.binary(max_size=5), some.binary(min_size=LONG_TEXT + 1, max_size=3 * LONG_TEXT)), max_size=12
)


@settings(deadline=None)
@given(lists, some.data())
def test_texts_are_taken_as_a_list_is(texts: list[bytes], draw: Any) -> None:
    column = TextColumn.of([b"before", *texts, b"behind"])[1:-1]
    places = draw.draw(some.lists(some.sampled_from(range(len(texts))), max_size=20)) if texts else []
    kept = draw.draw(some.lists(some.booleans(), min_size=len(texts), max_size=len(texts)))
    assert column[np.array(places, np.int64)].tolist() == [texts[at] for at in places]
    assert column[np.array(kept, np.bool_)].tolist() == [one for one, keep in zip(texts, kept, strict=True) if keep]
    assert column[::-1].tolist() == texts[::-1]
    for text in [*texts[:3], b"", b"a" * (LONG_TEXT + 1)]:
        assert column.equal_to(text).tolist() == [one == text for one in texts]


@settings(deadline=None, max_examples=40)
@given(
    some.lists(some.sampled_from([0, 1, 500_000, 3_000_000, 5_000_000]), min_size=1, max_size=12), some.integers(1, 5)
)
def test_batches_hold_bounded_bytes_and_all_rows(sizes: list[int], batch_rows: int) -> None:
    texts = [bytes([65 + at]) * size for at, size in enumerate(sizes)]
    rows = RowBatch(np.arange(len(texts)), [Column(DataType.TEXT, TextColumn.of(texts))])
    parts = list(_cut(rows, batch_rows))
    assert all(0 < len(part) <= batch_rows for part in parts)
    assert [time for part in parts for time in part.times.tolist()] == list(range(len(texts)))
    assert [text for part in parts for text in part.columns[0].tolist()] == texts
    longest = max(sizes)
    assert all(part.nbytes <= SCAN_BATCH_BYTES + longest + 1_000 for part in parts)
