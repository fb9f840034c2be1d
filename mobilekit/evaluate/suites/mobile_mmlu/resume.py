"""A run that can be interrupted: answers are appended line by line, and read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import sha256_json, writing
from mobilekit.core.strict import StrictModel

from .answers import Answer, Reason
from .orders import orders

__all__ = ["AnswerLog", "answer_log"]

_SCHEMA = "mobilekit.answers/2"
_HINT = "Remove the file to start anew, or give another one."
_ORDERS = "|".join(orders(24))


class _Line(StrictModel):
    """One stored answer."""

    id: str
    letter: Literal["A", "B", "C", "D", ""]
    logprobs: tuple[float, float, float, float] | None
    tokens: int = Field(ge=0)
    ns: int = Field(ge=0)
    dropped: int = Field(ge=0)
    tie: bool
    reason: Reason | None
    order: str = Field(pattern=f"^(?:{_ORDERS})$")


class AnswerLog:
    """Answers of one run, by question id and order of its options.

    Those of an earlier, interrupted run are there from the start.
    """

    def __init__(self, stream: IO[str] | None, answers: dict[tuple[str, str], Answer]) -> None:
        self._stream = stream
        self.answers = answers

    def add(self, answer: Answer) -> None:
        """Keep an answer; it is on its way to the disk when this returns."""
        self.answers[answer.id, answer.order] = answer
        if self._stream is not None:
            self._stream.write(json.dumps(asdict(answer), allow_nan=False) + "\n")
            self._stream.flush()


@contextmanager
def answer_log(path: Path | None, run: Mapping[str, Any]) -> Iterator[AnswerLog]:
    """Open the answers of a run; without a path they are kept in memory only.

    Args:
        path: JSON lines, created where missing. A line cut short by a kill is asked again.
        run: What must be equal for stored answers to count: data, model, settings.

    Raises:
        InvalidInputError: If the file belongs to another run, or is damaged.
        OutputError: If it cannot be written.
    """
    if path is None:
        yield AnswerLog(None, {})
        return
    header = {"schema": _SCHEMA, "run": sha256_json(run)}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = _whole_lines(path, json.dumps(header) + "\n")
        answers = _read(path, whole, header)
        with path.open("r+b" if path.exists() else "wb") as raw:
            raw.truncate(sum(len(line) for line in whole))
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            if not whole:
                stream.write(json.dumps(header) + "\n")
                stream.flush()
            yield AnswerLog(stream, answers)


def _whole_lines(path: Path, header: str) -> list[bytes]:
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    cut = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
    # what follows the whole lines is overwritten, so be sure that the file is ours
    if not lines and not header.encode().startswith(cut):
        raise InvalidInputError(f"{path} holds no answers of a run", hint=_HINT)
    return lines


def _read(path: Path, lines: list[bytes], header: dict[str, str]) -> dict[tuple[str, str], Answer]:
    answers: dict[tuple[str, str], Answer] = {}
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            raise InvalidInputError(f"{path} line {number} is not JSON", hint=_HINT) from None
        if number > 1:
            stored = _Line.parse(value, f"{path} line {number}")
            answers[stored.id, stored.order] = Answer(**stored.model_dump())
        elif value != header:
            raise InvalidInputError(
                f"{path} holds the answers of another run: other questions, model or settings",
                hint=_HINT,
            )
    return answers
