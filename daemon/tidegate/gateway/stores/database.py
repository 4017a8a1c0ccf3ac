"""One SQLite file that two workers may write, and that anything may happen to.

    directory (0700) / name (0600), name-wal, name-shm, and name.bad: what was damaged

It is opened by the thread that uses it. What goes wrong is a `StoreFault`, in words for the owner.
A file that is damaged is put aside and begun anew; one that was removed or replaced is noticed by
its inode. A worker that opens, creates, removes or puts aside a file does so under a lock on the
directory, so that two workers do not do it at once.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tidegate.machine.private_file import open_own

BUSY_S = 4.0  # for the other worker, which holds the file for some milliseconds
_GIVEN_BACK_PAGES = 256  # in one bite
_SCARCE_BYTES = 4 * 1024 * 1024
_RESERVED_BYTES = 128 * 1024  # in which what is to go can be overwritten
_LOCK_S = 2.0
_LOCK_AGAIN_S = 0.01
_CACHE_KIB = 512
_WAL_KEPT_BYTES = 4 * 1024 * 1024  # the file may be larger while it is needed
_SUFFIXES = ("", "-wal", "-shm")
_BAD = ".bad"
_DAMAGED = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
_WHY = {
    sqlite3.SQLITE_FULL: "there is no room left",
    sqlite3.SQLITE_IOERR: "it cannot be read or written",
    sqlite3.SQLITE_READONLY: "it may not be written",
    sqlite3.SQLITE_BUSY: "another program keeps it locked",
    sqlite3.SQLITE_LOCKED: "another program keeps it locked",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_PERM: "it may not be opened",
    sqlite3.SQLITE_NOTADB: "it is no database",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOMEM: "there is no memory for it",
}

_log = logging.getLogger(__name__)
Connect = Callable[..., sqlite3.Connection]
Row = tuple[Any, ...]  # as SQLite has it: its columns are of no fixed type
Identity = tuple[tuple[int, int] | None, ...]


class StoreFault(Exception):
    """A file cannot be used just now. The text names it and says why."""

    def __init__(self, text: str, *, is_damaged: bool = False, is_full: bool = False) -> None:
        super().__init__(text)
        self.is_damaged = is_damaged
        self.is_full = is_full


class Database:
    """One file with its connection. All methods on one thread; those that touch the file raise
    StoreFault.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        migrations: Sequence[str],
        *,
        in_memory: bool,
        page_bytes: int = 4096,
        connect: Connect = sqlite3.connect,
    ) -> None:
        """`migrations` are scripts, each of which only adds to what the ones before it made."""
        self.path = directory / name
        self.set_aside: str | None = None  # the damaged file
        self._migrations = migrations
        self._in_memory = in_memory
        self._page_bytes = page_bytes
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._identity: Identity = ()

    def __repr__(self) -> str:
        return f"<Database {self.path} open={self.is_open}>"

    # --- opening and closing --------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Tell whether there is a connection."""
        return self._connection is not None

    def open(self) -> None:
        """Open the file, made anew where there is none or where it is damaged."""
        with self._guarded(), self._locked_directory():
            bad = self.path.with_name(self.path.name + _BAD)
            self.set_aside = str(bad) if bad.exists() else None
            try:
                self._open()
            except StoreFault as fault:
                self.close()
                if not fault.is_damaged:
                    raise
                self._put_aside()
                self._open()

    def look(self) -> bool:
        """Open it where it is not open, or is not the file there any more; True if it did."""
        if self._connection is not None:
            with self._guarded():
                if self._identity == self._found_identity():
                    return False
            self.close()
        self.open()
        return True

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def put_aside(self) -> None:
        """Rename the file, which is damaged, unless the other worker has just done so."""
        was = self._identity
        self.close()
        with self._guarded(), self._locked_directory():
            if not was or was[0] == self._found_identity()[0]:
                self._put_aside()

    def remove(self) -> None:
        """Remove the file with all that belongs to it, if there is any."""
        self.close()
        with self._guarded():
            if not os.path.lexists(self.path.parent):
                return
            with self._locked_directory():
                for suffix in (*_SUFFIXES, _BAD):
                    self._sibling(suffix).unlink(missing_ok=True)
            with suppress(OSError):
                self.path.parent.rmdir()  # unless something else is in it
        self.set_aside = None

    def _open(self) -> None:
        with self._guarded():
            os.close(open_own(self.path, os.O_RDWR | os.O_CREAT))
            self._make_private()
            connection = self._connect(
                self.path,
                timeout=BUSY_S,
                isolation_level=None,
                cached_statements=32,
                check_same_thread=False,
            )
            self._connection = connection
            for pragma in (
                f"page_size={self._page_bytes}",  # these two only count for a new file
                "auto_vacuum=INCREMENTAL",
                "journal_mode=WAL",
                f"synchronous={'OFF' if self._in_memory else 'NORMAL'}",
                "secure_delete=ON",
                f"cache_size=-{_CACHE_KIB}",
                f"journal_size_limit={_WAL_KEPT_BYTES}",
                "wal_autocheckpoint=0",  # `checkpoint` does it
                "mmap_size=0",
                "temp_store=MEMORY",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            self._migrate()
            self._identity = self._found_identity()

    def _make_private(self) -> None:
        """See that neither the file nor what lies beside it is another's, or open to others."""
        for suffix in _SUFFIXES:
            sibling = self._sibling(suffix)
            with suppress(FileNotFoundError):
                found = sibling.lstat()
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, f"{sibling} is not a regular file; remove it")
                if stat.S_IMODE(found.st_mode) != 0o600:
                    sibling.chmod(0o600)

    def _migrate(self) -> None:
        """Bring the tables up to date; those of a newer program are left as they are."""
        if self.first("PRAGMA user_version") >= len(self._migrations):
            return
        with self.transaction():
            for number in range(self.first("PRAGMA user_version"), len(self._migrations)):
                for statement in self._migrations[number].split(";"):
                    self.execute(statement)
                self.execute(f"PRAGMA user_version={number + 1}")

    def _put_aside(self) -> None:
        bad = self._sibling(_BAD)
        with suppress(FileNotFoundError):
            self.path.replace(bad)
            self.set_aside = str(bad)
            _log.error("%s was damaged and is begun anew; what it held is %s", self.path, bad)
        for suffix in _SUFFIXES[1:]:  # a new file would take them for its own
            self._sibling(suffix).unlink(missing_ok=True)

    # --- what it is used for --------------------------------------------------------------------

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Execute one statement."""
        with self._guarded():
            try:
                return self._opened.execute(sql, values)
            except (UnicodeEncodeError, OverflowError):  # half an emoji, or an absurd number
                return self._opened.execute(sql, [_storable(value) for value in values])

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """Execute a query, or a pragma that must run to its end; all its rows."""
        with self._guarded():
            return self.execute(sql, values).fetchall()

    def first(self, sql: str, values: Sequence[object] = ()) -> int:
        """Execute a query for one whole number; 0 where it finds none."""
        with self._guarded():
            row = self.execute(sql, values).fetchone()
        return int(row[0] or 0) if row else 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all of it or nothing."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def checkpoint(self) -> bool:
        """Move what was written into the file itself, and empty the WAL; False: it is in use."""
        return not self.first("PRAGMA wal_checkpoint(TRUNCATE)")

    def leave_nothing(self) -> None:
        """Have nothing left of what was deleted: in the file, the WAL, or a file put aside."""
        if self.set_aside is not None:
            with self._guarded():
                self._sibling(_BAD).unlink(missing_ok=True)
            self.set_aside = None
        if not self.checkpoint():
            raise StoreFault(f"{self.path}: another program reads it, so the WAL cannot be emptied")

    def used_bytes(self) -> int:
        """The size of the pages in use, wherever they are."""
        used = self.first("PRAGMA page_count") - self.first("PRAGMA freelist_count")
        return used * self._page_bytes

    def give_back(self, room_bytes: int | None = None) -> bool:
        """Give some free pages back to the file system: where they are many, room is scarce, or the
        file is larger than `room_bytes`; False if there is nothing to give.
        """
        free = self.first("PRAGMA freelist_count")
        pages = self.first("PRAGMA page_count")
        is_large = room_bytes is not None and pages * self._page_bytes > room_bytes
        is_large = is_large or self.free_bytes() < _SCARCE_BYTES
        if not free or (free * 4 <= pages and not is_large):
            return False
        self.rows(f"PRAGMA incremental_vacuum({_GIVEN_BACK_PAGES})")
        return self.first("PRAGMA freelist_count") < free

    def file_bytes(self) -> int:
        """What its files take, with what was put aside."""
        return sum(self._size(suffix) for suffix in (*_SUFFIXES, _BAD))

    def free_bytes(self) -> int:
        """What the file system has left for us; very much where it does not say."""
        with self._guarded():
            found = os.statvfs(self.path.parent)
        if not found.f_blocks:  # some that are shared with a virtual machine
            return sys.maxsize
        return found.f_bavail * found.f_frsize

    def make_sure_of_room(self, more_bytes: int) -> bool:
        """See that so much can be written and moved into the file; True where room is scarce.

        Then the WAL must be kept empty, for on a file system that is full it could neither be
        moved into the file nor written on, and nothing could be deleted either.
        """
        free_bytes = self.free_bytes()
        if free_bytes > _SCARCE_BYTES + more_bytes:
            return False
        if self.wal_bytes():
            self.checkpoint()
        if self.free_bytes() < _RESERVED_BYTES + 2 * more_bytes:
            raise StoreFault(f"{self.path}: there is no room left", is_full=True)
        return True

    def wal_bytes(self) -> int:
        """The size of the WAL."""
        return self._size("-wal")

    def bad_bytes(self) -> int:
        """The size of what was put aside."""
        return self._size(_BAD)

    def tidy_set_aside(self, before: float, most_bytes: int) -> None:
        """Remove what was put aside if it was last written before that time (Unix seconds), and
        keep only the beginning of what is too large.
        """
        if self.set_aside is None:
            return
        bad = self._sibling(_BAD)
        with self._guarded():
            try:
                found = bad.lstat()
                if found.st_mtime >= before:
                    if found.st_size > most_bytes:
                        os.truncate(bad, most_bytes)
                    return
                bad.unlink()
            except FileNotFoundError:
                pass
        self.set_aside = None

    # --- inside ---------------------------------------------------------------------------------

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreFault(f"{self.path} is not open")
        return self._connection

    def _roll_back(self) -> None:
        connection = self._connection
        if connection is not None and connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self.close()

    def _sibling(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _size(self, suffix: str) -> int:
        try:
            return self._sibling(suffix).lstat().st_size
        except OSError:
            return 0

    def _found_identity(self) -> Identity:
        """What lies at the places of the three files now: the WAL must stay ours, too."""
        found: list[tuple[int, int] | None] = []
        for suffix in _SUFFIXES:
            try:
                status = self._sibling(suffix).lstat()
                found.append((status.st_dev, status.st_ino))
            except FileNotFoundError:
                found.append(None)
        return tuple(found)

    @contextmanager
    def _locked_directory(self) -> Iterator[None]:
        """Make the directory where it is gone, and keep the other worker from opening there."""
        directory = self.path.parent
        for each in (directory.parent, directory):
            with suppress(FileExistsError):
                each.mkdir(mode=0o700)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "it belongs to another user; remove it")
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(fd, 0o700)
            over_s = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > over_s:
                        raise
                time.sleep(_LOCK_AGAIN_S)
            yield
        finally:
            os.close(fd)  # which gives the lock back

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Have every error say which file, and why, in one shape."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._fault(error) from error
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise StoreFault(
                f"{error.filename or self.path}: {error.strerror or error}", is_full=full
            ) from error

    def _fault(self, error: sqlite3.Error) -> StoreFault:
        extended = getattr(error, "sqlite_errorcode", None) or 0
        code = extended & 0xFF
        is_damaged = code in _DAMAGED or extended == sqlite3.SQLITE_IOERR_SHORT_READ
        why = _WHY.get(code, "it cannot be used")
        return StoreFault(
            f"{self.path}: {why} ({error})",
            is_damaged=is_damaged,
            is_full=code == sqlite3.SQLITE_FULL,
        )


def _storable(value: object) -> object:
    """Make of a value one that SQLite can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return max(-(2**63), min(value, 2**63 - 1))
    return value
