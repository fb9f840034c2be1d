"""The only place that prints: progress and messages to stderr, results to stdout.

Of the processes that ``torchrun`` started, the first one speaks for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class _Settings:
    quiet: bool = False
    verbose: bool = False


_settings = _Settings()


class Bar(Protocol):
    """A running progress bar."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move on by ``amount`` and show ``note`` beside the bar."""


def configure(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set how much is printed to stderr for the rest of the process."""
    _settings.quiet, _settings.verbose = quiet, verbose


def speaks() -> bool:
    """Tell whether this process prints: alone, or as the first of those that work together."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def status(text: str) -> None:
    """Print one line of progress to stderr, unless ``--quiet``."""
    if not _settings.quiet and speaks():
        print(text, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """Print one line to stderr only with ``--verbose``."""
    if _settings.verbose:
        status(text)


def warn(text: str) -> None:
    """Print one warning line to stderr; warnings are shown even with ``--quiet``."""
    if speaks():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def error(message: str, hint: str, *, on_every_rank: bool = False) -> None:
    """Print an error as two lines to stderr: what is wrong, what to do.

    Args:
        message: What is wrong.
        hint: What to do about it.
        on_every_rank: Whether it may be true of this process alone. What is wrong with the
            input, all processes find, and one says it; with ``--verbose`` all of them do.
    """
    if speaks() or on_every_rank or _settings.verbose:
        print(f"error: {message}\n{hint}", file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Print a result to stdout."""
    if speaks():
        print(text, flush=True)


def emit_json(value: Any) -> None:
    """Print exactly one JSON document to stdout."""
    emit(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print an aligned table to stdout: numbers to the right, words to the left.

    Where a terminal is too narrow for it, each row becomes a few lines of its own.
    """
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    if sys.stdout.isatty() and sum(widths) + 3 * len(widths) - 3 > _columns():
        _records(headers, rows)
        return
    right = [i > 0 and all(_numeric(row[i]) for row in rows) for i in range(len(headers))]
    for row in cells:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        emit("   ".join(padded).rstrip())


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _records(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as its first cell and, below it, a line for every other one that is there."""
    width = max(len(header) for header in headers[1:])
    for first, *others in rows:
        emit(first)
        for header, cell in zip(headers[1:], others, strict=True):
            if cell:
                emit(f"  {header.ljust(width)}   {cell}")


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "+-−–±<≤"


def is_interactive() -> bool:
    """Tell whether stderr is a terminal on which a moving bar makes sense."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


@contextlib.contextmanager
def native_silence() -> Iterator[None]:
    """Swallow what native libraries write to the process's stderr while the block runs.

    Only for blocks whose failures arrive as exceptions. With ``--verbose`` nothing is swallowed.
    """
    if _settings.verbose:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def progress(total: float | None, description: str, *, announce: bool = False) -> Iterator[Bar]:
    """Show a bar while the block runs; a plain line now and then where there is no terminal.

    Args:
        total: What the steps add up to, where known.
        description: What is being done.
        announce: Whether it gets a line at its start where there is no terminal: for a phase that
            may take a minute before it has something to tell.
    """
    if _settings.quiet or not speaks():
        yield _SilentBar()
    elif is_interactive():
        with _rich_bar(total, description) as bar:
            yield bar
    else:
        if announce:
            status(f"  {description}")
        yield _LineBar(total, description)


class _SilentBar:
    def advance(self, amount: float = 1, note: str = "") -> None:
        """Do nothing."""


class _LineBar:
    """At most one line every ten seconds, so that a log file stays short."""

    def __init__(self, total: float | None, description: str) -> None:
        self.total, self.description, self.done = total, description, 0.0
        self.printed_at = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        if time.monotonic() - self.printed_at >= 10:
            self.printed_at = time.monotonic()
            share = f"{self.done / self.total:4.0%}" if self.total else f"{self.done:g}"
            status(f"  {self.description}  {share}  {note}".rstrip())


@contextlib.contextmanager
def _rich_bar(total: float | None, description: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(description, total=total, note="")

        class _RichBar:
            def advance(self, amount: float = 1, note: str = "") -> None:
                shown.update(task, advance=amount, note=note)

        yield _RichBar()
