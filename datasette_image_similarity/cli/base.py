"""What the commands share: their group, arguments and options, how they report and stop."""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import click

from ..errors import ImageSimilarityError, shell_line

if TYPE_CHECKING:
    from ..trust import Vouched

MOST_NOTES, MOST_ROOTS = 10, 5  # printed one by one after a run


class _Group(click.Group):
    """Shows what went wrong in one line, and exits with 1."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Before anything is printed: text replaces what the output's encoding lacks.

        Python takes such an encoding for redirected output on Windows, and everywhere for
        what PYTHONIOENCODING or an old locale says.
        """
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from datasette.utils.sqlite import sqlite3

        from ..database import advice

        try:
            return super().invoke(ctx)
        except ImageSimilarityError as error:
            raise click.ClickException(one_line(str(error))) from None
        except sqlite3.Error as error:
            what = advice(error)
            said = f"The database {what}." if what else f"SQLite says: {error}"
            raise click.ClickException(one_line(said)) from None
        except UnicodeEncodeError as error:
            said = f"A name holds bytes that are not UTF-8: {error.object}"
            raise click.ClickException(one_line(said)) from None


def one_line(text: str) -> str:
    """Names of files may hold anything, also what a terminal obeys: that is escaped."""
    unsafe = ("Cc", "Cs", "Zl", "Zp")  # controls, broken Unicode, ends of lines
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in unsafe else c for c in text
    )


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, whatever the names in it hold."""
    click.echo(one_line(text), err=err)


def print_data(text: str) -> None:
    """Print JSON or CSV: always in UTF-8. Half of a surrogate pair, as in names of files
    that are no UTF-8, becomes an escape, which JSON reads."""
    click.echo(text.encode("utf-8", "backslashreplace"), nl=False)


def print_json(value: Any, indent: int | None = 2) -> None:
    print_data(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


@click.group(name="image-similarity", cls=_Group)
def image_similarity() -> None:
    """Find similar pictures: embed them, then ask for nearest neighbours.

    \b
    Example:
        datasette image-similarity embed photos.db ~/Pictures
        datasette photos.db
    """


database_file = click.argument("database", type=click.Path(dir_okay=False, path_type=Path))
existing = click.argument(
    "database", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
collection_name = click.option(
    "--name", help="Collection over the table; if not named, its default one"
)
json_output = click.option("--json", "as_json", is_flag=True, help="Print JSON")


def only_table(database: Path, how: str = "after the database") -> str:
    """The table where there is one with embeddings alone; `how` one names it otherwise.

    Raises CollectionError where there is none, UsageError where there are several.
    """
    from .. import database as db
    from ..errors import CollectionError

    conn = db.connect(database)
    tables = sorted({collection.table for collection in db.collections(conn)})
    conn.close()
    if not tables:
        raise CollectionError(f"{nothing_yet(database)}.")
    if len(tables) > 1:
        raise click.UsageError(f"Name one of the tables {how}: {', '.join(tables)}")
    return tables[0]


def nothing_yet(database: Path) -> str:
    """What to say where a database has no embeddings, and what to do."""
    from ..database import how_to_begin

    return f"{database} has no embeddings yet. {how_to_begin(database=str(database))}"


def command_line(*words: object) -> str:
    """A command of ours to copy into a shell."""
    return shell_line("datasette", "image-similarity", *words)


def look_at(database: Path, table: str) -> str:
    """How to look at a table: Datasette's command, and the address that it serves."""
    from datasette.utils import tilde_encode

    from .. import database as db

    with closing(db.connect(database)) as conn:
        table = db.source_table(conn, table).name  # with its own capitals
    path = "/".join(map(tilde_encode, (database.stem or "database", table)))
    command = shell_line("datasette", database)
    return f"To look at them, run: {command}  and open http://127.0.0.1:8001/{path}"


def vacuum(database: Path) -> str:
    """The command that makes a file smaller after something was dropped."""
    return shell_line("sqlite3", database, "vacuum")


