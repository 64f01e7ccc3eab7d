"""From what is typed, pasted or piped to single statements.

A statement ends at a `;` outside quotes, or with its line; the next line belongs to it where a quote or a bracket is
open, the line ends with a comma or an operator, or the next one begins with a word that begins no statement, such as
FROM or WHERE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["is_open", "statements"]

_BEGUN = re.compile(r"""(?:[^'";()]|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""", re.DOTALL)
_FIRST_WORD = re.compile(r"\s*([A-Za-z_]+|\S)?")
# Words with which a line goes on with the statement of the line before.
_WORDS = """
FROM WHERE AND OR NOT VALUES GROUP ORDER LIMIT OFFSET SLIMIT SOFFSET FILL ALIGN DISABLE WITHOUT WITH TO ON TAGS
ATTRIBUTES USING BY AS IN LIKE REGEXP PRIVILEGES INTO LEVEL DATATYPE ENCODING COMPRESSOR COMPRESSION
) ( , . = + - * [ ] < >
"""
_GOES_ON = frozenset(_WORDS.split())
_WANTS_MORE = re.compile(
    r"(?:[,(=+\-*<>.]|\b(?:SELECT|FROM|WHERE|AND|OR|NOT|INTO|VALUES|BY|TO|ON|WITH|IN))\s*\Z", re.IGNORECASE
)


def _cut(text: str) -> tuple[list[str], str, int, bool]:
    """(pieces that a `;` ends, the rest, its open brackets, whether it ends within a quote)."""
    pieces: list[str] = []
    start = at = depth = 0
    while at < len(text):
        found = _BEGUN.match(text, at)
        if found is not None:
            at = found.end()
        elif text[at] in "'\"":
            return pieces, text[start:], depth, True
        else:
            if text[at] == ";":
                pieces.append(text[start:at])
                start, depth = at + 1, 0
            else:
                depth = max(0, depth + (1 if text[at] == "(" else -1))
            at += 1
    return pieces, text[start:], depth, False


def is_open(text: str) -> bool:
    """Whether what was typed so far surely goes on."""
    _, rest, depth, quoted = _cut(text)
    return quoted or depth > 0 or _WANTS_MORE.search(rest) is not None


def _goes_on(line: str) -> bool:
    found = _FIRST_WORD.match(line)
    return found is not None and (found[1] or "").upper() in _GOES_ON


def statements(lines: Iterable[str]) -> Iterator[str]:
    """The statements of a text, one after another, as early as its lines allow; blank ones are left out."""
    rest = ""
    for line in lines:
        if rest.strip() and not is_open(rest) and not _goes_on(line):
            yield rest.strip()
            rest = ""
        pieces, rest, _, _ = _cut(f"{rest}\n{line}" if rest.strip() else line)
        rest = rest.rstrip("\r\n")
        for piece in pieces:
            if piece.strip():
                yield piece.strip()
    if rest.strip():
        yield rest.strip()
