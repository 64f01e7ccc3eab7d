"""Texts to types and values, and values to texts."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotdb_cluster.columns import Column, DataType
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.schema import (
    InferenceRules,
    convert,
    convert_column,
    infer_type,
    insert_failure,
    java_map_json,
    java_text,
    java_texts,
    java_tree_order,
)
from iotdb_cluster.schema.javatext import java_hash, java_map_order

BOOLEAN, INT32, INT64, FLOAT, DOUBLE, TEXT = DataType


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("true", BOOLEAN),
        ("FALSE", BOOLEAN),
        ("1", FLOAT),
        ("-7", FLOAT),
        ("33554432", FLOAT),
        ("33554433", DOUBLE),
        ("-99999999999", FLOAT),
        ("1.5", FLOAT),
        ("1.5e3", FLOAT),
        ("1.", FLOAT),
        ("NaN", DOUBLE),
        ("nan", TEXT),
        ("null", TEXT),
        ("'1'", TEXT),
        ("", TEXT),
        ("1_0", TEXT),
        ("١", TEXT),
    ],
)
def test_inferred_types(text: str, kind: DataType) -> None:
    assert infer_type(text) is kind


@pytest.mark.parametrize("text", ["1e5", "1d", "1f", "Infinity", " 1", "9223372036854775808", "+NaN"])
def test_numbers_that_no_type_is_inferred_from(text: str) -> None:
    with pytest.raises(CallerError) as caught:
        infer_type(text)
    assert caught.value.code is Status.INTERNAL_SERVER_ERROR
    assert caught.value.message == f'For input string: "{text}"'


def test_inference_rules() -> None:
    rules = InferenceRules(integer=INT32, long=INT64, floating=DOUBLE)
    assert [infer_type(text, rules) for text in ("1", "99999999999", "1.5", "NaN")] == [INT32, INT64, DOUBLE, DOUBLE]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("TRUE", BOOLEAN, True),
        ("0", BOOLEAN, False),
        ("+5", INT32, 5),
        ("-2147483648", INT32, -(1 << 31)),
        ("0" * 40 + "7", INT64, 7),
        ("9223372036854775807", INT64, (1 << 63) - 1),
        (" 1.5f ", DOUBLE, 1.5),
        ("1d", FLOAT, 1.0),
        (".5", DOUBLE, 0.5),
        ("0x1.8p1", DOUBLE, 3.0),
        ("-Infinity", FLOAT, -math.inf),
        ("1e400", DOUBLE, math.inf),
        ("1e39", FLOAT, math.inf),
        ("3.4028235E38", FLOAT, 3.4028234663852886e38),
        ("1.00000005960464477539062500001", FLOAT, 1.0000001192092896),
        ("1.000000059604644775390625", FLOAT, 1.0),
        ("99", TEXT, b"99"),
        ("'a''", TEXT, b"a'"),
        ('"汉"', TEXT, "汉".encode()),
        ("'a\"", TEXT, b"'a\""),
        ("'", TEXT, b"'"),
        ("''", TEXT, b""),
    ],
)
def test_conversions(text: str, kind: DataType, value: object) -> None:
    assert convert(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("12", BOOLEAN, "The BOOLEAN should be true/TRUE, false/FALSE or 0/1"),
        ("'true'", BOOLEAN, "The BOOLEAN should be true/TRUE, false/FALSE or 0/1"),
        ("2147483648", INT32, 'For input string: "2147483648"'),
        ("1.5", INT32, 'For input string: "1.5"'),
        ("1_0", INT64, 'For input string: "1_0"'),
        ("9223372036854775808", INT64, 'For input string: "9223372036854775808"'),
        ("1" * 30, INT64, f'For input string: "{"1" * 30}"'),
        ("'abc'", FLOAT, "For input string: \"'abc'\""),
        ("true", FLOAT, 'For input string: "true"'),
        ("", DOUBLE, "empty String"),
    ],
)
def test_failed_conversions(text: str, kind: DataType, message: str) -> None:
    with pytest.raises(CallerError) as caught:
        convert(text, kind)
    assert (caught.value.code, caught.value.message) == (Status.STORAGE_ENGINE_ERROR, message)


def test_a_column_of_texts_names_its_bad_cells() -> None:
    column, failures = convert_column(["1", "x", "3"], INT32)
    assert column.tolist() == [1, None, 3]
    assert {at: error.message for at, error in failures.items()} == {1: 'For input string: "x"'}
    answer = insert_failure(["s1", "s2"], failures[1].message)
    assert answer.message == 'failed to insert measurements [s1, s2] caused by For input string: "x"'


def nearest_float32(value: Fraction) -> float:
    """By comparing the exact distances of the neighbours; ties to even."""
    near = np.float32(float(value))
    candidates = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]

    def key(item: np.float32) -> tuple[Fraction, int]:
        (bits,) = struct.unpack(">I", struct.pack(">f", item))
        return abs(Fraction(float(item)) - value), bits & 1

    return float(min(candidates, key=key))


@given(st.floats(width=32, min_value=2**-140, max_value=2.0**100), st.integers(-2, 2), st.booleans())
def test_texts_become_the_nearest_float(value: float, digit: int, middle: bool) -> None:
    exact = Fraction(value)
    if middle:
        above = Fraction(float(np.nextafter(np.float32(value), np.float32(np.inf))))
        exact = (exact + above) / 2
    # A few units in a far away decimal place beside the tie, where rounding twice goes wrong.
    places = 220
    text = decimal_text(exact + Fraction(digit, 10**200), places)
    assert convert(text, FLOAT) == nearest_float32(Fraction(text))


def decimal_text(value: Fraction, places: int) -> str:
    scaled = value.numerator * 10**places // value.denominator
    whole, rest = divmod(scaled, 10**places)
    return f"{whole}.{rest:0{places}d}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25.96, "25.96"),
        (1.0, "1.0"),
        (1e7, "1.0E7"),
        (9999999.0, "9999999.0"),
        (1e10, "1.0E10"),
        (1e-3, "0.001"),
        (1e-5, "1.0E-5"),
        (-0.0, "-0.0"),
        (123456789.125, "1.23456789125E8"),
        (5e-324, "4.9E-324"),
        (1.7976931348623157e308, "1.7976931348623157E308"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
    ],
)
def test_java_double(value: float, text: str) -> None:
    assert java_text(value, DOUBLE) == text


def test_java_texts_of_other_types() -> None:
    assert java_text(np.float32(0.1), FLOAT) == "0.1"
    assert java_text(1.4e-45, FLOAT) == "1.4E-45"
    assert java_text(16777216.0, FLOAT) == "1.6777216E7"
    assert java_texts(Column.of(BOOLEAN, [True, None, False])) == ["true", None, "false"]
    assert java_texts(Column.of(INT64, [-(1 << 63)])) == ["-9223372036854775808"]
    assert java_texts(Column.of(TEXT, ["汉", b"\xff"])) == ["汉", "\ufffd"]


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([FLOAT, DOUBLE]))
def test_java_text_reads_back(value: float, kind: DataType) -> None:
    with np.errstate(over="ignore"):
        held = float(np.float32(value)) if kind is FLOAT else value
    if not math.isfinite(held):
        return
    text = java_text(held, kind)
    assert convert(text, kind) == held
    assert math.copysign(1, float(text)) == math.copysign(1, held)
    assert "E" in text or (text.split(".")[0].lstrip("-").isdigit() and text.split(".")[1].isdigit())


def test_java_map_order() -> None:
    assert java_hash("hello") == 99162322
    assert java_map_json({}) is None
    assert java_map_json({"attr1": "v1", "attr2": 'v"2'}) == '{"attr2":"v\\"2","attr1":"v1"}'
    assert java_map_order(["tag3", "tag4", "tag5", "tagNew1"]) == ["tagNew1", "tag4", "tag5", "tag3"]
    # Those of one bucket keep their order, which is that of creation there.
    created = ["status", "temperature", "hardware", "i32", "i64", "dbl"]
    assert java_map_order(created) == ["i64", "temperature", "i32", "status", "hardware", "dbl"]


def test_java_tree_order() -> None:
    paths = [("root", "ln", "d"), ("root", "sgcc", "wf", "d1"), ("root", "sgcc", "wf", "d2"), ("root", "sgcc")]
    assert java_tree_order(paths) == [paths[3], paths[1], paths[2], paths[0]]
