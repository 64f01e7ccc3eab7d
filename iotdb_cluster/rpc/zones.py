"""Time zones by the names that Java clients use, in the canonical text that they expect back."""

from __future__ import annotations

import re
from datetime import timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

__all__ = ["canonical_zone", "is_offset", "zone_info"]

_OFFSET = re.compile(r"([+-])(\d{1,2}|\d\d:\d\d|\d\d\d\d|\d\d:\d\d:\d\d|\d{6})")
_PREFIXED = re.compile(r"(UTC|GMT|UT)([+-].*)?")
_SECONDS_MAX = 18 * 3600


def _offset_seconds(text: str) -> int:
    """Seconds east of an offset in one of Java's forms; ValueError."""
    if text == "Z":
        return 0
    found = _OFFSET.fullmatch(text)
    if found is None or not text.isascii():
        raise ValueError(f"{text!r} is no offset such as +08:00")
    digits = found[2].replace(":", "")
    digits = digits.zfill(2).ljust(6, "0")
    hours, minutes, seconds = int(digits[:2]), int(digits[2:4]), int(digits[4:])
    total = hours * 3600 + minutes * 60 + seconds
    if minutes > 59 or seconds > 59 or total > _SECONDS_MAX:
        raise ValueError(f"offset {text!r} is not between -18:00 and +18:00")
    return -total if found[1] == "-" else total


def _offset_text(seconds: int) -> str:
    if seconds == 0:
        return "Z"
    minutes, rest = divmod(abs(seconds), 60)
    text = f"{'-' if seconds < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"
    return f"{text}:{rest:02}" if rest else text


def is_offset(text: str) -> bool:
    """Whether the zone is an offset, known without the zone database."""
    return text[:1] in ("Z", "+", "-") or _PREFIXED.fullmatch(text) is not None


def canonical_zone(text: str) -> str:
    """The canonical text of a zone: "+0800" -> "+08:00", "+0000" -> "Z", "GMT+8" -> "GMT+08:00", regions as they are.

    ValueError where no such zone is known. A region's first use reads the zone database (a file).
    """
    if text == "Z" or text[:1] in ("+", "-"):
        return _offset_text(_offset_seconds(text))
    prefixed = _PREFIXED.fullmatch(text)
    if prefixed is not None:
        seconds = _offset_seconds(prefixed[2]) if prefixed[2] else 0
        return prefixed[1] + (_offset_text(seconds) if seconds else "")
    _region(text)
    return text


def zone_info(text: str) -> tzinfo:
    """The zone as Python's; ValueError as `canonical_zone`."""
    if text == "Z" or text[:1] in ("+", "-"):
        return timezone(timedelta(seconds=_offset_seconds(text)))
    prefixed = _PREFIXED.fullmatch(text)
    if prefixed is not None:
        return timezone(timedelta(seconds=_offset_seconds(prefixed[2]) if prefixed[2] else 0))
    return _region(text)


def _region(text: str) -> ZoneInfo:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9~/._+-]+", text):
        raise ValueError(f"{text!r} is no time zone")
    try:
        return ZoneInfo(text)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"unknown time zone {text!r}") from None
