"""Published figures: complete, of known fields, and apart from everything measured."""

from __future__ import annotations

from statistics import mean, median

import pytest

from mobilekit import evaluate
from mobilekit.evaluate.suites.mobile_mmlu.fields import field_table


def test_the_table_is_the_published_one() -> None:
    found = evaluate.published()
    assert found["label"] == "published, other hardware/harness"
    by_model = {one["model"]: one for one in found["models"]}
    assert len(by_model) == 10
    assert by_model["Llama-3.2-1B-Instruct"]["mobile_mmlu"] == 0.345
    assert by_model["Gemma-2-9b-it"]["mmlu_pro"] == 0.319
    assert set(found["fields"]) == {field.name for field in field_table()}
    cells = [value for row in found["fields"].values() for value in row.values()]
    assert (len(cells), min(cells), max(cells)) == (560, 0.228, 0.895)
    assert median(cells) == pytest.approx(0.665, abs=5e-4)


@pytest.mark.parametrize(
    ("model", "accuracy"),
    [
        ("Llama-3.1-8B", 0.676),
        ("Llama-3.2-3B", 0.511),
        ("Phi-3.5-mini-instruct", 0.640),
        ("Qwen2.5-3B", 0.688),
        ("Qwen2.5-7B", 0.754),
        ("gemma-2-2b-it", 0.390),
        ("gemma-2-9b-it", 0.754),
    ],
)
def test_field_means_are_those_of_the_source(model: str, accuracy: float) -> None:
    fields = evaluate.published()["fields"]
    assert mean(row[model] for row in fields.values()) == pytest.approx(accuracy, abs=5e-4)


def test_only_the_set_that_they_are_of_has_figures() -> None:
    found = evaluate.published_on({"name": "Mobile-MMLU", "is_mobile_mmlu": True})
    assert found is not None
    assert (found.questions, found.reason) == (16_186, None)
    assert {one.model: one.accuracy for one in found.models} == {
        one["model"]: one["mobile_mmlu"] for one in evaluate.published()["models"]
    }
    assert {one.group for one in found.models} == {"mobile", "general"}


def test_figures_on_the_full_set_are_none_on_pro() -> None:
    found = evaluate.published_on({"name": "Mobile-MMLU-Pro", "is_mobile_mmlu": True})
    assert found is not None
    assert found.models == ()
    assert found.reason


@pytest.mark.parametrize("name", ["mobilekit-sample-80", "local:mine", "Mobile-MMLU"])
def test_a_set_that_is_not_the_published_one_has_none(name: str) -> None:
    assert evaluate.published_on({"name": name, "is_mobile_mmlu": False}) is None
    assert evaluate.published_on({"name": name}) is None
