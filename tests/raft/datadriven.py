"""Data-driven test files: directives in, recorded text out.

A file is a list of cases: a directive line, optional input lines, a line `----`, the expected text up to an empty line
or the end of the file. Text that holds empty lines stands between two pairs of `----`. Lines that begin with `#` before
a directive are comments; a directive line that ends with `\\` goes on in the next one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "----"
LOG_LINE = re.compile(r"^\s*(DEBUG|INFO|WARN|ERROR|FATAL) .*\n?", re.MULTILINE)


class Malformed(Exception):
    """The file does not have the form; the text names the line."""


@dataclass
class Directive:
    """`key` has no values, `key=` one empty value, `key=(a, b)` two."""

    command: str
    arguments: list[tuple[str, list[str]]]
    input: str = ""

    @property
    def ids(self) -> list[int]:
        return [int(key) for key, values in self.arguments if not values]

    def values(self, key: str) -> list[str]:
        return [value for name, values in self.arguments if name == key for value in values]


@dataclass
class Case:
    before: str  # comments and empty lines
    line: str  # the directive, as one line
    input: str
    expected: str
    given: str  # the directive and the input as they stand in the file

    @property
    def directive(self) -> Directive:
        return parse_directive(self.line, self.input)

    def render(self, output: str) -> str:
        if re.search(r"^\s*$", output, re.MULTILINE) and output:
            return f"{self.before}{self.given}{SEPARATOR}\n{SEPARATOR}\n{output}\n{SEPARATOR}\n{SEPARATOR}\n"
        return f"{self.before}{self.given}{SEPARATOR}\n{output}\n"


@dataclass
class Script:
    cases: list[Case]
    tail: str
    text: str

    @property
    def by_hand(self) -> bool:
        """Whether etcd's harness cannot write the expected text: a comment `# by hand: why` says so."""
        return re.search(r"^# by hand: ", self.text, re.MULTILINE) is not None

    def setting(self, name: str, default: int) -> int:
        """The number in a comment `# name: number`."""
        found = re.search(rf"^# {name}: (\d+)$", self.text, re.MULTILINE)
        return int(found[1]) if found else default


def script_paths(directory: Path) -> list[Path]:
    """Scripts of a directory; hidden files and editors' copies are none."""
    return sorted(path for path in directory.glob("*.txt") if not path.name.startswith((".", "#")))


# --- directives -------------------------------------------------------------------------------------------------------
def parse_directive(line: str, text: str = "") -> Directive:
    """Raises Malformed."""
    command, *rest = line.split(None, 1)
    return Directive(command, list(_arguments(rest[0].strip() if rest else "", line)), text)


def _arguments(rest: str, line: str) -> Iterator[tuple[str, list[str]]]:
    at = 0
    while at < len(rest):
        if rest[at].isspace():
            at += 1
            continue
        found = re.compile(r"[^\s=]+").match(rest, at)
        if found is None:
            raise Malformed(f"an argument without a name: {line}")
        at = found.end()
        if at == len(rest) or rest[at] != "=":
            yield found[0], []
        elif rest[at + 1 : at + 2] == "(":
            end = _closing(rest, at + 1, line)
            yield found[0], _split(rest[at + 2 : end])
            at = end + 1
        else:
            word = re.compile(r"\S*").match(rest, at + 1)
            yield found[0], [word[0] if word else ""]
            at = word.end() if word else at + 1


def _closing(text: str, at: int, line: str) -> int:
    """Where the parenthesis that opens at `at` is closed."""
    depth = 0
    for position in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if not depth:
            return position
    raise Malformed(f"a parenthesis is not closed: {line}")


def _split(text: str) -> list[str]:
    """At the commas that no inner parentheses hold."""
    parts = [""]
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.lstrip() if number else part for number, part in enumerate(parts)]


# --- files ------------------------------------------------------------------------------------------------------------
def parse_script(text: str) -> Script:
    """Raises Malformed."""
    lines = text.splitlines()
    cases = []
    before: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip() or line.lstrip().startswith("#"):
            before.append(line + "\n")
            at += 1
            continue
        begin = at
        at += 1
        while line.endswith("\\") and at < len(lines):
            line = line[:-1].rstrip() + " " + lines[at].strip()
            at += 1
        first = at
        while at < len(lines) and lines[at] != SEPARATOR:
            at += 1
        if at == len(lines):
            raise Malformed(f"line {begin + 1}: no {SEPARATOR} behind {line}")
        given = "\n".join(lines[first:at]).strip()
        expected, following = _expected(lines, at + 1)
        cases.append(Case("".join(before), line.strip(), given, expected, "\n".join(lines[begin:at]) + "\n"))
        before = []
        at = following
    return Script(cases, "".join(before), text)


def _expected(lines: list[str], at: int) -> tuple[str, int]:
    """(the text, the line behind it)."""
    if lines[at : at + 1] != [SEPARATOR]:
        end = at
        while end < len(lines) and lines[end].strip():
            end += 1
        return "\n".join(lines[at:end]), end
    for end in range(at + 1, len(lines) - 1):
        if lines[end] == lines[end + 1] == SEPARATOR:
            if lines[end + 2 : end + 3] not in ([], [""]):
                raise Malformed(f"line {end + 3}: an empty line must follow the closing {SEPARATOR}")
            return "\n".join(lines[at + 1 : end]), end + 2
    raise Malformed(f"line {at + 1}: the block of text is not closed by two lines {SEPARATOR}")


def without_log_lines(text: str) -> str:
    return LOG_LINE.sub("", text + "\n").rstrip("\n") or "ok"


def render_script(script: Script, outputs: list[str]) -> str:
    return "".join(case.render(text) for case, text in zip(script.cases, outputs, strict=True)) + script.tail


def difference(script: Script, outputs: list[str]) -> str:
    """A unified diff from the expected text to `outputs`; empty where they are equal."""
    expected = [without_log_lines(case.expected) for case in script.cases]
    old, new = (render_script(script, texts).splitlines() for texts in (expected, outputs))
    return "\n".join(difflib.unified_diff(old, new, "expected", "this core", lineterm="", n=5))
