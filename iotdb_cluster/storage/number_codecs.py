"""Pages of numbers to bytes and back; docs/design/chunk-file.md shows the bytes.

    PLAIN    little-endian, as they are
    PCO      a pcodec stand-alone file
    STRIDE   a straight line and what differs from it: regular times take 16 bytes a page
    DECIMAL  floating numbers with few decimals as whole numbers, bit for bit: what does not come back exactly (NaN,
             infinities, -0.0, other numbers) stands beside them as it was
    RUNS     each run of equal numbers once, and the lengths of the runs

A `NumberEncoder` finds on the first page of a column what suits it, by trial on a sample, and stays with that until
pages grow: trials cost more than encoding.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from iotdb_cluster.errors import CorruptData
from iotdb_cluster.storage.byte_codecs import THOROUGH_LEVEL
from iotdb_cluster.storage.codec_ids import CODEC_VERSION, Codec, Encoded, pack_nested, take_nested

__all__ = ["Hints", "NumberEncoder", "Parts", "decode_numbers", "decode_runs", "decode_some", "encode_runs"]

Array = npt.NDArray[Any]
PCO_CELLS_MIN = 24  # below that its head outweighs what it saves
STRIDE_CELLS_MIN = 3
SAMPLE_CELLS = 512
AUTO_CELLS_MIN = 1_024  # pcodec's own search (strange steps, floats of fewer bits) costs 30 us
RUNS_FACTOR = 8  # runs are worth it where they are on average so long
HINT_CELLS_MAX = 1_024  # longer pages are worth a trial
GROWTH_MAX = 1.25  # a page that needs so many times the bytes a cell of the first one: look anew
EXPONENT_MAX = 10
DECIMAL_BITS_MAX = 2.0**50  # of a scaled number; beyond it decimals are no sparser than doubles
EXCEPTIONS_PART = 32  # of so many cells one may be an exception

_DECIMAL = struct.Struct("<BBxxI")  # exponent, bytes of a whole number, exceptions
_STRIDE = struct.Struct("<qq")  # first number, step
PCO_BATCH = 256  # numbers that pcodec decodes at once: it stops only behind such a batch


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a column is encoded: pcodec's delta order (None: its own search), decimals (None: as it is), ..."""

    delta: int | None
    exponent: int | None = None
    trend: bool = False
    runs: bool = False


Hints = dict[str, tuple[_Plan, float]]  # dtype's character -> (plan, bytes a cell)


@lru_cache(maxsize=64)
def _config(level: int, delta: int | None) -> ChunkConfig:
    if delta is None:
        return ChunkConfig(compression_level=level)
    spec = DeltaSpec.try_consecutive(delta) if delta else DeltaSpec.no_op()
    return ChunkConfig(compression_level=level, mode_spec=ModeSpec.classic(), delta_spec=spec)


def _bits(values: Array) -> Array:
    return values.view(np.dtype(f"u{values.dtype.itemsize}"))


def _plain(values: Array) -> Encoded:
    return Codec.PLAIN, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _pco(values: Array, level: int, delta: int | None) -> Encoded:
    if len(values) >= PCO_CELLS_MIN:
        packed: bytes = standalone.simple_compress(values, _config(level, delta))
        if len(packed) < values.nbytes:
            return Codec.PCO, packed
    return _plain(values)


class NumberEncoder:
    """Encodes the pages of one column of INT32, INT64, FLOAT or DOUBLE; `level` is pcodec's.

    `hints` is shared by the columns of a file: of each dtype what suited the last one. A short page takes it untried
    if that makes it no larger.
    """

    def __init__(self, level: int, hints: Hints | None = None) -> None:
        self._level = level
        self._hints: Hints = {} if hints is None else hints
        self._plan: _Plan | None = None
        self._expected = 0.0  # bytes a cell

    def encode(self, values: Array) -> Encoded:
        """`values` are native and contiguous, at least one cell."""
        if values.dtype.kind == "i" and len(values) >= STRIDE_CELLS_MIN and _is_line(values):
            return Codec.STRIDE, _STRIDE.pack(int(values[0]), int(values[1]) - int(values[0]))
        if len(values) < PCO_CELLS_MIN:
            return _plain(values)
        hint = self._hints.get(values.dtype.char) if self._plan is None and len(values) <= HINT_CELLS_MAX else None
        if hint is not None:
            self._plan, self._expected = hint
        if self._plan is not None:
            encoded = _encode(values, self._plan, self._level)
            if len(encoded[1]) <= GROWTH_MAX * self._expected * len(values):
                return encoded
        self._plan = _choose(values, self._level)
        encoded = _encode(values, self._plan, self._level)
        self._expected = len(encoded[1]) / len(values)
        self._hints[values.dtype.char] = (self._plan, self._expected)
        return encoded


