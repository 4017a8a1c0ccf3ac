"""The history: one row a run that is over, without a word of it, and the sums of what was used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.core.records.history import RunRow
from tidegate.core.records.usage import TokenUsage, UsageLine
from tidegate.core.settings import Price
from tidegate.gateway.stores.database import Database, Row

MIGRATIONS = (
    """
    CREATE TABLE runs(
      number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
      token TEXT NOT NULL, asked TEXT NOT NULL, upstream TEXT NOT NULL, model TEXT NOT NULL,
      format TEXT NOT NULL, streamed INTEGER NOT NULL, outcome TEXT NOT NULL, code TEXT NOT NULL,
      attempts INTEGER NOT NULL, began REAL NOT NULL, ended REAL NOT NULL, queued_s REAL NOT NULL,
      first_output_s REAL, request_bytes INTEGER NOT NULL, answer_bytes INTEGER NOT NULL,
      input INTEGER, output INTEGER, cached INTEGER, reasoning INTEGER
    )
    """,
)
MOST_LINES = 1000  # of usage: a client may have asked for any number of models
_OTHERS = "(others)"  # what the rest of them is called; no model and no token may be called so
_TOKENS = "sum(coalesce(input, 0) + coalesce(output, 0))"
_SET_ASIDE_BYTES = 32 * 1024 * 1024
WAL_LIMIT_BYTES = 1024 * 1024
_PLAIN = RunRow._fields[:-1]  # `usage` is four columns
_COLUMNS = ", ".join((*_PLAIN, *TokenUsage._fields))
_ROW = f"({', '.join('?' * (len(_PLAIN) + len(TokenUsage._fields)))})"
_STREAMED = RunRow._fields.index("streamed")
_MOST_AT_ONCE = 64  # rows of one statement: each one is a turn for the event loop
_PRUNE_ROWS = 200  # in one bite
_KEYS = {
    "token": "token",
    "model": "asked",
    "upstream": "upstream",
    "day": "strftime('%Y-%m-%d', began, 'unixepoch', 'localtime')",
    "format": "format",
}
_LONGEST = 256  # characters of a name: a client may ask for any model
_MILLION = 1_000_000


class RunHistory:
    """The table of the history. Every method raises StoreFault."""

    def __init__(self, database: Database, *, keep_s: float, max_rows: int) -> None:
        self.database = database
        self._keep_s = keep_s
        self._max_rows = max_rows
        self._count = 0

    def __repr__(self) -> str:
        return f"<RunHistory {self.database.path}>"

    @property
    def wal_limit_bytes(self) -> int:
        """How large the WAL may be before it is emptied."""
        return WAL_LIMIT_BYTES

    def begin(self) -> None:
        """Begin with a file that was just opened."""
        self._count_rows()

    def write(self, rows: Sequence[RunRow], now: float) -> None:
        """Write all of them in one transaction; those that are there already stay as they are."""
        with self.database.transaction():
            for start in range(0, len(rows), _MOST_AT_ONCE):
                some = rows[start : start + _MOST_AT_ONCE]
                values = [
                    value[:_LONGEST] if isinstance(value, str) else value
                    for row in some
                    for value in (*row[:-1], *row.usage)
                ]
                marks = ", ".join([_ROW] * len(some))
                sql = f"INSERT OR IGNORE INTO runs({_COLUMNS}) VALUES {marks}"  # noqa: S608
                self._count += self.database.execute(sql, values).rowcount

    def newest(self, owner: str | None, limit: int) -> list[RunRow]:
        """List rows, the newest first; `owner` None: of all."""
        found = self.database.rows(
            f"SELECT {_COLUMNS} FROM runs WHERE owner=coalesce(?, owner)"  # noqa: S608
            " ORDER BY number DESC LIMIT ?",
            (owner, limit),
        )
        return [_run_row(row) for row in found]

    def usage(
        self, by: str, since: float, owner: str | None, prices: Mapping[str, Price]
    ) -> list[UsageLine]:
        """Sum up what began since then, by one of `GROUPS`; days are those of the local time zone.

        What was used most comes first, but days come the newest first; of more than MOST_LINES the
        rest is one line.
        """
        of_key = _KEYS[by]
        lines = self._lines(of_key, (), since, owner, prices)
        if len(lines) > MOST_LINES:
            ranked = (
                f"SELECT {of_key} FROM runs WHERE began>=? AND owner=coalesce(?, owner)"  # noqa: S608
                f" GROUP BY 1 ORDER BY {_TOKENS} DESC, count(*) DESC, 1 DESC LIMIT ?"
            )
            of_key = f"CASE WHEN {of_key} IN ({ranked}) THEN {of_key} ELSE '{_OTHERS}' END"
            lines = self._lines(of_key, (since, owner, MOST_LINES), since, owner, prices)
        if by == "day":
            lines.sort(key=lambda line: line.key, reverse=True)
        else:
            lines.sort(key=lambda line: line.key == _OTHERS)
        return lines

    def _lines(
        self,
        of_key: str,
        values: tuple[object, ...],
        since: float,
        owner: str | None,
        prices: Mapping[str, Price],
    ) -> list[UsageLine]:
        """Sum up by an expression, which takes `values`; the first MOST_LINES * 4 sums of it."""
        # A cost needs the price of each model, whatever the sums are by.
        priced = [name for name, price in prices.items() if price != Price()]
        marks = ", ".join("?" * len(priced))
        found = self.database.rows(
            f"SELECT {of_key}, CASE WHEN asked IN ({marks}) THEN asked END, count(*),"  # noqa: S608
            " sum(outcome<>'completed'), sum(input IS NULL AND output IS NULL),"
            " sum(input), sum(output), sum(cached), sum(reasoning), sum(max(0, ended-began)),"
            " sum(answer_bytes), max(began), sum(min(cached, input)),"
            " sum(coalesce(input, 0) + coalesce(output, 0) > 0)"
            " FROM runs WHERE began>=? AND owner=coalesce(?, owner)"
            f" GROUP BY 1, 2 ORDER BY {_TOKENS} DESC LIMIT ?",
            (*values, *priced, since, owner, MOST_LINES * 4),
        )
        sums: dict[str, _Sum] = {}
        for row in found:
            sums.setdefault(row[0], _Sum()).add(row, prices.get(row[1] or ""))
        lines = [each.line(key) for key, each in sums.items()]
        lines.sort(key=lambda line: (line.input + line.output, line.runs, line.key), reverse=True)
        return lines

    def figures(self) -> tuple[int, float | None]:
        """Count the rows, and find when the oldest run began."""
        oldest = self.database.rows("SELECT began FROM runs ORDER BY number LIMIT 1")
        return self._count, oldest[0][0] if oldest else None

    # --- what goes ------------------------------------------------------------------------------

    def prune(self, now: float) -> bool:
        """Let go of a bite of what is too old or too much; False if there is none any more."""
        oldest = self.database.rows(
            "SELECT number, ended FROM runs ORDER BY number LIMIT ?", (_PRUNE_ROWS,)
        )
        self.database.tidy_set_aside(now - self._keep_s, _SET_ASIDE_BYTES)
        excess = self._count - self._max_rows
        going = [
            number
            for place, (number, ended) in enumerate(oldest)
            if place < excess or ended < now - self._keep_s
        ]
        if going:
            self._delete(f"number IN ({', '.join('?' * len(going))})", going)
            return True
        self._count_rows()  # the other worker writes and prunes, too
        return self.database.give_back()

    @property
    def is_full(self) -> bool:
        """Tell whether more is kept than there is room for."""
        return self._count > self._max_rows

    def take_less(self) -> None:
        """Keep what there is: rows take little room, and are not written down anywhere else."""

    def forget(self, run_id: str | None, owner: str | None) -> int:
        """Remove the row of a run, or all, and leave nothing of them; how many they were."""
        condition = (
            "number IN (SELECT number FROM runs WHERE id=coalesce(?, id)"
            " AND owner=coalesce(?, owner) LIMIT ?)"
        )
        forgotten = 0
        while gone := self._delete(condition, (run_id, owner, _PRUNE_ROWS)):
            forgotten += gone
            if self.database.wal_bytes() > WAL_LIMIT_BYTES:
                self.database.checkpoint()
        self.database.leave_nothing()
        return forgotten

    def _delete(self, condition: str, values: Sequence[object]) -> int:
        with self.database.transaction():
            gone = self.database.execute(f"DELETE FROM runs WHERE {condition}", values).rowcount  # noqa: S608
        self._count = max(0, self._count - gone)
        return gone

    def _count_rows(self) -> None:
        self._count = self.database.first("SELECT count(*) FROM runs")


class _Sum:
    """What adds up to one line."""

    def __init__(self) -> None:
        self._counts = [0] * 7  # runs, failed, unknown, and the tokens
        self._seconds = self._last = 0.0
        self._bytes = self._unpriced = 0
        self._cost: float | None = None

    def add(self, row: Row, price: Price | None) -> None:
        """Add what was used of one model; `price` None: it has none."""
        _, _, *counts, seconds, size, last, cached, with_tokens = row
        self._counts = [mine + (more or 0) for mine, more in zip(self._counts, counts, strict=True)]
        self._seconds += seconds
        self._bytes += size
        self._last = max(self._last, last)
        cost = _cost(price, counts[3] or 0, counts[4] or 0, cached or 0)
        if cost is None:
            self._unpriced += with_tokens
        else:
            self._cost = (self._cost or 0.0) + cost

    def line(self, key: str) -> UsageLine:
        """Give the sum as a line."""
        runs, failed, unknown, tokens_in, tokens_out, cached, reasoning = self._counts
        return UsageLine(
            key=key,
            runs=runs,
            failed=failed,
            unknown=unknown,
            input=tokens_in,
            output=tokens_out,
            cached=cached,
            reasoning=reasoning,
            seconds=self._seconds,
            bytes=self._bytes,
            last=self._last,
            cost=self._cost,
            unpriced=self._unpriced if self._cost is not None else 0,
        )


def _cost(price: Price | None, tokens_in: int, tokens_out: int, cached: int) -> float | None:
    """Say what they cost; None where the price of what was used is not set."""
    if (
        price is None
        or (tokens_in and price.input is None)
        or (tokens_out and price.output is None)
    ):
        return None
    per_in, per_out = price.input or 0.0, price.output or 0.0
    per_cached = per_in if price.cached is None else price.cached
    return ((tokens_in - cached) * per_in + cached * per_cached + tokens_out * per_out) / _MILLION


def _run_row(row: Row) -> RunRow:
    values = [*row[: len(_PLAIN)], TokenUsage(*row[len(_PLAIN) :])]
    values[_STREAMED] = bool(values[_STREAMED])
    return RunRow(*values)
