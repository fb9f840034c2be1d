"""The shipped JSON Schemas are those of the types."""

from __future__ import annotations

import pytest

from mobilekit.schema.generate import CONTRACTS, FOLDER, schema_text


@pytest.mark.parametrize("name", sorted(CONTRACTS))
def test_the_shipped_schema_is_current(name: str) -> None:
    shipped = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert shipped == schema_text(name), "run: python -m mobilekit.schema.generate"


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CONTRACTS)
