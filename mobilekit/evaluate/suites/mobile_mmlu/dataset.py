"""A set of questions with its key and its name; nothing is downloaded, nothing is kept."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import sha256_tree

from .fields import field_table
from .questions import Letter, Question, read_key, read_questions

__all__ = ["SAMPLE_NAME", "QuestionSet", "limited", "load_dataset"]

SAMPLE_NAME = "mobilekit-sample-80"
PRO_QUESTIONS = 9_497


@dataclass(frozen=True)
class QuestionSet:
    """Questions in file order, with the letters of the key where there is one."""

    name: str
    licence: str | None
    is_mobile_mmlu: bool
    sha256: str
    questions: tuple[Question, ...]
    key: Mapping[str, Letter] | None

    def record(self) -> dict[str, Any]:
        """What a result says about the set."""
        return {
            "name": self.name,
            "licence": self.licence,
            "is_mobile_mmlu": self.is_mobile_mmlu,
            "questions": len(self.questions),
            "fields": len({question.field.name for question in self.questions}),
            "sha256": self.sha256,
        }


def load_dataset(data: str | Path = "sample", key: str | Path | None = None) -> QuestionSet:
    """Read a set of questions from a local copy.

    Args:
        data: "sample"; a folder with one CSV file a field, or with a sub-folder ``test`` of them;
            or one CSV file with a ``Field`` column.
        key: CSV file ``question_id,answer``. The sample has its own.

    Raises:
        InvalidInputError: If a file is missing or damaged, or an id occurs twice.
    """
    letters = None if key is None else read_key(Path(key))
    if str(data) == "sample":
        return _sample(letters)
    path = Path(data)
    files = _files(path)
    questions = _unique(files)
    name, licence, is_mobile_mmlu = _identify(path, questions)
    root = path if path.is_dir() else path.parent
    digest = sha256_tree(root, files)
    return QuestionSet(name, licence, is_mobile_mmlu, digest, questions, letters)


def limited(dataset: QuestionSet, limit: int | None, *, seed: int = 0) -> QuestionSet:
    """Keep ``limit`` questions, each field in proportion to its size; file order stays.

    Which ones depends on the seed and the ids alone, so every device picks the same.
    """
    if limit is None or limit >= len(dataset.questions):
        return dataset
    by_field: dict[str, list[str]] = defaultdict(list)
    for question in dataset.questions:
        by_field[question.field.name].append(question.id)
    quota = _quotas({name: len(ids) for name, ids in by_field.items()}, limit, seed)
    kept: set[str] = set()
    for name, ids in by_field.items():
        kept.update(sorted(ids, key=lambda one: _rank(seed, one))[: quota[name]])
    chosen = tuple(question for question in dataset.questions if question.id in kept)
    return replace(dataset, questions=chosen)


def _quotas(sizes: Mapping[str, int], limit: int, seed: int) -> dict[str, int]:
    """Largest remainders; between equal ones the hash decides."""
    total = sum(sizes.values())
    quota = {name: limit * size // total for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (-(limit * sizes[name] % total), _rank(seed, name)))
    for name in order[: limit - sum(quota.values())]:
        quota[name] += 1
    return quota


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _sample(letters: Mapping[str, Letter] | None) -> QuestionSet:
    with resources.as_file(resources.files("mobilekit.data") / "mobile_mmlu") as folder:
        file = folder / "sample.csv"
        questions = tuple(read_questions(file))
        letters = letters or read_key(folder / "sample_key.csv")
        digest = sha256_tree(folder, [file])
    return QuestionSet(SAMPLE_NAME, "CC0-1.0", False, digest, questions, letters)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidInputError(
            f"question set {path} does not exist",
            hint="Give 'sample', or the folder or CSV file of your own copy of Mobile-MMLU.",
        )
    folder = path / "test" if (path / "test").is_dir() else path
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise InvalidInputError(
            f"{folder} holds no CSV file", hint="Expected one file a field, such as first_aid.csv."
        )
    return files


def _unique(files: Sequence[Path]) -> tuple[Question, ...]:
    questions: list[Question] = []
    found_in: dict[str, str] = {}
    for file in files:
        for question in read_questions(file):
            if question.id in found_in:
                raise InvalidInputError(
                    f"id {question.id} is in {found_in[question.id]} and in {file.name}",
                    hint="Leave only the 80 field files: a file 'all' repeats all of them.",
                )
            found_in[question.id] = file.name
            questions.append(question)
    return tuple(questions)


def _identify(path: Path, questions: Sequence[Question]) -> tuple[str, str | None, bool]:
    """Return name, licence, and whether the set has the counts of the published one.

    Nothing but the counts tells a real copy, so a part of it counts as a set of the user's own.
    """
    counts = Counter(question.field.name for question in questions)
    if counts == Counter({field.name: field.questions for field in field_table()}):
        return "Mobile-MMLU", "CC-BY-NC-ND-4.0", True
    if len(questions) == PRO_QUESTIONS and counts.keys() <= {f.name for f in field_table()}:
        return "Mobile-MMLU-Pro", "CC-BY-ND-4.0", True
    return f"local:{path.resolve().name}", None, False
