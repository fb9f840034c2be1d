"""Ctrl-C and SIGTERM: wherever they arrive, the same clean-up and an exit code of their own."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

NOTHING_WRITTEN = "Nothing was written; run it again."

_received: list[int] = []


def listen() -> None:
    """Turn both signals into ``KeyboardInterrupt``, so that every ``finally`` on the way runs.

    A signal that the parent chose to ignore, as a shell does for background jobs, stays ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    # Ctrl-C reaches a worker too, and then its parent ends it: that must not cut its clean-up short
    is_cleaning_up = bool(_received) and number not in _received
    _received.append(number)
    if not is_cleaning_up:
        raise KeyboardInterrupt


@dataclass
class Postponed:
    """Which signal asked to stop, if one did."""

    number: int | None = None


@contextlib.contextmanager
def postponed(*, patient: bool = False) -> Iterator[Postponed]:
    """Hold both signals back until the block ends; it looks now and then whether one came.

    A block that ends with an exception of its own keeps the signal to itself.

    Args:
        patient: Whether a second signal is held back too, and not delivered at once: where a
            parent repeats to its children what the terminal told them already.
    """
    held = Postponed()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    handlers = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}

    def note(number: int, frame: FrameType | None) -> None:
        if held.number is None or patient:
            held.number = held.number or number
            return
        signal.signal(number, handlers[signal.Signals(number)])
        signal.raise_signal(number)

    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield held
        return
    for number in handlers:
        signal.signal(number, note)
    try:
        yield held
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held.number is not None:
        signal.raise_signal(held.number)


def exit_code(error: BaseException) -> int | None:
    """Return 128 + the signal's number where a signal is behind ``error``, else ``None``.

    Libraries wrap what a handler raises: transformers makes a ``ModuleNotFoundError`` of it.
    """
    if _received:
        return 128 + _received[0]
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if isinstance(current, KeyboardInterrupt):
            return 128 + signal.SIGINT
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            pending += [current.__cause__, current.__context__]
    return None


@contextlib.contextmanager
def explained(hint: str = NOTHING_WRITTEN) -> Iterator[None]:
    """End the process with two lines and the signal's exit code if one stops the block."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        code = exit_code(error)
        if code is None:
            raise
        from .console import error as say

        say("terminated" if code == 128 + signal.SIGTERM else "interrupted", hint)
        sys.exit(code)
