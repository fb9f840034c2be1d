"""Others' figures: in a table of their own, on the set that was asked, and in no chart."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from mobilekit import report
from mobilekit.evaluate import published_on
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

from .asked import answers, question_set, result

Documents = tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]
HEADING = "Published by others, not measured here"
FULL = {"name": "Mobile-MMLU", "is_mobile_mmlu": True}
PRO = {"name": "Mobile-MMLU-Pro", "is_mobile_mmlu": True}


@pytest.fixture
def page_of(documents: Callable[[], Documents]) -> Callable[..., str]:
    """Return the page of a run that asked a set, with what is published on ``given``."""

    def build(
        dataset: dict[str, Any],
        given: dict[str, Any] | None = None,
        source: str = "embedded",
        **metrics: Any,
    ) -> str:
        record, _, manifest, _ = documents()
        record["recipe"]["model"]["source"] = source
        figures = published_on(given or dataset)
        record["published"] = [figures.model_dump(mode="json")] if figures else []
        questions = replace(question_set(5), name=str(dataset["name"]))
        results = []
        for name, share in (("before", 0.7), ("after", 0.6), ("onnx-cpu-int8", 0.6)):
            one = result(name, questions, answers(questions, share, 1), dataset=dataset)
            one["metrics"].update(metrics)
            results.append(one)
        return report.build(
            RunRecord.parse(record, "run"),
            manifest=Manifest.parse(manifest, "manifest"),
            results=[Result.parse(one, "result") for one in results],
        )

    return build


def _part(page: str) -> str:
    start = page.index(f"<h3>{HEADING}</h3>")
    return page[start : page.index("<h3>", start + 1)]


def _words(part: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", part)).split()).replace("\u00a0", " ")


def test_every_published_model_stands_in_a_table_that_says_so(
    page_of: Callable[..., str],
) -> None:
    page = page_of(FULL)
    rows = re.findall(r"<tr role=\"row\">(.*?)</tr>", _part(page), flags=re.S)
    cells = [_words(row) for row in rows]
    assert cells[0] == "Model Kind Accuracy, published"
    assert cells[1] == "Llama-3.2-1B-Instruct mobile 34.5 %"
    assert len(cells) == 1 + 10
    words = _words(_part(page))
    assert "all 16,186 questions of Mobile-MMLU, none of them measured by MobileKit" in words
    assert "zero-shot" in words
    assert "arXiv 2503.20786" in words
    assert "unless it says modelled or published" in _words(page)
    assert "none is quoted" not in page


def test_published_figures_are_nowhere_else(page_of: Callable[..., str]) -> None:
    with_them, without = page_of(FULL), page_of(FULL, given={"is_mobile_mmlu": False})
    assert HEADING not in without
    charts = [re.findall(r"<svg.*?</svg>", page, flags=re.S) for page in (with_them, without)]
    assert len(charts[0]) > 3
    assert charts[0] == charts[1]
    rest = with_them.replace(_part(with_them), "")
    for model in ("Llama-3.2-1B-Instruct", "Gemma-2-9b-it", "Ministral-8B"):
        assert model not in rest
    tables = [page.count("<table") for page in (with_them, without)]
    assert tables[0] == tables[1] + 1


@pytest.mark.parametrize(
    "source",
    [
        "Qwen/Qwen2.5-3B-Instruct",
        "hf://Qwen/Qwen2.5-3B-Instruct@main",
        "/models/qwen2.5-3b-instruct/",
        "Qwen2.5-3B-Instruct",
    ],
)
def test_the_model_that_went_in_is_found_by_its_name(
    page_of: Callable[..., str], source: str
) -> None:
    part = _part(page_of(FULL, source=source))
    assert part.count("has the name of the model that went in") == 1
    marked = next(row for row in part.split("<tr") if "has the name" in row)
    assert "Qwen2.5-3B-Instruct" in marked


@pytest.mark.parametrize("source", ["embedded", "Qwen/Qwen2.5-3B", "", "Qwen2.5-3B-Instruct/x"])
def test_another_name_is_another_model(page_of: Callable[..., str], source: str) -> None:
    assert "has the name of the model" not in page_of(FULL, source=source)


def test_what_differs_from_their_protocol_is_said(page_of: Callable[..., str]) -> None:
    assert "This run" not in _words(_part(page_of(FULL, asked=16_186)))
    words = _words(_part(page_of(FULL, scorer="generate", asked=2000)))
    assert "This run let the models write their answers: another scorer." in words
    assert "This run asked 2,000 of the questions." in words
    unscored = {"accuracy": None, "interval": None, "correct_ids": None}
    unscored |= {"categories": {}, "fields": {}}
    assert "Without an answer key" in _words(_part(page_of(FULL, **unscored)))


def test_no_figure_stands_where_none_is_comparable(page_of: Callable[..., str]) -> None:
    for page, why in (
        (page_of(PRO), "figures are known on Mobile-MMLU alone"),
        (page_of(FULL, scorer="cloze"), "cloze scores the text of the options"),
    ):
        part = _part(page)
        assert f"No published accuracy stands here: {why}" in _words(part)
        assert "<table" not in part
        assert "34.5" not in part


@pytest.mark.parametrize(
    "dataset",
    [
        {"name": "mobilekit-sample-80", "is_mobile_mmlu": False},
        {"name": "Mobile-MMLU", "is_mobile_mmlu": False},
        PRO,
    ],
)
def test_figures_of_another_set_are_not_shown(
    page_of: Callable[..., str], dataset: dict[str, Any]
) -> None:
    assert HEADING not in page_of(dataset, given=FULL)


def test_markup_in_published_figures_stays_text(documents: Callable[[], Documents]) -> None:
    record, *_ = documents()
    figures = published_on(FULL)
    assert figures is not None
    evil = "<script>alert(1)</script>"
    poisoned = figures.model_dump(mode="json") | {"source": evil, "protocol": evil}
    poisoned["models"][0]["model"] = poisoned["models"][0]["group"] = evil
    record["published"] = [poisoned]
    asked = question_set(5)
    one = result("before", asked, answers(asked, 0.7, 1), dataset=FULL)
    page = report.build(RunRecord.parse(record, "run"), results=[Result.parse(one, "result")])
    assert evil not in page
    assert _words(_part(page)).count(evil) == 4
