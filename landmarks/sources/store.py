"""Pictures fetched so far from one source: a directory with a SQLite file that survives interruptions.

Every write is a transaction, so a killed run resumes from the last one. The write-ahead log makes a transaction per
picture cheap, but writes every picture twice. Pictures that a killed run reads again anyway, those of a tar, need
neither: they share a transaction per second. After a power cut, the last pictures may be missing, but every stored
picture is complete.
"""

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from landmarks.stage import UserError, lock

TABLES = """
create table if not exists pictures (id text, origin text, picture blob not null, primary key (id, origin));
create table if not exists failures
    (id text, origin text, reason text not null, attempts integer, primary key (id, origin));
create table if not exists tar_files
    (name text primary key, md5 text not null, members text not null, done integer not null);
"""
# The bytes of a tar that broke off may be wrong. Equal bytes are not written again.
ADD = """
insert into pictures values (?, ?, ?)
on conflict (id, origin) do update set picture = excluded.picture where picture is not excluded.picture;
"""


@dataclass
class Tar:
    """A tar of the data set. `done`: it was read to its end and had the right MD5; `members` lists the ids in it."""

    name: str
    md5: str
    members: str = ""  # one id per line
    done: bool = False


class Store:
    """Pictures by id and origin (the URL or the tar they come from). A context manager.

    The pictures and failures that are recorded within `seconds` share a transaction; 0: each has its own.

    Waits for another run that uses the directory. If the block ends in an error or Ctrl-C after the caller has set
    `fetching`, failures that are not permanent are deleted, so that the next run retries those pictures. Raises
    `UserError` if the file cannot be used.
    """

    def __init__(self, directory: Path, seconds: float = 0) -> None:
        self.directory, self.seconds, self.fetching = directory, seconds, False
        self.lock = threading.Lock()
        self.held = ExitStack()
        with self.errors():
            self.held.enter_context(lock(directory))
            directory.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(directory / "pictures.sqlite", timeout=0, check_same_thread=False)
            # One process at a time needs no shared memory, which a network file system lacks.
            self.connection.execute("pragma locking_mode = exclusive")
            self.connection.execute(f"pragma journal_mode = {'truncate' if seconds else 'wal'}")
            self.connection.execute(f"pragma synchronous = {'full' if seconds else 'normal'}")
            self.connection.execute("pragma wal_autocheckpoint = 25000")  # a log waits for the disk only every 100 MB
            self.connection.executescript(TABLES)
        self.committed = time.monotonic()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, cls: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self.held, closing(self.connection), self.transaction() as sql:
            if error is not None and self.fetching:
                sql.execute("delete from failures where attempts is not null")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors of the database and the file system into `UserError`."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            advice = "wait until the other run ends" if "locked" in str(error) else "make room, or remove the folder"
            raise UserError(f"{self.directory}: {error}; {advice}") from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits what was added before, then everything the block does, or nothing of it if it raises.

        One thread at a time.
        """
        with self.lock, self.errors():
            self.commit()
            with self.connection:
                yield self.connection

    @contextmanager
    def shared_transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits what the blocks of `seconds` do, together. One thread at a time."""
        with self.lock, self.errors():
            yield self.connection
            if time.monotonic() >= self.committed + self.seconds:
                self.commit()

    def commit(self) -> None:
        self.connection.commit()
        self.committed = time.monotonic()

    def add(self, picture_id: str, origin: str, picture: bytes) -> None:
        """Stores an encoded picture, in place of one with other bytes, and deletes its failure, if there is one."""
        with self.shared_transaction() as sql:
            sql.execute(ADD, (picture_id, origin, picture))
            sql.execute("delete from failures where id = ? and origin = ?", (picture_id, origin))

    def fail(self, picture_id: str, origin: str, reason: str, attempts: int | None) -> None:
        """Records why a picture failed and after how many `attempts`; None for a permanent failure."""
        with self.shared_transaction() as sql:
            sql.execute("insert or replace into failures values (?, ?, ?, ?)", (picture_id, origin, reason, attempts))

    def pictures(self) -> dict[tuple[str, str], int]:
        """The size of every picture in bytes, by id and origin."""
        with self.transaction() as sql:
            rows = sql.execute("select id, origin, length(picture) from pictures")
            return {row[:2]: row[2] for row in rows}

    def failures(self) -> dict[tuple[str, str], tuple[str, float]]:
        """Reason and number of attempts of every failure, by id and origin; infinity for a permanent one."""
        with self.transaction() as sql:
            rows = sql.execute("select id, origin, reason, attempts from failures")
            return {row[:2]: (row[2], math.inf if row[3] is None else row[3]) for row in rows}

    def read(self, picture_id: str, origin: str) -> bytes:
        """The encoded picture."""
        with self.transaction() as sql:
            query = "select picture from pictures where id = ? and origin = ?"
            return sql.execute(query, (picture_id, origin)).fetchone()[0]

    def tars(self) -> dict[str, Tar]:
        """The tars by name, sorted."""
        with self.transaction() as sql:
            rows = sql.execute("select name, md5, members, done from tar_files order by name")
            return {row[0]: Tar(*row) for row in rows}

    def set_tars(self, md5s: dict[str, str]) -> None:
        """Sets the tars (MD5 by name). Deletes everything from tars that are gone or have another MD5."""
        known = self.tars()
        unchanged = {name for name, tar in known.items() if md5s.get(name) == tar.md5}
        with self.transaction() as sql:
            for name in known.keys() - unchanged:
                delete_tar(sql, name)
            for name in md5s.keys() - unchanged:
                put_tar(sql, Tar(name, md5s[name]))

    def finish(self, tar: Tar, members: list[str]) -> None:
        """Records that a tar was read to its end, and the ids in it."""
        with self.transaction() as sql:
            put_tar(sql, Tar(tar.name, tar.md5, "\n".join(members), done=True))

    def reopen(self, tar: Tar) -> None:
        """Records that a finished tar is read again: what is added from now on has not passed its MD5 check."""
        with self.transaction() as sql:
            put_tar(sql, Tar(tar.name, tar.md5, tar.members))

    def restart(self, name: str) -> None:
        """Deletes everything from a tar, and its MD5, because the MD5 file may be what was wrong."""
        with self.transaction() as sql:
            delete_tar(sql, name)
            put_tar(sql, Tar(name, ""))


def put_tar(sql: sqlite3.Connection, tar: Tar) -> None:
    sql.execute("insert or replace into tar_files values (?, ?, ?, ?)", (tar.name, tar.md5, tar.members, tar.done))


def delete_tar(sql: sqlite3.Connection, name: str) -> None:
    """Deletes a tar and everything that came from it."""
    sql.execute("delete from tar_files where name = ?", (name,))
    sql.execute("delete from pictures where origin = ?", (name,))
    sql.execute("delete from failures where origin = ?", (name,))
