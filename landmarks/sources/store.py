"""What has been fetched so far from one place: a folder that outlives interruptions, with one SQLite file in it.

Every write is one transaction, so that a run that was killed goes on from what the last one had stored. The write-ahead
log makes a transaction cheap enough for one per picture; after a power cut the last seconds may be missing, but what is
there is whole.
"""

import math
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from landmarks.stage import UserError

TABLES = """
create table if not exists pictures (id text, origin text, picture blob not null, primary key (id, origin));
create table if not exists failures
    (id text, origin text, reason text not null, attempts integer, primary key (id, origin));
create table if not exists tar_files
    (name text primary key, md5 text not null, members text not null, done integer not null);
"""


@dataclass
class Tar:
    """A tar of the data set. It is `done` when it has been read to its end and its MD5 was right. `members` are then
    the ids in it. Both stay while it is read again for other pictures."""

    name: str
    md5: str
    members: str = ""  # one id a line
    done: bool = False


class Store:
    """Pictures by id and origin (the URL, or the tar, that they come from).

    A context manager; when the block ends in a `UserError`, the failures that are not for good are forgotten, so that
    the next run tries those pictures again. Raises `UserError` if the file cannot be used, or another run is using it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = threading.Lock()
        with self.errors():
            directory.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(directory / "pictures.sqlite", timeout=0, check_same_thread=False)
            # One process at a time: no shared memory, so that the folder may be on a network's disk.
            self.connection.execute("pragma locking_mode = exclusive")
            self.connection.execute("pragma journal_mode = wal")
            self.connection.execute("pragma synchronous = normal")
            self.connection.executescript(TABLES)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, cls: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, UserError):
            with self.transaction() as sql:
                sql.execute("delete from failures where attempts is not null")
        self.connection.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            advice = "wait until the other run ends" if "locked" in str(error) else "make room, or remove the folder"
            raise UserError(f"{self.directory}: {error}; {advice}") from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what the block does, one thread at a time."""
        with self.lock, self.errors(), self.connection:
            yield self.connection

    def add(self, picture_id: str, origin: str, picture: bytes) -> None:
        with self.transaction() as sql:
            sql.execute("insert or replace into pictures values (?, ?, ?)", (picture_id, origin, picture))
            sql.execute("delete from failures where id = ? and origin = ?", (picture_id, origin))

    def fail(self, picture_id: str, origin: str, reason: str, attempts: int | None) -> None:
        """Records why a picture cannot be had: after so many `attempts`, or for good (None)."""
        with self.transaction() as sql:
            sql.execute("insert or replace into failures values (?, ?, ?, ?)", (picture_id, origin, reason, attempts))

    def pictures(self) -> dict[tuple[str, str], int]:
        """The size in bytes of every picture, by id and origin."""
        with self.transaction() as sql:
            rows = sql.execute("select id, origin, length(picture) from pictures")
            return {row[:2]: row[2] for row in rows}

    def failures(self) -> dict[tuple[str, str], tuple[str, float]]:
        """By id and origin: why a picture could not be had, and after how many attempts; infinitely many: for good."""
        with self.transaction() as sql:
            rows = sql.execute("select id, origin, reason, attempts from failures")
            return {row[:2]: (row[2], math.inf if row[3] is None else row[3]) for row in rows}

    def read(self, picture_id: str, origin: str) -> bytes:
        with self.transaction() as sql:
            query = "select picture from pictures where id = ? and origin = ?"
            return sql.execute(query, (picture_id, origin)).fetchone()[0]

    def tars(self) -> dict[str, Tar]:
        with self.transaction() as sql:
            rows = sql.execute("select name, md5, members, done from tar_files order by name")
            return {row[0]: Tar(*row) for row in rows}

    def set_tars(self, md5s: dict[str, str]) -> None:
        """Makes these the tars, by name; what is known of others, or of others of the same name, is forgotten."""
        known = self.tars()
        stale = [tar.name for tar in known.values() if md5s.get(tar.name) != tar.md5]
        with self.transaction() as sql:
            for name in stale:
                forget_tar(sql, name)
            for name, md5 in md5s.items():
                if name in stale or name not in known:
                    put_tar(sql, Tar(name, md5))

    def add_from_tar(self, tar: Tar, pictures: list[tuple[str, bytes]], failures: list[tuple[str, str]]) -> None:
        """Records what was found in a tar. Of an id twice, the first counts."""
        with self.transaction() as sql:
            sql.executemany(
                "insert or ignore into pictures values (?, ?, ?)", ((key, tar.name, data) for key, data in pictures)
            )
            sql.executemany(
                "insert or replace into failures values (?, ?, ?, null)",
                ((key, tar.name, why) for key, why in failures),
            )

    def finish(self, tar: Tar, members: list[str]) -> None:
        """Records that a tar has been read to its end, and the ids in it."""
        tar.done, tar.members = True, "\n".join(members)
        with self.transaction() as sql:
            put_tar(sql, tar)

    def restart(self, tar: Tar) -> None:
        """Forgets all of a tar, its sum included, for that may be what was wrong."""
        tar.md5, tar.members, tar.done = "", "", False
        with self.transaction() as sql:
            forget_tar(sql, tar.name)
            put_tar(sql, tar)


def put_tar(sql: sqlite3.Connection, tar: Tar) -> None:
    sql.execute("insert or replace into tar_files values (?, ?, ?, ?)", tuple(vars(tar).values()))


def forget_tar(sql: sqlite3.Connection, name: str) -> None:
    """Removes a tar with all that came from it."""
    sql.execute("delete from tar_files where name = ?", (name,))
    for table in ("pictures", "failures"):
        sql.execute(f"delete from {table} where origin = ?", (name,))
