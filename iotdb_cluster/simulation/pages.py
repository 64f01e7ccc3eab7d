"""The data of one file on a simulated disk: what reads see, what survives, and what was written in between."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["MANNERS", "PAGE_BYTES", "Inode", "Manner"]

PAGE_BYTES: Final = 4096
PIECES_PER_PAGE_MAX: Final = 64  # a page written more often since its sync forgets the states in between
_ZERO: Final = bytes(PAGE_BYTES)

# What a power cut keeps of what is not synced: nothing; all; everything up to some write; any state of each page.
Manner = Literal["none", "all", "until", "any"]
MANNERS: Final[Sequence[Manner]] = ("none", "none", "all", "until", "until", "any", "any", "any")


@dataclass(slots=True)
class _Piece:
    """One page's part of a write, or with `data` None of a truncation: everything from `start` is zero."""

    number: int
    start: int
    data: bytes | None


def _patched(page: bytes, start: int, data: bytes | None) -> bytes:
    if data is None:
        return page[:start] + bytes(PAGE_BYTES - start)
    if len(data) == PAGE_BYTES:
        return data
    return page[:start] + data + page[start + len(data) :]


@dataclass(slots=True, eq=False)
class Inode:
    """A file's data. Write numbers are counted over the whole disk."""

    live: dict[int, bytes] = field(default_factory=dict)
    durable: dict[int, bytes] = field(default_factory=dict)
    pieces: dict[int, list[_Piece]] = field(default_factory=dict)  # since the last sync, by page
    size: int = 0
    durable_size: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (write number, size) since the last sync
    linked: bool = True

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first, last = offset // PAGE_BYTES, (end - 1) // PAGE_BYTES
        start = offset - first * PAGE_BYTES
        if first == last:
            return self.live.get(first, _ZERO)[start : start + end - offset]
        joined = b"".join([self.live.get(number, _ZERO) for number in range(first, last + 1)])
        return joined[start : start + end - offset]

    def write(self, number: int, offset: int, view: memoryview) -> None:
        at = 0
        while at < len(view):
            page, start = divmod(offset + at, PAGE_BYTES)
            length = min(PAGE_BYTES - start, len(view) - at)
            self._add_piece(number, page, start, bytes(view[at : at + length]))
            at += length
        if len(view) and offset + len(view) > self.size:
            self.size = offset + len(view)
            self.sizes.append((number, self.size))

    def _add_piece(self, number: int, page: int, start: int, data: bytes | None) -> None:
        patched = _patched(self.live.get(page, _ZERO), start, data)
        self.live[page] = patched
        pieces = self.pieces.setdefault(page, [])
        pieces.append(_Piece(number, start, data))
        if len(pieces) > PIECES_PER_PAGE_MAX:
            pieces[:] = [_Piece(number, 0, patched)]

    def truncate(self, number: int, size: int) -> None:
        first, start = divmod(size, PAGE_BYTES)
        for page in sorted(set(self.live) | set(self.durable)):
            if page == first and start:
                self._add_piece(number, page, start, None)
            elif page >= first:
                self._add_piece(number, page, 0, None)
                del self.live[page]
        self.size = size
        self.sizes.append((number, size))

    def sync(self) -> None:
        for page in self.pieces:
            self._make_durable(page)
        self.durable_size = self.size
        self._forget()

    def fail_sync(self, rng: random.Random) -> None:
        """Some pages get there; the system takes all of them for clean, so that a later sync does not write them."""
        for page in sorted(self.pieces):
            if rng.random() < 0.5:
                self._make_durable(page)
        self._forget()

    def _make_durable(self, page: int) -> None:
        content = self.live.get(page)
        if content is None:
            self.durable.pop(page, None)
        else:
            self.durable[page] = content
            self.durable_size = max(self.durable_size, min(self.size, (page + 1) * PAGE_BYTES))

    def _forget(self) -> None:
        self.pieces.clear()
        self.sizes.clear()

    def cut(self, rng: random.Random, manner: Manner, until: int, newest: int) -> None:
        """What is here after a power cut; `newest` is the number of the disk's last write, which may be torn."""
        size = self.durable_size
        for number, grown in self.sizes:
            if manner == "all" or (manner == "until" and number <= until) or (manner == "any" and rng.random() < 0.6):
                size = grown
        for page in sorted(self.pieces):
            pieces = self.pieces[page]
            kept = _kept(pieces, rng, manner, until)
            content = self.durable.get(page, _ZERO)
            for piece in pieces[:kept]:
                content = _patched(content, piece.start, piece.data)
            torn = pieces[kept] if kept < len(pieces) and manner != "none" else None
            if torn is not None and torn.data is not None and torn.number in (until + 1, newest):
                content = _patched(content, torn.start, torn.data[: rng.randint(0, len(torn.data))])
            self.durable[page] = content
        self.durable = {page: content for page, content in self.durable.items() if page * PAGE_BYTES < size}
        tail, start = divmod(size, PAGE_BYTES)
        if start and tail in self.durable:
            self.durable[tail] = _patched(self.durable[tail], start, None)
        self.live = dict(self.durable)
        self.size = self.durable_size = size
        self._forget()
        self.linked = True

    def flip(self, offset: int, bit: int) -> None:
        number, at = divmod(offset, PAGE_BYTES)
        for pages in (self.live, self.durable):
            page = bytearray(pages.get(number, _ZERO))
            page[at] ^= 1 << bit
            pages[number] = bytes(page)


def _kept(pieces: list[_Piece], rng: random.Random, manner: Manner, until: int) -> int:
    """How many of a page's pieces survive."""
    if manner == "none":
        return 0
    if manner == "all":
        return len(pieces)
    if manner == "until":
        return sum(piece.number <= until for piece in pieces)
    return rng.choice((0, len(pieces), rng.randint(0, len(pieces))))
