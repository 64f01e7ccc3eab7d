"""Payloads of the log are compressed where that pays, and come back as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.cluster.log.batch import encode_batch, read_head, read_table
from iotdb_cluster.cluster.log.record import Append, Kind, decode_content, decode_terms
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import LOG_COMPRESS_BYTES_MIN, LOG_SAMPLE_BYTES
from iotdb_cluster.raft import Entries


def entries(payloads: list[bytes], first: int = 7) -> Entries:
    count = len(payloads)
    return Entries(first, [3 + at // 2 for at in range(count)], [0] * count, payloads)


def encoded(payloads: list[bytes]) -> bytes:
    """The content of the record in a batch."""
    data, placed = encode_batch(1, 2, 1, [Append(5, entries(payloads))])
    head = read_head(data, 0)
    assert head is not None
    assert read_table(data, 0, head) == placed
    assert placed[0].kind is Kind.APPEND
    return data[placed[0].offset : placed[0].offset + placed[0].length]


def plain_bytes(payloads: list[bytes]) -> int:
    return 12 + 13 * len(payloads) + sum(map(len, payloads))


PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 99), st.integers(0, 20_000)),
    st.builds(lambda text, times: text * times, st.binary(min_size=1, max_size=40), st.integers(0, 500)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PAYLOADS, min_size=1, max_size=8))
def test_what_was_appended_comes_back(payloads: list[bytes]) -> None:
    content = encoded(payloads)
    assert len(content) <= plain_bytes(payloads)
    found = decode_content(Kind.APPEND, 5, content)
    assert isinstance(found, Append)
    expected = entries(payloads)
    assert (found.entries.first, found.entries.terms, found.entries.kinds, found.entries.data) == (
        expected.first,
        expected.terms,
        expected.kinds,
        expected.data,
    )
    first, count, starts, changes = decode_terms(content)
    assert (first, count) == (7, len(payloads))
    assert changes == [7 + at for at, kind in enumerate(entries(payloads).kinds) if kind]
    assert starts == [(7 + at, 3 + at // 2) for at in range(0, len(payloads), 2)]


def test_what_repeats_is_compressed_and_full_precision_is_not() -> None:
    text = [b'{"pump": "on", "valve": "off"}' * 1_000]
    assert len(encoded(text)) < plain_bytes(text) // 10
    rounded = [np.round(np.cumsum(np.random.default_rng(1).normal(size=10_000)), 2).astype(">f4").tobytes()]
    walk = [np.cumsum(np.random.default_rng(1).normal(size=10_000)).astype(">f8").tobytes()]
    assert len(encoded(walk)) == plain_bytes(walk)
    assert len(encoded(rounded)) <= plain_bytes(rounded)


def test_little_stays_as_it_is() -> None:
    few = [b"x" * (LOG_COMPRESS_BYTES_MIN - 1)]
    assert len(encoded(few)) == plain_bytes(few)
    assert len(encoded([b"x" * LOG_COMPRESS_BYTES_MIN])) < 100


def test_a_sample_that_lies_costs_nothing() -> None:
    """It compresses, the rest does not."""
    noise = random.Random(1)
    payload = [noise.randbytes(50_000) + bytes(LOG_SAMPLE_BYTES) + noise.randbytes(50_000)]
    assert len(encoded(payload)) == plain_bytes(payload)


def test_a_cut_block_is_told() -> None:
    """Flipped bits are the checksum's affair."""
    content = encoded([b"abcdefgh" * 1_000])
    with pytest.raises(CorruptData, match="decompressed"):
        decode_content(Kind.APPEND, 5, content[:-3])


def test_an_unknown_codec_is_refused() -> None:
    content = bytearray(encoded([b"x"]))
    content[8] = 9
    with pytest.raises(CorruptData, match="codec 9"):
        decode_content(Kind.APPEND, 5, bytes(content))
