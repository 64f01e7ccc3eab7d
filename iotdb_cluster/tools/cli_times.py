"""How the shell writes times: ISO 8601 in the session's zone, plain numbers, or a date pattern as Java's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

__all__ = ["TimeFormat", "check_pattern"]

PER_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
DIGITS = {"ms": 3, "us": 6, "ns": 9}
_ISO = ("default", "iso8601")
_NUMBERS = ("long", "number", "timestamp")
_PIECE = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|[^A-Za-z']+")
_ERA_DAYS = 146_097  # of 400 years
_SECONDS_A_DAY = 86_400


@dataclass(frozen=True, slots=True)
class _Moment:
    """A time in a zone; years may have any number of digits."""

    year: int
    month: int
    day: int
    second: int  # of the day
    fraction: int  # in parts of the precision
    offset_s: int
    precision: str


def _zone_offset(zone: tzinfo, second: int) -> int:
    """Seconds east of UTC at that Unix time; beyond what a date can say, those of the nearest moment that it can."""
    bounded = min(max(second, -62_135_500_000), 253_402_200_000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=bounded)
    offset = moment.astimezone(zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


def _moment(time: int, precision: str, zone: tzinfo) -> _Moment:
    second, fraction = divmod(time, PER_SECOND[precision])
    offset = _zone_offset(zone, second)
    days, of_day = divmod(second + offset, _SECONDS_A_DAY)
    era, rest = divmod(days, _ERA_DAYS)  # whole eras leave a day that `date` knows
    there = date.fromordinal(date(1970, 1, 1).toordinal() + rest)
    return _Moment(there.year + 400 * era, there.month, there.day, of_day, fraction, offset, precision)


def _offset_text(seconds: int, colon: str = ":") -> str:
    minutes, rest = divmod(abs(seconds), 60)
    text = f"{'-' if seconds < 0 else '+'}{minutes // 60:02}{colon}{minutes % 60:02}"
    return f"{text}{colon}{rest:02}" if rest else text


def _iso(at: _Moment) -> str:
    hour, rest = divmod(at.second, 3600)
    year = f"{at.year:04}" if 0 <= at.year <= 9999 else f"{at.year:+05}"
    zone = _offset_text(at.offset_s) if at.offset_s else "Z"
    fraction = f"{at.fraction:0{DIGITS[at.precision]}}"
    return f"{year}-{at.month:02}-{at.day:02}T{hour:02}:{rest // 60:02}:{rest % 60:02}.{fraction}{zone}"


def _millis(at: _Moment) -> int:
    return at.fraction * 1_000 // PER_SECOND[at.precision]


def _weekday(at: _Moment) -> int:
    return date(at.year % 400 + 400, at.month, at.day).weekday()


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _number(value: Callable[[_Moment], int]) -> Callable[[_Moment, int], str]:
    return lambda at, width: f"{value(at):0{width}}"


# The letters of Java's SimpleDateFormat; each gets how often it stands there.
_LETTERS: dict[str, Callable[[_Moment, int], str]] = {
    "y": lambda at, width: f"{at.year % 100:02}" if width == 2 else f"{at.year:0{width}}",
    "M": lambda at, width: (
        f"{at.month:0{width}}" if width < 3 else _MONTHS[at.month - 1] if width > 3 else _MONTHS[at.month - 1][:3]
    ),
    "d": _number(lambda at: at.day),
    "H": _number(lambda at: at.second // 3600),
    "k": _number(lambda at: at.second // 3600 or 24),
    "h": _number(lambda at: (at.second // 3600) % 12 or 12),
    "K": _number(lambda at: (at.second // 3600) % 12),
    "m": _number(lambda at: at.second // 60 % 60),
    "s": _number(lambda at: at.second % 60),
    "S": _number(_millis),
    "a": lambda at, _: "AM" if at.second < 43_200 else "PM",
    "E": lambda at, width: _DAYS[_weekday(at)] if width > 3 else _DAYS[_weekday(at)][:3],
    "u": lambda at, width: f"{_weekday(at) + 1:0{width}}",
    "D": lambda at, width: f"{_day_of_year(at):0{width}}",
    "Z": lambda at, _: _offset_text(at.offset_s, ""),
    "X": lambda at, width: "Z" if not at.offset_s else _offset_text(at.offset_s, ":" if width == 3 else ""),
    "z": lambda at, _: "UTC" if not at.offset_s else f"GMT{_offset_text(at.offset_s)}",
    "G": lambda at, _: "AD" if at.year > 0 else "BC",
}


def _day_of_year(at: _Moment) -> int:
    return date(at.year % 400 + 400, at.month, at.day).timetuple().tm_yday


def _compiled(pattern: str) -> list[Callable[[_Moment], str]]:
    """ValueError naming the letter that means nothing."""
    pieces: list[Callable[[_Moment], str]] = []
    at = 0
    while at < len(pattern):
        found = _PIECE.match(pattern, at)
        if found is None:
            raise ValueError("Unterminated quote")
        text, letter, at = found[0], found[2], found.end()
        if letter is None:
            literal = text if found[1] is None else (found[1].replace("''", "'") or "'")
            pieces.append(lambda _, literal=literal: literal)  # type: ignore[misc]
            continue
        if letter not in _LETTERS:
            raise ValueError(f"Illegal pattern character '{letter}'")
        write, width = _LETTERS[letter], len(text)
        pieces.append(lambda moment, write=write, width=width: write(moment, width))  # type: ignore[misc]
    return pieces


def check_pattern(text: str) -> None:
    """ValueError where the text is none of the known words and no pattern."""
    if text.lower() not in (*_ISO, *_NUMBERS):
        _compiled(text)


class TimeFormat:
    """Writes times of the server's precision; `kind` is what `set time_display_type` got."""

    def __init__(self, kind: str, precision: str, zone: tzinfo) -> None:
        self._precision = precision
        self._zone = zone
        self._numbers = kind.lower() in _NUMBERS
        self._pieces = None if self._numbers or kind.lower() in _ISO else _compiled(kind)

    def text(self, time: int) -> str:
        if self._numbers:
            return str(time)
        moment = _moment(time, self._precision, self._zone)
        return _iso(moment) if self._pieces is None else "".join(piece(moment) for piece in self._pieces)
