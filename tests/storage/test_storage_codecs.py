"""Pages of every type to bytes and back, sums, rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iotdb_cluster.columns import DataType, TextColumn
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.storage import add_sums, round_values
from iotdb_cluster.storage.codec_ids import CODEC_VERSION
from iotdb_cluster.storage.codecs import Codec, decode_values, encode_values
from iotdb_cluster.storage.number_codecs import Parts, decode_some
from iotdb_cluster.storage.segments import from_bits, largest_of, segment_bounds, smallest_of, to_bits
from iotdb_cluster.storage.sums import segment_sums


def round_trip(kind: DataType, values: Any, level: int = 4) -> Any:
    codec, data = encode_values(kind, values, level)
    back = decode_values(kind, codec, 1, data, len(values))
    if isinstance(values, TextColumn):
        assert back.tolist() == values.tolist()
    else:
        assert back.dtype == values.dtype
        assert back.tobytes() == values.tobytes()
    return codec


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([4, 8]))
def test_any_bits_come_back(data: Any, level: int) -> None:
    kind = data.draw(st.sampled_from([kind for kind in DataType if kind.is_numeric]))
    dtype = np.dtype(f"u{kind.dtype.itemsize}")
    raw = data.draw(arrays(dtype, st.integers(1, 300)))
    round_trip(kind, raw.view(kind.dtype), level)


@pytest.mark.parametrize("count", [1, 23, 24, 25, 1023, 1024, 1025, 10_240])
@pytest.mark.parametrize("level", [4, 8])
def test_sizes_and_edges(count: int, level: int) -> None:
    generator = np.random.default_rng(count)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1.7e308])
    payload = np.array([0x7FF8000000000123, 0xFFF0000000000001, 0x7FF0000000000001], np.uint64).view(np.float64)
    doubles = generator.choice(np.concatenate([special, payload, generator.normal(size=20).round(2)]), count)
    round_trip(DataType.DOUBLE, doubles, level)
    with np.errstate(all="ignore"):
        round_trip(DataType.FLOAT, doubles.astype(np.float32), level)
    extremes = np.array([-(1 << 63), (1 << 63) - 1, 0, 1, -1])
    round_trip(DataType.INT64, generator.choice(extremes, count), level)
    round_trip(DataType.INT32, generator.integers(-(2**31), 2**31, count).astype(np.int32), level)
    round_trip(DataType.BOOLEAN, generator.random(count) < 0.5, level)
    round_trip(DataType.BOOLEAN, np.ones(count, np.bool_), level)
    texts = [bytes(generator.integers(0, 256, generator.integers(0, 20), np.uint8)) for _ in range(count)]
    round_trip(DataType.TEXT, TextColumn.of(texts), level)


def test_texts_empty_large_and_sliced() -> None:
    large = b"x" * (1 << 20)
    noise = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8).tobytes()
    assert round_trip(DataType.TEXT, TextColumn.of([b"", large, b"", noise])) is Codec.TEXTS
    round_trip(DataType.TEXT, TextColumn.of([b""] * 5))
    round_trip(DataType.TEXT, TextColumn.of([b"a", b"bc", large, b"d"])[1:3])


def test_what_cannot_be_is_refused() -> None:
    codec, data = encode_values(DataType.DOUBLE, np.arange(100.0), 4)
    for bad in (
        (DataType.DOUBLE, codec, 2, data, 100),
        (DataType.DOUBLE, 9, 1, data, 100),
        (DataType.DOUBLE, codec, 1, data, 99),
        (DataType.DOUBLE, codec, 1, data, 101),
        (DataType.DOUBLE, Codec.PLAIN, 1, data, 100),
        (DataType.DOUBLE, Codec.LZ4, 1, b"\xff" * 9, 100),
        (DataType.TEXT, Codec.ZSTD, 1, b"\xff" * 9, 100),
        (DataType.TEXT, Codec.PLAIN, 1, b"\1\0\0\0", 1),
        (DataType.BOOLEAN, Codec.PLAIN, 1, b"\1\0\0\0", 1),
    ):
        with pytest.raises(CorruptData):
            decode_values(*bad)


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(st.lists(finite, min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_sums_are_exact_to_a_double_double(numbers: list[float], rng: Any) -> None:
    exact = sum(map(Fraction, numbers))
    bound = max(map(abs, map(Fraction, numbers)))
    for _ in range(3):
        cuts = [0, *sorted(rng.sample(range(1, len(numbers)), rng.randint(0, min(4, len(numbers) - 1))))]
        values, starts = np.array(numbers), np.array(cuts)
        hi, lo = segment_sums(values, starts, np.maximum.reduceat(np.abs(values), starts))
        total_hi, total_lo = np.zeros(1), np.zeros(1)
        for at in range(len(cuts)):
            total_hi, total_lo = add_sums(total_hi, total_lo, hi[at : at + 1], lo[at : at + 1])
        if not np.isfinite(total_hi[0]):
            assert bound * len(numbers) >= Fraction(1.7e308)
            continue
        if bound < Fraction(2) ** 900:
            got = Fraction(float(total_hi[0])) + Fraction(float(total_lo[0]))
            assert abs(got - exact) <= bound * Fraction(1, 2**95) + Fraction(5e-324)
        rng.shuffle(numbers)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 3_000))
def test_numbers_of_one_size_have_the_same_sums_by_the_short_way(seed: int, spread: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.uniform(1, 2, (2, count)) * 2.0 ** generator.integers(-spread, spread + 1, (2, count))
    values *= generator.choice([-1.0, 1.0], (2, 1))
    starts = np.unique(np.append(0, generator.integers(0, count, 4)))
    bounds = np.minimum.reduceat(values, starts, axis=-1), np.maximum.reduceat(values, starts, axis=-1)
    hi, lo = segment_sums(values, starts, largest_of(*bounds), smallest_of(*bounds))
    slow_hi, slow_lo = segment_sums(values, starts, largest_of(*bounds))
    assert np.array_equal(hi, slow_hi)
    assert np.array_equal(lo, slow_lo)
    if spread <= 4:
        for row, sums in zip(values, np.stack([hi, lo], axis=-1), strict=True):
            exact = [sum(map(Fraction, part.tolist())) for part in np.split(row, starts[1:])]
            assert [Fraction(float(high)) + Fraction(float(low)) for high, low in sums] == exact


@pytest.mark.parametrize("count", [300, 5_000])
@pytest.mark.parametrize("form", ["walk", "decimals", "line", "counter", "runs"])
def test_some_slices_of_a_page_are_those_of_the_whole(form: str, count: int) -> None:
    generator = np.random.default_rng(5)
    walk = np.cumsum(generator.normal(size=count))
    values: Any = {
        "walk": walk,
        "decimals": np.round(walk, 2),
        "line": (1 << 62) + np.arange(count) * 1_000,
        "counter": np.cumsum(generator.poisson(5, count)),
        "runs": np.repeat(walk[: count // 50], 50),
    }[form]
    kind = DataType.DOUBLE if values.dtype.kind == "f" else DataType.INT64
    codec, data = encode_values(kind, values, 8)
    for _ in range(20):
        length = int(generator.choice([64, 70, 256]))
        blocks = -(-count // length)
        starts = np.sort(generator.choice(blocks, generator.integers(1, blocks + 1), replace=False)) * length
        parts = Parts(starts, length, count)
        found = np.empty(parts.cells, kind.dtype)
        decode_some(kind.dtype, codec, CODEC_VERSION, data, count, parts, found)
        assert found.tobytes() == np.concatenate([values[part] for part in parts.slices()]).tobytes()


def test_sums_do_not_depend_on_order_and_carry_what_is_not_finite() -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(size=4096) * 10.0 ** generator.integers(-8, 12, 4096)
    one = np.zeros(1, np.int64)
    whole = segment_sums(values, one, np.abs(values).max(keepdims=True))
    for _ in range(5):
        generator.shuffle(values)
        hi, _ = segment_sums(values, one, np.abs(values).max(keepdims=True))
        assert hi == whole[0]
    for extra, want in ((np.inf, np.inf), (-np.inf, -np.inf), (np.nan, np.nan)):
        odd = np.append(values, extra)
        hi, lo = segment_sums(odd, np.array([0, 10]), np.array([np.abs(odd[:10]).max(), np.abs(odd[10:]).max()]))
        assert np.array_equal(hi[1], want, equal_nan=True)
        assert lo[1] == 0
        assert np.isfinite(hi[0])
    ints = np.array([2**31 - 1] * 1024, np.int32)
    assert segment_sums(ints, one, one)[0][0] == (2**31 - 1) * 1024.0


def test_bounds_follow_double_compare() -> None:
    values = np.array([[0.0, -0.0, -1.0, np.nan, 2.0, np.nan, -0.0, -0.0, 0.0, -np.nan]])
    least, greatest = segment_bounds(values, np.array([0, 2, 5, 6, 8]))
    assert to_bits(least)[0].tolist()[:2] == to_bits(np.array([-0.0, -1.0])).tolist()
    assert np.isnan(least[0, 2])
    assert np.signbit(least[0, 3])
    assert not np.signbit(greatest[0, 0])
    assert np.isnan(greatest[0, 1])
    assert np.signbit(greatest[0, 3])
    assert least[0, 4] == 0
    assert np.isnan(greatest[0, 4])
    assert largest_of(np.array([-(2**63)]), np.array([5]))[0] == 2.0**63
    for kind in DataType:
        if kind is not DataType.TEXT:
            cells = np.array([0, 1], kind.dtype)
            assert from_bits(kind, to_bits(cells)).tobytes() == cells.tobytes()


def test_rounding() -> None:
    doubles = np.array([1.005, -1.5, 2.5, 0.125, -0.125, 1e300, np.inf, -np.inf, 123456789.987654321, 0.0])
    assert round_values(doubles, 2).tolist()[2:4] == [2.5, 0.13]
    assert round_values(doubles, 0).tolist()[1:3] == [-1.0, 3.0]
    assert round_values(doubles, 2).tolist()[5:8] == [1e300, np.inf, -np.inf]
    assert np.isnan(round_values(np.array([np.nan]), 2))[0]
    floats = round_values(np.array([20.716, 3.14159], np.float32), 2)
    assert floats.dtype == np.float32
    assert np.allclose(floats, [20.72, 3.14], atol=1e-5)
    assert round_values(np.array([5], np.int32), 2).tolist() == [5]
