"""Each form of a page: where it is chosen, that it comes back bit for bit, and that what is cut or odd is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.columns import Column, DataType, Tablet, TextColumn, native, shape_of
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.simulation import SimulatedDisk
from iotdb_cluster.storage import Store, StoreOptions, UnitId
from iotdb_cluster.storage.codecs import Codec, PageEncoder, decode_values, encode_values

LEVELS = (4, 8)
U = UnitId(1, 0)


def back(kind: DataType, values: Any, level: int = 4) -> Codec:
    codec, data = encode_values(kind, values, level)
    found = decode_values(kind, codec, 1, data, len(values))
    if isinstance(values, TextColumn):
        assert isinstance(found, TextColumn)
        assert found.tolist() == values.tolist()
    else:
        assert not isinstance(found, TextColumn)
        assert found.dtype == values.dtype
        assert found.tobytes() == values.tobytes()
        assert found.flags.c_contiguous
    return codec


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [1, 2, 3, 24, 1024, 10_240])
def test_lines_constants_and_extremes_of_integers(count: int, level: int) -> None:
    for kind in (DataType.INT64, DataType.INT32):
        limits = np.iinfo(kind.dtype)
        for first, step in ((0, 0), (limits.min, 1), (limits.max, -3), (5, 1000), (-7, 0)):
            values = (first + np.arange(count) * step).astype(kind.dtype)
            assert back(kind, values, level) is (Codec.STRIDE if count >= 3 else Codec.PLAIN)
        back(kind, np.resize(np.array([limits.min, limits.max], kind.dtype), count), level)
        back(kind, np.resize(np.array([limits.min, limits.max, 0], kind.dtype), count), level)


def test_jitter_around_a_regular_time_and_a_line_that_is_too_steep() -> None:
    generator = np.random.default_rng(5)
    times = 1_700_000_000_000 + np.arange(10_000) * 1000 + generator.integers(-50, 51, 10_000)
    assert back(DataType.INT64, times, 8) is Codec.STRIDE
    assert back(DataType.INT64, times, 4) is Codec.PCO
    steep = np.array([-(1 << 63), (1 << 63) - 1] * 50)
    back(DataType.INT64, steep, 8)
    back(DataType.INT64, np.sort(generator.integers(-(1 << 63), (1 << 63) - 1, 5_000)), 8)


@pytest.mark.parametrize("kind", [DataType.DOUBLE, DataType.FLOAT])
@pytest.mark.parametrize("decimals", [0, 1, 2, 4, 7])
def test_decimals(kind: DataType, decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    values = np.cumsum(generator.normal(size=5_000)).round(decimals).astype(kind.dtype)
    # whole numbers and 7 digits of a float are no sparser than what pcodec finds by itself
    wanted = {Codec.DECIMAL} if 0 < decimals < 7 else {Codec.DECIMAL, Codec.PCO}
    for level in LEVELS:
        assert back(kind, values, level) in wanted
    odd = [np.nan, np.inf, -np.inf, -0.0, 5e-324, 1 / 3, 2.0**40 / 3]
    for places in (range(7), [0, 4_999], [4_999], range(2_000, 2_100)):
        sprinkled = values.copy()
        for at, place in enumerate(places):
            sprinkled[place] = odd[at % len(odd)]
        assert back(kind, sprinkled) in wanted
    payload = np.array([0x7FF8000000000123, 0xFFF0000000000001, 0x7FF0000000000001], np.uint64).view(np.float64)
    if kind is DataType.DOUBLE:
        sprinkled[10:13] = payload
        assert back(kind, sprinkled) in wanted


def test_large_decimals_need_wide_whole_numbers() -> None:
    generator = np.random.default_rng(2)
    values = (generator.integers(0, 1 << 40, 3_000) / 100.0).astype(np.float64)
    assert back(DataType.DOUBLE, values) is Codec.DECIMAL
    back(DataType.DOUBLE, np.array([1e300, -1e300, 1e17, 2.5] * 100))


@pytest.mark.parametrize("level", LEVELS)
def test_runs(level: int) -> None:
    generator = np.random.default_rng(level)
    for kind in DataType:
        if kind is DataType.TEXT:
            continue
        steps = generator.integers(0, 2 if kind is DataType.BOOLEAN else 1000, 200).astype(kind.dtype)
        values = np.repeat(steps, generator.integers(1, 100, 200))
        assert back(kind, values, level) is Codec.RUNS
        back(kind, np.full(2_000, steps[0]), level)
    nans = np.repeat(np.array([np.nan, -0.0, 0.0, np.inf] * 20), 64)
    back(DataType.DOUBLE, nans, level)


@pytest.mark.parametrize("level", LEVELS)
def test_texts_that_come_again(level: int) -> None:
    generator = np.random.default_rng(level)
    words = [b"", b"a", b"aa", "größer".encode(), b"\0", b"\0\0", b"x" * 300]
    texts = TextColumn.of([words[at] for at in generator.integers(0, len(words), 3_000)])
    assert back(DataType.TEXT, texts, level) is Codec.DICTIONARY
    assert back(DataType.TEXT, texts[100:1_000], level) is Codec.DICTIONARY
    back(DataType.TEXT, TextColumn.full(3_000, b"same"), level)
    back(DataType.TEXT, TextColumn.full(3_000, b""), level)
    different = TextColumn.of([b"%d" % at for at in generator.integers(0, 1 << 60, 3_000)])
    assert back(DataType.TEXT, different, level) is Codec.TEXTS


values_of = st.one_of(
    st.floats(allow_nan=True, width=64),
    st.decimals(min_value=-10_000, max_value=10_000, places=2).map(float),
    st.sampled_from([0.0, -0.0, 1.5, 20.25]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(values_of, min_size=1, max_size=200), st.integers(1, 40), st.sampled_from(LEVELS))
def test_any_mixture_of_doubles(numbers: list[float], times: int, level: int) -> None:
    values = np.array(numbers * times)
    back(DataType.DOUBLE, values, level)
    with np.errstate(all="ignore"):
        back(DataType.FLOAT, values.astype(np.float32), level)
        back(DataType.INT64, np.nan_to_num(values).astype(np.int64), level)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=12), min_size=1, max_size=60), st.integers(1, 60), st.sampled_from(LEVELS))
def test_any_mixture_of_texts(words: list[bytes], times: int, level: int) -> None:
    back(DataType.TEXT, TextColumn.of(words * times), level)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=40), st.sampled_from(LEVELS))
def test_any_runs_of_booleans(lengths: list[int], level: int) -> None:
    flags = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    back(DataType.BOOLEAN, flags, level)


def test_a_column_that_changes_its_nature_is_looked_at_anew() -> None:
    generator = np.random.default_rng(1)
    walk = np.cumsum(generator.normal(size=4_096))
    pages = [walk.round(2), walk, np.repeat(walk[:64], 64), walk.round(1), np.full(4_096, np.nan), walk.round(2)]
    for level in LEVELS:
        encoder = PageEncoder(DataType.DOUBLE, level)
        codecs = []
        for page in pages:
            codec, data = encoder.encode(page)
            codecs.append(codec)
            found = decode_values(DataType.DOUBLE, codec, 1, data, len(page))
            assert not isinstance(found, TextColumn)
            assert found.tobytes() == page.tobytes()
        assert codecs[:2] == [Codec.DECIMAL, Codec.PCO]


def test_cut_and_changed_pages_are_refused_or_give_as_many_cells() -> None:
    """The checksum comes first; but whatever passes must never read out of bounds or give another number of cells."""
    generator = np.random.default_rng(9)
    words = TextColumn.of([[b"on", b"off", b"standby"][at] for at in generator.integers(0, 3, 400)])
    pages: list[tuple[DataType, Any]] = [
        (DataType.DOUBLE, np.append(np.cumsum(generator.normal(size=400)).round(2), np.nan)),
        (DataType.DOUBLE, np.repeat(generator.normal(size=10), 40)),
        (DataType.INT64, np.arange(400)),
        (DataType.INT64, np.arange(400) * 1000 + generator.integers(0, 9, 400)),
        (DataType.BOOLEAN, np.repeat(np.arange(8) % 2 == 0, 100)),
        (DataType.TEXT, words),
        (DataType.TEXT, TextColumn.of([b"%d" % at for at in generator.integers(0, 1 << 60, 600)])),
    ]
    rng = random.Random(4)
    for kind, values in pages:
        codec, data = encode_values(kind, values, 8)
        for _ in range(150):
            harmed = bytearray(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.4 else data)
            for _ in range(rng.randrange(3)):
                if harmed:
                    harmed[rng.randrange(len(harmed))] ^= 1 << rng.randrange(8)
            try:
                found = decode_values(kind, codec, 1, bytes(harmed), len(values))
            except CorruptData:
                continue
            assert len(found) == len(values)
        for count in (len(values) - 1, len(values) + 1):
            if kind is not DataType.BOOLEAN and (codec is not Codec.STRIDE or len(data) > 16):
                with pytest.raises(CorruptData):
                    decode_values(kind, codec, 1, data, count)


def test_strided_and_foreign_columns_are_stored_as_they_are_meant() -> None:
    generator = np.random.default_rng(3)
    wide = generator.normal(size=(2_000, 3)).round(2)
    kinds = (DataType.DOUBLE, DataType.FLOAT, DataType.INT64, DataType.INT32)
    columns = [
        Column(kind, source[::2, 1])
        for kind, source in zip(
            kinds,
            (wide.astype(">f8"), wide.astype(">f4"), (wide * 100).astype(">i8"), (wide * 100).astype("<i4")),
            strict=True,
        )
    ]
    times = np.arange(2_000, dtype=">i8")[::2] * 5
    store = Store.open(SimulatedDisk(random.Random(1)), "/s", StoreOptions(compaction_files_min=1))
    store.open_unit(U, (1, 0))
    store.write(U, 1, 1, [Tablet("root.sg.d", shape_of(("a", "b", "c", "d"), kinds), times, columns)])
    for step in ("flush", "compact"):
        job = store.seal()[0] if step == "flush" else store.pick()
        assert job is not None
        job.run()
        job.finish()
        with store.reader(U) as reader:
            for name, kind, column in zip("abcd", kinds, columns, strict=True):
                got = list(reader.read("root.sg.d", name, kind, -(1 << 63), (1 << 63) - 1))
                assert np.concatenate([part for part, _ in got]).tolist() == times.tolist()
                values = np.concatenate([part for _, part in got])  # type: ignore[arg-type]  # numbers
                assert values.tobytes() == native(column.values).tobytes()  # type: ignore[union-attr]  # numbers