def embed_all(database: Path, table: str) -> str:
    """The command that brings all collections over a table up to date."""
    named = [] if table.lower() == "images" else ["--table", table]
    return command_line("embed", database, *named, "--all")


def kept_beside(store: str, database: Path, table: str, name: str) -> list[str]:
    """Where a collection is that was made of one in a store; nothing without a store."""
    if not store:
        return []
    kind = (
        "milvus-lite:OTHER.db" if store.startswith("milvus-lite:") else "milvus://…/OTHER"
    )
    return [
        "Its vectors are in the database itself. To have them in a store, too, under "
        "another name, since they cannot be compared with the full ones:",
        "  " + command_line("move", database, table, "--name", name, "--to", kind),
    ]


class Reporter:
    """Prints a run as it goes: a bar on a terminal, else a line now and then."""

    def __init__(self, database: Path, quiet: bool) -> None:
        self.database = database
        # With --json, standard output holds the JSON alone.
        self.out = sys.stderr if quiet else sys.stdout
        self.terminal = self.out.isatty()
        self.last = 0.0
        self.described: str | None = None
        self.idle = False
        self.told: set[str] = set()  # problems, which a watch meets again and again
        self.step_began = ("", 0.0, 0)  # what, when, and with how many done
        self.began = (0.0, 0, 0)  # when pictures began, with how many done, of how many

    def line(self, text: str) -> None:
        text = one_line(text)
        if self.terminal:
            text = f"\r\033[K{text}"
        click.echo(text, file=self.out)

    def _rate(self, now: Any) -> float:
        """Pictures a second since the first were begun: listing them and loading the
        network, which come before, say nothing about the others."""
        if now.total != self.began[2] or now.done <= self.began[1]:
            self.began = (time.monotonic(), now.done, now.total)
        seconds = time.monotonic() - self.began[0]
        return (now.done - self.began[1]) / seconds if seconds else 0

    def progress(self, now: Any) -> None:
        if now.encoder != self.described and not (self.idle and not now.total):
            self.line(now.encoder)
            self.described = now.encoder
        rate = self._rate(now)
        if not now.total or (not now.done and not self.terminal):
            return
        self.idle = False
        if not self.terminal and time.monotonic() - self.last < 10 and now.done < now.total:
            return
        self.last = time.monotonic()
        left = round((now.total - now.done) / rate) if rate else 0
        text = f"{now.done:,} of {now.total:,}"
        if rate:
            text += f"   {rate:.1f} images/s   {left // 60}:{left % 60:02} left"
        if now.failed:
            text += f"   {now.failed:,} failed"
        if self.terminal:
            width = 24
            filled = width * now.done // now.total
            bar = "█" * filled + "░" * (width - filled)
            click.echo(f"\r\033[K{bar} {text}", nl=False, file=self.out)
        else:
            click.echo(text, file=self.out)

    def summary(self, summary: Any) -> None:
        if self.idle and not (summary.embedded or summary.reused or summary.removed):
            return
        for note in summary.notes[:MOST_NOTES]:
            self.line(note)
        if len(summary.notes) > MOST_NOTES:
            self.line(f"… and {len(summary.notes) - MOST_NOTES:,} more such lines")
        for picture, reason in summary.failures[:50]:
            self.line(f"Failed: {picture.label}: {reason}")
        if len(summary.failures) > 50:
            more = len(summary.failures) - 50
            self.line(f"… and {more:,} more: see _image_similarity_failures")
        if summary.skipped:
            self.line(f"Skipped: {summary.skipped}")
            for remedy in summary.skipped.remedies():
                self.line(remedy)
        if summary.cache_problem:
            self.once(f"Downloads were not kept: {summary.cache_problem}")
        if summary.is_there and "https:" in summary.new_roots:
            self.line(
                "Pages show small pictures of these, and fetch nothing unless configured: "
                f"{_configured(roots=['https:'])}"
            )
        elif summary.is_there and summary.new_roots:
            roots = sorted(summary.new_roots)
            more = len(roots) - MOST_ROOTS
            named = ", ".join(roots[:MOST_ROOTS])
            named += f" and {more:,} more folders" if more > 0 else ""
            how = "the setting roots" if more > 0 else _configured(roots=roots)
            self.line(
                f"Pages will read large pictures from {named}. On another computer, or for "
                f"another user, that has to be configured: {how}"
            )
        for line in summary.left:
            self.line(line)
        parts = [f"{summary.embedded:,} embedded"]
        if summary.reused:
            parts.append(f"{summary.reused:,} reused")
        parts += [f"{summary.unchanged:,} unchanged", f"{summary.failed:,} failed"]
        if summary.removed:
            parts.append(f"{summary.removed:,} removed")
        if summary.missing:
            parts.append(f"{summary.missing:,} missing or excluded (--prune deletes them)")
        self.line(f"{', '.join(parts)} in {summary.seconds:.1f} seconds")
        if kept := summary.kept_rows:
            self.line(
                f"{kept:,} {'row' if kept == 1 else 'rows'} of missing files "
                f"{'was' if kept == 1 else 'were'} kept, because you wrote there. "
                "--prune-rows deletes such rows, too."
            )
        if summary.wants_index and (summary.embedded or summary.reused):
            self.line(
                "Searches would be faster with a compressed index: "
                f"{command_line('index', self.database)}"
            )

    def vouched(self, vouched: Vouched) -> None:
        """What could not be noted, and what to do about it."""
        if vouched.problem:
            names = " and ".join(vouched.settings)
            self.once(
                f"The {names} could not be noted for you: {vouched.problem}. Pages need "
                f"this in Datasette's configuration: {_configured(**vouched.settings)} "
                "Later commands need that folder writable, or on Linux another one in "
                "XDG_CONFIG_HOME."
            )

    def once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.line(text)

    def step(self, what: str, done: int, total: int) -> None:
        """How far a step of something long is."""
        now = time.monotonic()
        if self.terminal:
            click.echo(f"\r\033[K{what}: {done:,} of {total:,}", nl=False, file=self.out)
        elif what != self.described or now - self.last >= 10:
            self.line(f"{what}: {done:,} of {total:,}")
            self.described, self.last = what, now

    def rated(self, what: str, done: int, total: int) -> None:
        """As `step()`, with how many of them a second."""
        now = time.monotonic()
        if self.step_began[0] != what or done < self.step_began[2]:
            self.step_began = (what, now, done)
        _, began, first = self.step_began
        rate = f"   {(done - first) / (now - began):,.0f}/s" if done > first else ""
        bar = f"{what}: {done:,} of {total:,}{rate}"
        if self.terminal:
            click.echo(f"\r\033[K{bar}", nl=False, file=self.out)
        elif what != self.described or now - self.last >= 10:
            self.line(bar)
            self.described, self.last = what, now

    def watching(self) -> None:
        if not self.idle:
            self.line("Watching for changes. Ctrl-C ends.")
        self.idle = True


def _configured(**settings: Any) -> str:
    return json.dumps({"plugins": {"datasette-image-similarity": settings}})


@contextmanager
def or_stopped(say: Reporter, left: str) -> Iterator[Callable[[], bool]]:
    """As `stopping()`, for what is stored whole or not at all: stopped, `left` says what
    there is then, and the command exits with 130."""
    from ..errors import Stopped

    with stopping() as stop:
        try:
            yield stop
        except Stopped:
            say.line(f"Stopped: {left}.")
            sys.exit(130)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks to stop after the current batch, the second stops at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        click.echo("\nStopping after the current batch …", err=True)

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: nobody can press Ctrl-C here
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def warnings_said() -> Iterator[None]:
    """Warnings on standard error, as a command says things."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        yield
    for note in notes:
        echo(f"{note.message}", err=True)
