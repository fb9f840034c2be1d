"""A set of questions with its key, its name and its licence; nothing of it is kept."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import sha256_tree

from .fields import field_table
from .questions import Letter, Question, oddities, read_key, read_questions
from .sources import MOBILE_MMLU, PRO, Published, Source, find_source

__all__ = ["SAMPLE_NAME", "QuestionSet", "limited", "load_dataset"]

SAMPLE_NAME = "mobilekit-sample-80"
_REPEATS_ALL = "all"  # name of a file beside the field files that holds all of them again


@dataclass(frozen=True)
class QuestionSet:
    """Questions in file order, with the letters of the key where there is one.

    Attributes:
        name: The published name, or "local:" and the name of the folder.
        licence: SPDX tag, where known.
        is_mobile_mmlu: Whether it is one of the two published sets.
        sha256: Over the files that were read.
        questions: In file order.
        key: Letters by id.
        terms: What the licence forbids.
        revision: Commit on the hub, where the set comes from there.
        limit_of: Questions of every field before a limit; None where there was no limit.
    """

    name: str
    licence: str | None
    is_mobile_mmlu: bool
    sha256: str
    questions: tuple[Question, ...]
    key: Mapping[str, Letter] | None
    terms: tuple[str, ...] = ()
    revision: str | None = None
    limit_of: Mapping[str, int] | None = field(default=None, repr=False)

    def record(self) -> dict[str, Any]:
        """What a result says about the set; ``warnings`` counts questions that are odd."""
        return {
            "name": self.name,
            "licence": self.licence,
            "terms": list(self.terms),
            "is_mobile_mmlu": self.is_mobile_mmlu,
            "revision": self.revision,
            "questions": len(self.questions),
            "fields": len({question.field.name for question in self.questions}),
            "sha256": self.sha256,
            "warnings": oddities(self.questions),
        }

    def sampling(self) -> dict[str, Any] | None:
        """How a limit drew from the fields, or None where all questions are asked.

        ``weights`` says for how many questions of its field each one stands; fields that a limit
        left without a question are counted, not weighted.
        """
        if self.limit_of is None:
            return None
        drawn = Counter(question.field.name for question in self.questions)
        return {
            "population": sum(self.limit_of.values()),
            "sampled": len(self.questions),
            "fields_without": sum(name not in drawn for name in self.limit_of),
            "weights": {n: size / drawn[n] for n, size in self.limit_of.items() if drawn[n]},
        }


def load_dataset(data: str | Path = "sample", key: str | Path | None = None) -> QuestionSet:
    """Read a set of questions.

    Args:
        data: "sample"; a folder with one CSV file a field, or with a sub-folder ``test`` of them;
            one CSV file with a ``Field`` column; or a data set of the hub, as
            :func:`mobilekit.evaluate.suites.mobile_mmlu.sources.find_source` takes it.
        key: CSV file ``question_id,answer``. The sample has its own.

    Raises:
        InvalidInputError: If a file is missing or damaged, or an id occurs twice.
        UsageError: If the hub does not have or does not give it.
        MissingDependencyError: If the hub cannot be reached.
    """
    letters = None if key is None else read_key(Path(key))
    if str(data) == "sample":
        return _sample(letters)
    source = find_source(data)
    files = _files(source.path)
    questions = _unique(files)
    root = source.path if source.path.is_dir() else source.path.parent
    published = source.published or _recognised(questions)
    return QuestionSet(
        name=published.name if published else _local_name(source),
        licence=published.licence if published else None,
        is_mobile_mmlu=published is not None,
        sha256=sha256_tree(root, files),
        questions=questions,
        key=letters,
        terms=published.terms if published else (),
        revision=source.revision,
    )


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
    sizes = {name: len(ids) for name, ids in by_field.items()}
    return replace(dataset, questions=chosen, limit_of=sizes)


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
    folder = path / "test" if (path / "test").is_dir() else path
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise InvalidInputError(
            f"{folder} holds no CSV file", hint="Expected one file a field, such as first_aid.csv."
        )
    return files


def _unique(files: Sequence[Path]) -> tuple[Question, ...]:
    """Read every question once; a file ``all`` that repeats the others is not counted again."""
    repeats = [file for file in files if file.stem.casefold() == _REPEATS_ALL and len(files) > 1]
    questions: list[Question] = []
    found_in: dict[str, str] = {}
    for file in files:
        for question in () if file in repeats else read_questions(file):
            if question.id in found_in:
                raise InvalidInputError(
                    f"id {question.id} is in {found_in[question.id]} and in {file.name}",
                    hint="Keep one of the two: every question belongs to one file.",
                )
            found_in[question.id] = file.name
            questions.append(question)
    for file in repeats:
        missing = sum(question.id not in found_in for question in read_questions(file))
        if missing:
            raise InvalidInputError(
                f"{file.name} holds {missing} questions that no other file has",
                hint="Keep the field files alone, or that file alone.",
            )
    return tuple(questions)


def _recognised(questions: Sequence[Question]) -> Published | None:
    """Return which published set a local copy is, by its counts.

    Nothing else tells a real copy, so a part of it counts as a set of the user's own.
    """
    counts = Counter(question.field.name for question in questions)
    if counts == Counter({field.name: field.questions for field in field_table()}):
        return MOBILE_MMLU
    if len(questions) == PRO.questions and counts.keys() <= {f.name for f in field_table()}:
        return PRO
    return None


def _local_name(source: Source) -> str:
    return f"hub:{source.repo}" if source.repo else f"local:{source.path.resolve().name}"
