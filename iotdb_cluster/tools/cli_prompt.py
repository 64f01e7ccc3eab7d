"""The interactive loop: a line editor with history, completion and pasted text, around a `Shell`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from thriftpy2.thrift import TApplicationException

from iotdb_cluster.sql.lexer import KEYWORDS
from iotdb_cluster.tools.cli_connection import Disconnected, Refused
from iotdb_cluster.tools.cli_shell import LOCAL_COMMANDS, PROMPT, Quit, Shell, completions
from iotdb_cluster.tools.cli_text import is_open, statements

__all__ = ["converse"]

CONTINUED = "     > "
_PATH = re.compile(r"root(?:\.[^\s.,;()='\"]*)*\Z", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z_]+\Z")
_SECRET = re.compile(r"\b(?:create\s+user|set\s+password)\b", re.IGNORECASE)


class _History(FileHistory):
    """Keeps what was typed, but for statements that hold a password."""

    def store_string(self, string: str) -> None:
        if not _SECRET.search(string):
            super().store_string(string)


class _Completer(Completer):
    """Keywords and commands; behind `root.` what the server has there."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        del complete_event
        before = document.text_before_cursor
        path = _PATH.search(before)
        if path is not None and "." in path[0]:
            yield from self._paths(path[0])
            return
        yield from _words(before)

    def _paths(self, typed: str) -> Iterable[Completion]:
        try:
            found = completions(self._shell.connection, typed)
        except (Disconnected, Refused, TApplicationException):
            return  # the statement itself will say what is wrong
        for name in found:
            if name.startswith(typed):
                yield Completion(name, start_position=-len(typed))


def _words(before: str) -> Iterable[Completion]:
    begun = before.lstrip().lower()
    for command in LOCAL_COMMANDS:
        if begun and command.startswith(begun):
            yield Completion(command, start_position=-len(begun))
    word = _WORD.search(before)
    if word is None:
        return
    for keyword in sorted(KEYWORDS):
        if keyword.startswith(word[0].upper()):
            yield Completion(keyword.lower() if word[0].islower() else keyword, start_position=-len(word[0]))


def _keys(session: PromptSession[str]) -> KeyBindings:
    """Enter sends what is whole and goes on with a new line where a quote or a bracket is open."""
    keys = KeyBindings()

    def open_() -> bool:
        return is_open(session.default_buffer.text)

    for key in ("enter", "c-j"):  # the latter: typed before the editor took the terminal over

        @keys.add(key, filter=Condition(open_))
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add(key, filter=~Condition(open_))
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

    return keys


def _session(shell: Shell) -> PromptSession[str]:
    history = Path(os.environ.get("IOTDB_HISTORY", str(Path.home() / ".iotdb_cluster_history")))
    session: PromptSession[str] = PromptSession(
        history=_History(str(history)) if os.access(history.parent, os.W_OK) else None,
        completer=_Completer(shell),
        complete_while_typing=False,
        auto_suggest=AutoSuggestFromHistory(),
        multiline=True,
        prompt_continuation=lambda _width, _line, is_soft_wrap: "" if is_soft_wrap else CONTINUED,
    )
    session.key_bindings = _keys(session)
    return session


def converse(shell: Shell) -> None:
    """Until `quit`, `exit` or the end of the input. Ctrl-C at the prompt gives up the line."""
    session = _session(shell)
    while True:
        try:
            text = session.prompt(PROMPT)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            for statement in statements(text.splitlines()):
                shell.run(statement)
        except Quit:
            return
