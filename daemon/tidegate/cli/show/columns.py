"""A table that fits: columns go when they do not, and no cell takes a second line."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from tidegate.cli.show.printable import printable

_GAP = 2


class Column(Struct, frozen=True, kw_only=True):
    """A column with all its cells. With `least` it may be cut to so many, and ends in "…" then.

    Other columns are dropped until it has `wanted` of what it needs, where that is more.
    """

    name: str
    cells: list[str]
    right: bool = False
    least: int = 0
    wanted: int = 0


def fitting_table(columns: Sequence[Column], dispensable: Sequence[str], width: int) -> Table:
    """Make a table of at most `width` columns of the screen.

    What does not fit is dropped by name, in the order of `dispensable`; then what may be cut is.
    """
    kept = list(columns)
    for name in dispensable:
        if _width([_wanted(column) for column in kept], smallest=True) <= width:
            break
        kept = [column for column in kept if column.name != name]
    left = width - _width(kept, smallest=True)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
    for column in kept:
        least = _column_width(column, smallest=True)
        more = min(max(left, 0), _column_width(column, smallest=False) - least)
        left -= more
        table.add_column(
            column.name,
            width=least + more,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for cells in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _wanted(column: Column) -> Column:
    return replace(column, least=max(column.least, column.wanted))


def _width(columns: Sequence[Column], *, smallest: bool) -> int:
    widths = [_column_width(column, smallest=smallest) for column in columns]
    return sum(widths) + _GAP * max(0, len(widths) - 1)


def _column_width(column: Column, *, smallest: bool) -> int:
    whole = max(cell_len(printable(cell)) for cell in (column.name, *column.cells))
    return (
        min(whole, max(column.least, cell_len(column.name))) if smallest and column.least else whole
    )