def _is_line(values: Array) -> bool:
    first, step = int(values[0]), int(values[1]) - int(values[0])
    if int(values[-1]) - first != step * (len(values) - 1) or not -(1 << 62) < step < 1 << 62:
        return False
    return bool((values[1:] - values[:-1] == step).all())


def _encode(values: Array, plan: _Plan, level: int) -> Encoded:
    encoded: Encoded | None = None
    if plan.runs:
        encoded = encode_runs(values, level)
    elif plan.exponent is not None:
        encoded = _encode_decimal(values, plan.exponent, plan.delta, level)
    elif plan.trend:
        encoded = _encode_trend(values, plan.delta, level)
    if encoded is None:
        delta = plan.delta if plan.exponent is None and not plan.trend and not plan.runs else 1
        encoded = _pco(values, level, delta)
    return encoded if len(encoded[1]) < values.nbytes else _plain(values)


# --- what suits a column ----------------------------------------------------------------------------------------------


def _choose(values: Array, level: int) -> _Plan:
    """The plan that makes a sample smallest; the first of equal ones."""
    thorough = level >= THOROUGH_LEVEL
    sample = values[: 8 * SAMPLE_CELLS if thorough else SAMPLE_CELLS]
    bits = _bits(sample)
    if RUNS_FACTOR * (1 + np.count_nonzero(bits[1:] != bits[:-1])) <= len(sample):
        return _Plan(0, runs=True)
    orders = (1, 0, 2) if thorough else (1, 0)
    plans: list[_Plan] = []
    if values.dtype.kind == "f":
        exponent = _exponent_of(sample)
        if exponent is not None:
            plans += [_Plan(order, exponent) for order in orders]
    plans += [_Plan(order) for order in orders]
    if thorough and values.dtype.kind == "i":
        plans += [_Plan(order, trend=True) for order in (0, 1)]
    if len(values) >= AUTO_CELLS_MIN:
        plans.append(_Plan(None))
    return min(plans, key=lambda plan: len(_encode(sample, plan, level)[1]))


