"""Questions and answer keys from CSV; every error names a row and an id, never question text."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilekit.core.errors import InvalidInputError

from .fields import Field, find_field

__all__ = ["LETTERS", "Letter", "Question", "oddities", "read_key", "read_questions"]

Letter = Literal["A", "B", "C", "D"]
LETTERS: tuple[Letter, Letter, Letter, Letter] = ("A", "B", "C", "D")

_COLUMNS = ("question_id", "Question", *LETTERS)
_FIELD_COLUMN = "Field"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_MAX_BYTES = 256 << 20


@dataclass(frozen=True, repr=False)
class Question:
    """One question; its ``repr`` shows the id alone, so that no log gets the text."""

    id: str
    text: str
    options: tuple[str, str, str, str]
    field: Field

    def __repr__(self) -> str:
        return f"Question({self.id})"


def read_questions(path: Path) -> list[Question]:
    """Read one CSV file of questions.

    The field is the ``Field`` column where there is one, else the file's name. A question whose
    text or options are empty or equal stays in, since its owner may not be allowed to change it;
    :func:`oddities` counts such ones.

    Raises:
        InvalidInputError: If the file is missing, not UTF-8 or not CSV, lacks a column or a
            cell, or repeats an id.
    """
    header, rows = _read_csv(path, _COLUMNS)
    by_file = None if _FIELD_COLUMN in header else find_field(path.stem)
    first_row: dict[str, int] = {}
    questions = []
    for number, row in rows:
        question = _question(path, number, row, by_file)
        if question.id in first_row:
            raise InvalidInputError(
                f"{path.name} row {number}: id {question.id} is already in row "
                f"{first_row[question.id]}",
                hint="Give each question its own question_id, or remove the repeated row.",
            )
        first_row[question.id] = number
        questions.append(question)
    if not questions:
        raise InvalidInputError(f"{path.name} has no question in it", hint="Get the file again.")
    return questions


def oddities(questions: Iterable[Question]) -> dict[str, int]:
    """Count questions that cannot be asked as they are meant; what there is none of is left out."""
    found: Counter[str] = Counter()
    for question in questions:
        options = [option.strip() for option in question.options]
        found["empty_question"] += not question.text.strip()
        found["empty_option"] += not all(options)
        found["equal_options"] += len(set(options)) < len(options)
    return {name: count for name, count in found.items() if count}


def read_key(path: Path) -> dict[str, Letter]:
    """Read an answer key with the columns ``question_id,answer``.

    Raises:
        InvalidInputError: If the file cannot be read, repeats an id, or has an answer other than
            A, B, C or D.
    """
    _, rows = _read_csv(path, ("question_id", "answer"))
    key: dict[str, Letter] = {}
    for number, row in rows:
        question_id = _id(path, number, row["question_id"])
        answer = row["answer"].strip().upper()
        if answer not in LETTERS:
            raise InvalidInputError(
                f"{path.name} row {number} (id {question_id}): the answer is none of A, B, C, D",
                hint="Write one letter a row: question_id,answer.",
            )
        if question_id in key:
            raise InvalidInputError(
                f"{path.name} row {number}: id {question_id} has an answer already",
                hint="Keep one row for each question_id.",
            )
        key[question_id] = answer
    return key


def _question(path: Path, number: int, row: dict[str, str], by_file: Field | None) -> Question:
    question_id = _id(path, number, row["question_id"])
    options = (row["A"], row["B"], row["C"], row["D"])
    field = by_file or find_field(row[_FIELD_COLUMN])
    return Question(question_id, row["Question"], options, field)


def _id(path: Path, number: int, value: str) -> str:
    # shown in messages and stored in results, so it must not be a misplaced question text
    if not _ID.fullmatch(value.strip()):
        raise InvalidInputError(
            f"{path.name} row {number}: question_id is empty or no identifier",
            hint="Ids are up to 64 letters, digits and . _ : - without spaces.",
        )
    return value.strip()


def _read_csv(
    path: Path, needed: Sequence[str]
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Return the header and the rows, numbered as a spreadsheet does (the header is row 1)."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    header = [name.strip() for name in _next(path, reader) or []]
    missing = [name for name in needed if name not in header]
    if missing:
        raise InvalidInputError(
            f"{path.name} has no column {', '.join(missing)}",
            hint=f"The first row must hold: {','.join(needed)}.",
        )
    if len(set(header)) != len(header):
        raise InvalidInputError(
            f"{path.name} has two columns of the same name", hint="Name each column once."
        )
    return header, _rows(path, reader, header)


def _rows(
    path: Path, reader: Iterator[list[str]], header: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    number = 1
    while (cells := _next(path, reader, number)) is not None:
        number += 1
        if not cells:
            continue  # a blank line
        if len(cells) != len(header):
            raise InvalidInputError(
                f"{path.name} row {number}: {len(cells)} cells, expected {len(header)}",
                hint="Quote cells that hold a comma or a line break.",
            )
        yield number, dict(zip(header, cells, strict=True))


def _next(path: Path, reader: Iterator[list[str]], number: int = 0) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise InvalidInputError(
            f"{path.name} row {number + 1} is not CSV: {error}",
            hint="Check the quotes: a quote inside a quoted cell is written twice.",
        ) from None


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InvalidInputError(f"file {path} does not exist", hint="Check the path.")
    if path.stat().st_size > _MAX_BYTES:
        raise InvalidInputError(
            f"{path} is larger than {_MAX_BYTES >> 20} MB",
            hint="Check that this is the file you meant.",
        )
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InvalidInputError(
            f"{path.name} is not UTF-8: line {line}, byte {error.start}",
            hint=f"Convert it first: iconv -t utf-8 {path.name} > converted.csv",
        ) from None
