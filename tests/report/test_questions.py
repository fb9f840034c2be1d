"""The question set: groups, paired tests, letters, rotations and costs, from real results."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from html import unescape
from typing import Any

import numpy as np
import pytest

from mobilekit import report
from mobilekit.metrics.intervals import mcnemar_exact, wilson_interval
from mobilekit.metrics.multiple import holm
from mobilekit.report.positions import expected_distance
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

from .asked import answers, order, question_set, result

Documents = tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]
SHIPPED = "executorch-xnnpack-int8"
WORSE = "Health & Safety"


def _page(documents: Documents, results: list[dict[str, Any]]) -> str:
    record, _, manifest, _ = documents
    return report.build(
        RunRecord.parse(record, "run"),
        manifest=Manifest.parse(manifest, "manifest"),
        results=[Result.parse(one, "result") for one in results],
    )


def _section(page: str) -> str:
    return page[page.index('id="questions"') : page.index('id="done"')]


def _words(part: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", part)).split()).replace("\u00a0", " ")


def _profiles(documents: Documents) -> list[dict[str, Any]]:
    return [one for one in documents[3] if one["kind"] == "profile"]


@pytest.fixture
def asked(documents: Callable[[], Documents]) -> tuple[str, list[dict[str, Any]]]:
    """The section of a run in which one category is lost, and its two results."""
    questions = question_set()
    before = result("before", questions, answers(questions, 0.7, 1))
    given = answers(questions, 0.7, 1, worse=WORSE, silent=3)
    after = result(SHIPPED, questions, given, order=order(2000))
    found = documents()
    return _section(_page(found, [*_profiles(found), before, after])), [before, after]


def test_every_field_stands_under_its_category(asked: tuple[str, list[Any]]) -> None:
    section, (before, _) = asked
    summaries = re.findall(r"<summary>([^<]* fields? · [^<]*)</summary>", section)
    fields = before["metrics"]["fields"]
    sizes = Counter(entry["category"] for entry in fields.values())
    assert [unescape(s).split(" · ")[:2] for s in summaries] == [
        [name, f"{count} fields"] for name, count in sorted(sizes.items())
    ]
    assert sum(sizes.values()) == 80
    for name in fields:
        assert f"{name.replace('_', ' ')} · 25<" in section
    # a dot a field and model, a dot a category and model, a dot a model
    assert section.count('class="dot ') == 2 * 80 + 2 * 9 + 2


def test_intervals_of_fields_are_wilsons(asked: tuple[str, list[Any]]) -> None:
    section, (before, _) = asked
    entry = before["metrics"]["fields"]["first_aid"]
    low, high = wilson_interval(entry["correct"], entry["n"])
    chart = section[section.index(">first aid · 25<") :]
    lines = re.findall(r'<line x1="([\d.]+)%"[^>]* x2="([\d.]+)%"[^>]*class="interval', chart)
    assert [float(end) for end in lines[0]] == pytest.approx([100 * low, 100 * high], abs=0.006)


def test_tests_by_category_are_paired_and_corrected(asked: tuple[str, list[Any]]) -> None:
    section, (before, after) = asked
    right = [set(one["metrics"]["correct_ids"]) for one in (before, after)]
    fields = before["metrics"]["fields"]
    names = sorted(before["metrics"]["categories"])
    ids = {
        name: {i for entry in fields.values() if entry["category"] == name for i in entry["ids"]}
        for name in names
    }
    p = {n: mcnemar_exact(*(len((a - b) & ids[n]) for a, b in (right, right[::-1]))) for n in names}
    sure = dict(zip(names, holm(list(p.values())), strict=True))
    assert sure[WORSE] < 1e-6
    table = section[section.index("Change by category") :]
    row = table[table.index(f"{WORSE.replace('&', '&amp;')}</th>") :]
    row = row[: row.index("</tr>")]
    assert row.count("p\u00a0&lt;\u00a00.001") == 2
    assert '"num worse"' in row
    words = _words(table)
    others = [name for name in names if name != WORSE]
    assert all(sure[name] > 0.05 for name in others)
    assert "Holm’s method over the 9 categories" in words
    assert "corrected over 80 fields" in _words(section)


def test_without_ids_there_is_no_test_by_category_and_it_says_so(
    asked: tuple[str, list[Any]], documents: Callable[[], Documents]
) -> None:
    _, results = asked
    for one in results:
        for entry in one["metrics"]["fields"].values():
            del entry["ids"], entry["category"]
    words = _words(_section(_page(documents(), results)))
    assert "Categories have no paired test of their own" in words
    assert "Fields · 80 fields" in words


def test_few_questions_a_field_are_not_drawn(documents: Callable[[], Documents]) -> None:
    questions = question_set(each=1)
    one = result("before", questions, answers(questions, 0.5, 1))
    section = _section(_page(documents(), [one]))
    assert "At most 1 question a field: too few for a figure of its own." in _words(section)
    assert section.count('class="dot ') == 1 + 9


def test_letters_and_their_distance(asked: tuple[str, list[Any]]) -> None:
    section, (before, after) = asked
    for kind, one in (("before", before), ("after", after)):
        counts = one["metrics"]["position"]["histogram"]
        for letter, count in counts.items():
            assert f"{letter}, {kind}: {count} of {sum(counts.values())}" in section
    assert "Even choices would be about 0.015 off by chance" in _words(section)


def test_what_chance_does_to_letters_is_what_simulation_gives() -> None:
    rng = np.random.default_rng(0)
    shares = rng.multinomial(400, [0.25] * 4, size=4000) / 400
    simulated = 0.5 * np.abs(shares - 0.25).sum(axis=1).mean()
    assert expected_distance(400) == pytest.approx(simulated, rel=0.02)


def test_rotations_have_a_table_and_letters(asked: tuple[str, list[Any]]) -> None:
    section, _ = asked
    words = _words(section)
    assert f"{SHIPPED} 4 61.3 % 41.2 % 70.0 % 0.31" in words
    assert "A, after: 7940 of 8000" in section


def test_rotations_without_a_key_say_why(documents: Callable[[], Documents]) -> None:
    questions = question_set(each=1)
    nothing = {"acc_mean": None, "acc_worst": None, "reason": "no answer key was given"}
    one = result("before", questions, answers(questions, 0.5, 1), order={**order(80), **nothing})
    words = _words(_section(_page(documents(), [one])))
    assert "before · torch 4 – no answer key was given – 70.0 % 0.31" in words


def test_questions_without_a_key_have_letters_and_no_accuracy(
    documents: Callable[[], Documents],
) -> None:
    questions = question_set(each=1)
    one = result("before", questions, answers(questions, 0.5, 1))
    for key in ("categories", "fields", "correct_ids"):
        del one["metrics"][key]
    one["metrics"].update(accuracy=None, interval=None, n=0, reason="no answer key was given")
    section = _section(_page(documents(), [one]))
    assert "no answer key was given" in _words(section)
    assert "Chosen letters" in section
    assert "By category" not in section
    assert 'class="chart intervals"' not in section


def test_unanswered_questions_are_counted_with_their_reason(asked: tuple[str, list[Any]]) -> None:
    section, (_, after) = asked
    assert after["metrics"]["invalid"] == {"not_finite": 3}
    assert "0.1 % 3 not finite" in _words(section)  # 3 of 2000


def test_no_question_of_the_set_is_on_the_page(asked: tuple[str, list[Any]]) -> None:
    section, _ = asked
    assert "first_aid-" not in section


def _every_model(documents: Documents) -> list[dict[str, Any]]:
    names = [one["artifact"]["id"] for one in _profiles(documents) if one.get("samples")]
    questions = question_set(each=10, fields=8)
    return [
        result(name, questions, answers(questions, share, 3))
        for name, share in zip(names, (0.9, 0.6, 0.5, 0.8, 0.4), strict=True)
    ]


def test_accuracy_stands_against_size_latency_and_memory(
    documents: Callable[[], Documents],
) -> None:
    found = documents()
    results = [*_profiles(found), *_every_model(found)]
    section = _section(_page(found, results))
    assert section.count('class="chart scatter"') == 3
    assert "file size, MB →" in section
    assert "prefill of 128 tokens, ms →" in section
    assert "memory added, MB →" in section
    assert "median time of a prompt of 128 tokens (pp128+tg64)" in section
    key = re.findall(r"<li><b>(\d+)</b>.*?<span>([^<]*)</span>", section)
    assert [number for number, _ in key] == [str(i) for i in range(1, 6)]
    assert key[0][1] == "before · torch"


def test_points_that_are_beaten_are_lighter(documents: Callable[[], Documents]) -> None:
    found = documents()
    results = _every_model(found)
    section = _section(_page(found, results))
    sizes = {one["id"]: sum(f["bytes"] for f in one["files"]) for one in found[2]["artifacts"]}
    sizes["before"] = found[0]["models"]["before"]["weight_bytes"]
    points = [(sizes[one["artifact"]["id"]], one["metrics"]["accuracy"]) for one in results]
    beaten = sum(any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points) for p in points)
    assert 0 < beaten < len(points)
    assert section.count(' beaten"') == beaten


def test_without_profiles_only_size_is_plotted(documents: Callable[[], Documents]) -> None:
    found = documents()
    section = _section(_page(found, _every_model(found)))
    assert section.count('class="chart scatter"') == 1


def test_without_a_prompt_latency_is_that_of_a_token(documents: Callable[[], Documents]) -> None:
    found = documents()
    results = [*_profiles(found), *_every_model(found)]
    for one in results:
        one["samples"] = [s for s in one.get("samples", ()) if s["phase"] != "prefill"]
    section = _section(_page(found, results))
    assert "decode, ms a token →" in section
    assert "no prompt was profiled" in section


def test_markup_in_names_of_categories_and_fields_stays_text(
    documents: Callable[[], Documents],
) -> None:
    evil = "<script>alert(1)</script>"
    questions = question_set(each=12, fields=2)
    one = result("before", questions, answers(questions, 0.5, 1))
    fields = one["metrics"]["fields"]
    entry = fields.pop("elementary_mathematics")
    fields[evil] = {**entry, "category": evil}
    page = _page(documents(), [one])
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in _section(page)


def test_a_run_without_questions_says_so(documents: Callable[[], Documents]) -> None:
    found = documents()
    assert "No questions were asked in this run." in _section(_page(found, _profiles(found)))


def test_damaged_records_are_no_figures(documents: Callable[[], Documents]) -> None:
    """Results come from devices too: what has another form is left out, and nothing breaks."""
    rng = random.Random(0)
    questions = question_set(each=12, fields=4)
    keys = ("fields", "categories", "position", "order", "invalid", "correct_ids", "interval")
    for junk in (None, 3, "x", [], [1], {"a": 1}, {"a": {"n": "x", "ids": 3}}, {"histogram": []}):
        one = result("before", questions, answers(questions, 0.5, 1), order=order(48))
        for key in rng.sample(keys, 4):
            one["metrics"][key] = junk
        _section(_page(documents(), [one]))


def test_limits_say_how_small_the_set_is_and_that_it_is_none_of_the_benchmark(
    documents: Callable[[], Documents],
) -> None:
    small, large = question_set(each=1), question_set(each=25)
    real = {"dataset": {"name": "Mobile-MMLU", "is_mobile_mmlu": True}}
    found = documents()
    words = _words(_page(found, [result("before", small, answers(small, 0.5, 1))]))
    assert "The question set is small (80 questions)" in words
    assert "is not the Mobile-MMLU benchmark" in words
    words = _words(_page(found, [result("before", large, answers(large, 0.5, 1), **real)]))
    assert "The question set is small" not in words
    assert "is not the Mobile-MMLU benchmark" not in words
