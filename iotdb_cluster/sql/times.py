"""Times and durations as they are written, to int64 in the server's precision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.sql.statements import Duration

__all__ = ["ParseContext", "duration_of", "int64_of", "semantic_error", "time_of"]

_UNITS_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_NS = 86_400_000_000_000
_MONTH_DAYS = 30
_UNIT_NS = {
    "y": 365 * _DAY_NS,
    "w": 7 * _DAY_NS,
    "d": _DAY_NS,
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "ns": 1,
}
_GROUP = re.compile(r"([0-9]+)(mo|ms|us|ns|[ywdhms])")
_DATETIME = re.compile(
    r"([0-9]{4})([-/])([0-9]{1,2})\2([0-9]{1,2})"
    r"(?:[tT ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{3}|[0-9]{6}|[0-9]{9}))?(?:([+-])([0-9]{1,2}):([0-9]{1,2}))?)?"
)
# Messages repeat what the caller wrote, which may be megabytes.
_MESSAGE_CHARS_MAX = 800
_OFFSET_SECONDS_MAX = 18 * 3600
# As many digits as 2^63 has, with room for leading zeros; longer ones are out of range without being converted.
_INT_DIGITS_MAX = 40


def semantic_error(text: str) -> CallerError:
    """An error of meaning in a statement whose syntax is right (303)."""
    if len(text) > _MESSAGE_CHARS_MAX:
        text = text[:_MESSAGE_CHARS_MAX] + "..."
    return CallerError(Status.METADATA_ERROR, f"Check metadata error: {text}")


@dataclass(frozen=True, slots=True)
class ParseContext:
    """What the meaning of a text depends on besides the text: the session's zone, the moment, the server's precision.

    zone: the session's time zone; its offset at `now_ms` is the one that date literals get.
    now_ms: milliseconds since the epoch. precision: "ms", "us" or "ns".
    """

    zone: tzinfo = UTC
    now_ms: int = 0
    precision: str = "ms"

    @property
    def now(self) -> int:
        """The moment in units of the precision."""
        return self.now_ms * _UNITS_PER_MS[self.precision]

    def offset(self) -> timedelta:
        """The zone's offset from UTC at the moment."""
        if isinstance(self.zone, timezone):
            return self.zone.utcoffset(None)
        try:
            moment = (_EPOCH + timedelta(milliseconds=self.now_ms)).astimezone(self.zone)
        except OverflowError:
            moment = _EPOCH.astimezone(self.zone)
        return moment.utcoffset() or timedelta(0)


def int64_of(text: str) -> int:
    """A whole number within int64; raises CallerError (303) beyond."""
    if len(text) <= _INT_DIGITS_MAX:
        number = int(text)
        if INT64_MIN <= number <= INT64_MAX:
            return number
    raise semantic_error(f"{text[:_INT_DIGITS_MAX]} is out of the range of a 64-bit integer.")


def time_of(text: str, context: ParseContext) -> int:
    """A date literal in units of the precision; raises CallerError (303) if it is none."""
    match = _DATETIME.fullmatch(text)
    if match is None:
        raise _format_error(text)
    year, _, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    offset = 0
    if sign is not None:
        offset = int(offset_hours) * 3600 + int(offset_minutes) * 60
        if offset > _OFFSET_SECONDS_MAX or int(offset_minutes) > 59:
            raise _format_error(text)
        if sign == "-":
            offset = -offset
    try:
        local = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
        )
    except ValueError:
        raise _format_error(text) from None
    passed = local - _EPOCH
    seconds = passed.days * 86_400 + passed.seconds
    per_second = 1_000 * _UNITS_PER_MS[context.precision]
    if sign is None:
        zone = context.offset()
        offset = zone.days * 86_400 + zone.seconds
    units = (seconds - offset) * per_second
    if fraction is not None:
        units += int(fraction) * per_second // 10 ** len(fraction)
    if not INT64_MIN <= units <= INT64_MAX:
        raise _format_error(text)
    return units


def duration_of(text: str, precision: str) -> Duration:
    """A duration literal; each group is converted with truncation. Raises CallerError (303) beyond int64."""
    unit_ns = 1_000_000 // _UNITS_PER_MS[precision]
    months = 0
    fixed = 0
    for digits, unit in _GROUP.findall(text.lower()):
        count = int64_of(digits)
        if unit == "mo":
            months += count
        else:
            fixed += count * _UNIT_NS[unit] // unit_ns
    total = fixed + months * _MONTH_DAYS * _DAY_NS // unit_ns
    if total > INT64_MAX:
        raise semantic_error(f"the duration {text[:_INT_DIGITS_MAX]} is out of range.")
    return Duration(months, fixed, total)


def _format_error(text: str) -> CallerError:
    return semantic_error(
        f"Input time format {text} error. Input like yyyy-MM-dd HH:mm:ss, yyyy-MM-ddTHH:mm:ss or refer to user "
        "document for more info."
    )
