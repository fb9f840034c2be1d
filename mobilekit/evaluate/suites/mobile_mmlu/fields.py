"""The 80 fields of Mobile-MMLU, their nine categories, and the names that data files use."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

__all__ = ["OTHER", "Field", "categories", "field_table", "find_field"]

OTHER = "Other"  # category of a field that the table does not know


@dataclass(frozen=True)
class Field:
    """One field: its name in the table, its category, its questions in the full set."""

    name: str
    category: str
    questions: int

    @property
    def words(self) -> str:
        """The name as a prompt says it: "first aid"."""
        return " ".join(part for part in self.name.split("_") if part)


@lru_cache(maxsize=1)
def field_table() -> tuple[Field, ...]:
    """The 80 fields in the order of ``fields.csv``.

    Source: chart data of the Mobile-MMLU project page (arXiv 2503.20786).
    """
    return tuple(field for field, _ in _rows())


def categories() -> tuple[str, ...]:
    """The nine categories in the order of the table, then "Other"."""
    return (*dict.fromkeys(field.category for field in field_table()), OTHER)


def find_field(label: str) -> Field:
    """The field that a file name or a ``Field`` cell means; category "Other" where unknown.

    Case, spaces and underscores do not matter; the three aliases of data files are known.
    """
    key = _key(label)
    return _by_key().get(key) or Field(key or "unnamed", OTHER, 0)


def _key(label: str) -> str:
    return re.sub(r"[\W_]+", "_", label.casefold()).strip("_")


@lru_cache(maxsize=1)
def _by_key() -> dict[str, Field]:
    return {_key(label): field for field, alias in _rows() for label in (field.name, alias)}


@lru_cache(maxsize=1)
def _rows() -> tuple[tuple[Field, str], ...]:
    source = resources.files("mobilekit.data") / "mobile_mmlu" / "fields.csv"
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    return tuple(
        (Field(row["field"], row["category"], int(row["questions"])), row["dataset_file_alias"])
        for row in rows
    )
