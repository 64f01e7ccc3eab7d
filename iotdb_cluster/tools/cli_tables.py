"""Result sets as text: tables as the original's users know them, CSV, JSON lines, or a block a row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

from rich.cells import cell_len

from iotdb_cluster.columns import DataType, concat_columns
from iotdb_cluster.schema.javatext import java_texts
from iotdb_cluster.tools.cli_connection import PageColumn, ResultPage
from iotdb_cluster.tools.cli_times import TimeFormat

__all__ = ["FORMATS", "lines_of", "repaged"]

FORMATS = ("table", "csv", "json", "vertical")
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), 127)}  # they would break the lines of a table


def repaged(blocks: Iterator[ResultPage], rows: int) -> Iterator[ResultPage]:
    """The same rows in pages of so many; as they come where `rows` is 0."""
    waiting: list[ResultPage] = []
    have = 0
    for block in blocks:
        if not rows:
            yield block
            continue
        waiting.append(block)
        have += block.rows
        while have > rows:
            page, rest = _split(_joined(waiting), rows)
            waiting, have = [rest], rest.rows
            yield page
    if have:
        yield _joined(waiting)


def _joined(pages: Sequence[ResultPage]) -> ResultPage:
    if len(pages) == 1:
        return pages[0]
    columns = [
        PageColumn(same[0].name, concat_columns([one.cells for one in same]), same[0].is_time)
        for same in zip(*(page.columns for page in pages), strict=True)
    ]
    return ResultPage(columns, sum(page.rows for page in pages))


def _split(page: ResultPage, rows: int) -> tuple[ResultPage, ResultPage]:
    def part(where: slice, count: int) -> ResultPage:
        return ResultPage([PageColumn(one.name, one.cells[where], one.is_time) for one in page.columns], count)

    return part(slice(0, rows), rows), part(slice(rows, None), page.rows - rows)


def _cells(column: PageColumn, times: TimeFormat) -> list[str | None]:
    if not column.is_time:
        return java_texts(column.cells)
    return [None if time is None else times.text(time) for time in column.cells.tolist()]


def _json_values(column: PageColumn, texts: list[str | None]) -> list[Any]:
    """Numbers and booleans as such; what JSON cannot say (NaN, infinities), times and texts as text."""
    if column.is_time or column.cells.type is DataType.TEXT:
        return list(texts)
    if column.cells.type in (DataType.FLOAT, DataType.DOUBLE):
        return [_json_number(text) for text in texts]
    return column.cells.tolist()


def _json_number(text: str | None) -> float | str | None:
    return text if text is None or not isfinite(float(text)) else float(text)


def lines_of(page: ResultPage, style: str, times: TimeFormat, first: bool) -> list[str]:
    """A page as lines; `first`: what stands once at the top is written."""
    names = [column.name for column in page.columns]
    cells = [_cells(column, times) for column in page.columns]
    if style == "table":
        return _table(names, cells, page.rows)
    rows = list(zip(*cells, strict=True)) if cells else []
    if style == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([*([names] if first else []), *rows])
        return out.getvalue().splitlines()
    if style == "json":
        values = zip(
            *(_json_values(column, texts) for column, texts in zip(page.columns, cells, strict=True)), strict=True
        )
        return [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in values]
    width = max(map(cell_len, names), default=0)
    return [
        line
        for row in rows
        for line in (
            "-" * (width + 2),
            *(f"{name:>{width}}: {_shown(cell)}" for name, cell in zip(names, row, strict=True)),
        )
    ]


def _shown(cell: str | None) -> str:
    return "null" if cell is None else cell.translate(_CONTROLS)


def _table(names: list[str], cells: list[list[str | None]], rows: int) -> list[str]:
    """Each column as wide as its widest cell on this page, to the right, between bars."""
    shown = [[name, *map(_shown, column)] for name, column in zip(names, cells, strict=True)]
    widths = [[cell_len(text) for text in column] for column in shown]
    broadest = [max(column) for column in widths]
    rule = "+" + "".join("-" * width + "+" for width in broadest)
    padded = [
        [" " * (broad - width) + text for text, width in zip(column, sizes, strict=True)]
        for column, sizes, broad in zip(shown, widths, broadest, strict=True)
    ]
    lines = ["|" + "".join(column[row] + "|" for column in padded) for row in range(rows + 1)]
    return [rule, lines[0], rule, *lines[1:], rule] if rows else [rule, lines[0], rule, rule]