def _exponent_of(sample: Array) -> int | None:
    """With how many decimals nearly all numbers come back bit for bit; None where that is not so."""
    numbers = sample[:: max(1, len(sample) // 64)].astype(np.float64)
    powers = 10.0 ** np.arange(EXPONENT_MAX + 1)[:, None]
    with np.errstate(all="ignore"):
        scaled = np.rint(numbers * powers)
        exact = (scaled / powers).astype(sample.dtype) == numbers.astype(sample.dtype)
        exact &= np.abs(scaled) < DECIMAL_BITS_MAX
    enough = np.count_nonzero(exact, axis=1) >= len(numbers) - len(numbers) // EXCEPTIONS_PART
    return int(np.argmax(enough)) if enough.any() else None


# --- DECIMAL ----------------------------------------------------------------------------------------------------------


def _encode_decimal(values: Array, exponent: int, delta: int | None, level: int) -> Encoded | None:
    """None where too many numbers have more decimals."""
    limit = len(values) // EXCEPTIONS_PART
    power = 10.0**exponent
    with np.errstate(all="ignore"):
        scaled = np.multiply(values, power, dtype=np.float64)
        np.rint(scaled, out=scaled)
        for width in ("i4", "i8"):
            whole: Array = scaled.astype(width)
            different = _bits((whole / power).astype(values.dtype, copy=False)) != _bits(values)
            count = int(np.count_nonzero(different))
            if count <= limit:
                break
        else:
            return None
    places = np.flatnonzero(different) if count else np.empty(0, np.int64)
    if count:
        # an exception takes the number before it, so that differences stay small
        good = np.maximum.accumulate(np.where(different, 0, np.arange(len(values))))
        whole = whole[good]
        if different[0]:
            whole[: int(np.argmin(different))] = whole[int(np.argmin(different))]
    head = _DECIMAL.pack(exponent, whole.dtype.itemsize, count)
    return Codec.DECIMAL, b"".join(
        (
            head,
            places.astype("<u4").tobytes(),
            _plain(values[places])[1],
            pack_nested(_pco(whole, level, delta)),
        )
    )


def _decode_decimal(dtype: np.dtype[Any], data: bytes, count: int) -> Array:
    exponent, width, exceptions = _DECIMAL.unpack_from(data)
    at = _DECIMAL.size
    if exponent > EXPONENT_MAX or width not in (4, 8) or exceptions > count:
        raise CorruptData(f"a decimal page of {count} numbers has exponent {exponent}, {exceptions} exceptions")
    places = np.frombuffer(data, "<u4", exceptions, at)
    at += places.nbytes
    odd = np.frombuffer(data, dtype.newbyteorder("<"), exceptions, at)
    at += odd.nbytes
    codec, version, inner, end = take_nested(data, at)
    whole = decode_numbers(np.dtype(f"i{width}"), codec, version, inner, count)
    if end != len(data) or (exceptions and int(places.max()) >= count):
        raise CorruptData(f"a decimal page of {count} numbers has bytes or exceptions that do not belong to it")
    values: Array = np.divide(whole, 10.0**exponent).astype(dtype, copy=False)
    if exceptions:
        _bits(values)[places] = _bits(odd.astype(dtype))
    return values


# --- STRIDE -----------------------------------------------------------------------------------------------------------


def _encode_trend(values: Array, delta: int | None, level: int) -> Encoded | None:
    """A line through the ends, and small differences from it; None where they are not small."""
    first = int(values[0])
    step = round((int(values[-1]) - first) / (len(values) - 1))
    if not -(1 << 62) < step < 1 << 62:
        return None
    with np.errstate(over="ignore"):
        rest = values - _line(values.dtype, first, step, len(values))
    if int(rest.min()) < -(1 << 31) or int(rest.max()) >= 1 << 31:
        return None
    return Codec.STRIDE, _STRIDE.pack(first, step) + pack_nested(_pco(rest.astype(np.int32), level, delta))


def _line(dtype: np.dtype[Any], first: int, step: int, count: int) -> Array:
    line = np.arange(count, dtype=np.int64)
    line *= step
    line += (first + (1 << 63)) % (1 << 64) - (1 << 63)
    return line.astype(dtype, copy=False)


def _decode_stride(dtype: np.dtype[Any], data: bytes, count: int) -> Array:
    first, step = _STRIDE.unpack_from(data)
    values = _line(dtype, first, step, count)
    if len(data) > _STRIDE.size:
        codec, version, inner, end = take_nested(data, _STRIDE.size)
        if end != len(data):
            raise CorruptData(f"a page of {count} numbers has {len(data) - end} bytes too many")
        with np.errstate(over="ignore"):
            values += decode_numbers(np.dtype(np.int32), codec, version, inner, count).astype(dtype, copy=False)
    return values


# --- RUNS -------------------------------------------------------------------------------------------------------------


def encode_runs(values: Array, level: int) -> Encoded:
    """Also of booleans, whose runs alternate: then the first stands alone."""
    bits = _bits(values)
    starts = np.flatnonzero(np.concatenate(([True], bits[1:] != bits[:-1])))
    lengths = np.diff(starts, append=len(values)).astype(np.int32)
    flags = values.dtype == np.bool_
    first = (Codec.PLAIN, values[:1].tobytes()) if flags else _nested(values[starts], level)
    return Codec.RUNS, struct.pack("<I", len(starts)) + pack_nested(first) + pack_nested(_nested(lengths, level))


def _nested(values: Array, level: int) -> Encoded:
    return min((_pco(values, level, order) for order in (0, 1)), key=lambda encoded: len(encoded[1]))


def decode_runs(dtype: np.dtype[Any], data: bytes, count: int) -> Array:
    """The inverse of `encode_runs`."""
    (runs,) = struct.unpack_from("<I", data)
    if not 0 < runs <= count:
        raise CorruptData(f"a page of {count} cells has {runs} runs")
    codec, version, inner, at = take_nested(data, 4)
    if dtype == np.bool_:
        if len(inner) != 1 or inner[0] > 1:
            raise CorruptData("a page of runs of booleans does not say what the first one is")
        starts = (np.arange(runs) + inner[0]) % 2 == 1
    else:
        starts = decode_numbers(dtype, codec, version, inner, runs)
    codec, version, inner, end = take_nested(data, at)
    lengths = decode_numbers(np.dtype(np.int32), codec, version, inner, runs)
    if end != len(data) or int(lengths.min()) < 1 or int(lengths.sum(dtype=np.int64)) != count:
        raise CorruptData(f"the runs of a page do not make {count} cells")
    return np.repeat(starts, lengths)


# --- decoding ---------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """Some cells of a page of `rows`: `length` of them from each of `starts` on, ascending multiples of it.

    The last of a page may be shorter.
    """

    starts: npt.NDArray[np.int64]  # int64[p]
    length: int
    rows: int

    @property
    def stop(self) -> int:
        """Behind the last of them."""
        return min(int(self.starts[-1]) + self.length, self.rows)

    @property
    def cells(self) -> int:
        """How many."""
        return (len(self.starts) - 1) * self.length + self.stop - int(self.starts[-1])

    def slices(self) -> list[slice]:
        return [slice(start, min(start + self.length, self.rows)) for start in self.starts.tolist()]

    def pick(self, values: Array, out: Array) -> None:
        """These cells, one after another; `values` may end behind `stop`."""
        if self.stop < int(self.starts[-1]) + self.length:
            np.concatenate([values[part] for part in self.slices()], out=out)
            return
        whole = len(values) - len(values) % self.length
        rows = values[:whole].reshape(-1, self.length)
        np.take(rows, self.starts // self.length, axis=0, out=out.reshape(-1, self.length), mode="clip")


def decode_some(
    dtype: np.dtype[Any], codec: int, version: int, data: bytes, count: int, parts: Parts, out: Array
) -> None:
    """Some of what `decode_numbers` gives, into `out`, dtype[parts.cells]: lines make no more than these."""
    if version == CODEC_VERSION and codec == Codec.STRIDE and dtype == np.int64 and len(data) == _STRIDE.size:
        first, step = _STRIDE.unpack(data)
        begins, steps = parts.starts * step + first, np.arange(parts.length) * step
        if len(out) == len(begins) * parts.length:
            np.add.outer(begins, steps, out=out.reshape(-1, parts.length))
        else:
            out[:] = np.add.outer(begins, steps).reshape(-1)[: len(out)]
        return
    needed = parts.stop
    if version == CODEC_VERSION and codec == Codec.DECIMAL and dtype.kind == "f" and len(data) > _DECIMAL.size:
        exponent, width, exceptions = _DECIMAL.unpack_from(data)
        if exponent <= EXPONENT_MAX and width in (4, 8) and not exceptions:
            inner_codec, inner_version, inner, end = take_nested(data, _DECIMAL.size)
            if end == len(data):
                whole = _decode_first(np.dtype(f"i{width}"), inner_codec, inner_version, inner, count, needed)
                if dtype.itemsize == width:
                    parts.pick(whole, out.view(whole.dtype))
                    np.divide(out.view(whole.dtype), 10.0**exponent, out=out, casting="same_kind")
                else:
                    picked = np.empty(len(out), whole.dtype)
                    parts.pick(whole, picked)
                    out[:] = np.divide(picked, 10.0**exponent)
                return
    values = _decode_first(dtype, codec, version, data, count, needed)
    parts.pick(values, out)


def _decode_first(dtype: np.dtype[Any], codec: int, version: int, data: bytes, count: int, needed: int) -> Array:
    """At least the first `needed` of what `decode_numbers` gives."""
    if version == CODEC_VERSION and codec == Codec.PCO:
        return _decode_pco(dtype, data, count, min(count, -(-needed // PCO_BATCH) * PCO_BATCH))
    return decode_numbers(dtype, codec, version, data, count)


def decode_numbers(dtype: np.dtype[Any], codec: int, version: int, data: bytes, count: int) -> Array:
    """Exactly `count` numbers of a native dtype; CorruptData where the bytes do not give them."""
    if version != CODEC_VERSION:
        raise CorruptData(f"a page has codec version {version}, this program knows {CODEC_VERSION}")
    if codec == Codec.PCO:
        return _decode_pco(dtype, data, count, count)
    if codec == Codec.PLAIN:
        if len(data) != count * dtype.itemsize:
            raise CorruptData(f"a page of {count} numbers holds {len(data)} bytes")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    try:
        if codec == Codec.STRIDE and dtype.kind == "i":
            return _decode_stride(dtype, data, count)
        if codec == Codec.DECIMAL and dtype.kind == "f":
            return _decode_decimal(dtype, data, count)
        if codec == Codec.RUNS:
            return decode_runs(dtype, data, count)
    except (struct.error, ValueError, OverflowError) as error:
        raise CorruptData(f"a page of {count} numbers cannot be decoded: {error}") from error
    raise CorruptData(f"a page of numbers has codec {codec}, which this program does not know for them")


def _decode_pco(dtype: np.dtype[Any], data: bytes, count: int, needed: int) -> Array:
    """The first `needed` of `count`; fewer than all of them must be whole batches."""
    values = np.empty(needed, dtype)
    try:
        progress = standalone.simple_decompress_into(data, values)
    except (RuntimeError, TypeError) as error:
        raise CorruptData(f"a page of {count} numbers cannot be decoded: {error}") from error
    if progress.n_processed != needed or (needed == count and not progress.finished):
        raise CorruptData(f"a page of {count} numbers holds {progress.n_processed} or more")
    return values
