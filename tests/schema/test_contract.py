from __future__ import annotations

import json
from typing import Any

import pytest

from mobilekit.core.errors import InvalidInputError
from mobilekit.schema.generate import CONTRACTS, schema_text
from mobilekit.schema.result import ArtifactRef, Result, Workload


@pytest.mark.parametrize("name", sorted(CONTRACTS))
def test_a_file_without_a_schema_is_not_taken_for_the_newest(name: str) -> None:
    with pytest.raises(InvalidInputError, match="key 'schema' is missing"):
        CONTRACTS[name].parse({}, "file.json")
    assert json.loads(schema_text(name))["required"][0] == "schema"


@pytest.mark.parametrize("name", sorted(CONTRACTS))
def test_another_version_says_what_to_update(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        CONTRACTS[name].parse({"schema": f"mobilekit.{name}/2", "surprise": 1}, "file.json")
    said = f"file.json has schema mobilekit.{name}/2, this version reads mobilekit.{name}/1"
    assert caught.value.message == said
    assert "Update MobileKit" in caught.value.hint


@pytest.mark.parametrize("schema", [None, 3, "mobilekit.other/1"])
def test_another_contract_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidInputError, match="'schema' is"):
        Result.parse({"schema": schema}, "file.json")


def test_code_that_makes_a_record_need_not_name_its_schema() -> None:
    result = Result(
        kind="profile",
        device={"class": "host"},
        runtime={},
        artifact=ArtifactRef(id="x", sha256="0"),
        workload=Workload(id="pp1"),
        created="now",
    )
    assert result.to_json()["schema"] == "mobilekit.result/1"
    assert Result.parse(result.to_json(), "file.json") == result
