"""The live line of a search: generation, best fitness, time left. Only rank 0 shows it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mobilekit.core import console

from .ranks import EvaluateMany, FannedOut, place
from .record import GenerationRecord
from .settings import EvolutionSettings
from .space import State


class SearchProgress:
    """Counts evaluations, and tells after each generation how far the search has come."""

    def __init__(self, bar: console.Bar | None, settings: EvolutionSettings, done: int) -> None:
        self._bar, self._last, self._first = bar, settings.generations, done
        self._note, self._began = "resumed" if done else "", time.monotonic()
        self._advance(done * sum(settings.evaluations))

    def counting(self, evaluate: EvaluateMany) -> EvaluateMany:
        """Return ``evaluate`` that moves the bar on, after each candidate where it can tell."""
        if isinstance(evaluate, FannedOut):
            own = evaluate.on_progress

            def both(count: int) -> None:
                own(count)
                self._advance(count)

            return replace(evaluate, on_progress=both)

        def counted(candidates: Sequence[State], generation: int, stage: int) -> list[float]:
            fitness = evaluate(candidates, generation, stage)
            self._advance(len(candidates))
            return fitness

        return counted

    def chosen(self, record: GenerationRecord) -> None:
        """Note what a generation chose, and how long the rest will take."""
        done = record.generation + 1
        each = (time.monotonic() - self._began) / (done - self._first)
        self._note = f"generation {done}/{self._last}  best {record.fitness:.4g}"
        if not console.is_interactive():  # a moving bar has the time left already
            self._note += f"  {duration(each * (self._last - done))} left"
        self._advance(0)

    def _advance(self, count: int) -> None:
        if self._bar is not None:
            self._bar.advance(count, note=self._note)


@contextlib.contextmanager
def shown(settings: EvolutionSettings, done: int) -> Iterator[SearchProgress]:
    """Show a bar while the block runs, on rank 0."""
    if place()[0] != 0:
        yield SearchProgress(None, settings, done)
        return
    total = settings.generations * sum(settings.evaluations)
    with console.progress(total, "search", announce=True) as bar:
        yield SearchProgress(bar, settings, done)


def duration(seconds: float) -> str:
    """Return a time for people: ``40 s``, ``38 min``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
