"""Two results on the same questions, and letters scored after the run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mobilekit import evaluate
from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.metrics.intervals import wilson_interval
from mobilekit.runtime.torch import TorchRuntime
from mobilekit.schema.result import ArtifactRef, Result

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
FULL, KEY = VECTORS / "fixture_full", VECTORS / "fixture_key.csv"
LETTERS = dict(load_dataset(FULL, KEY).key or {})
NAMES = list(LETTERS)


def from_device(letters: dict[str, str], name: str = "pte", **metrics: Any) -> Result:
    """A result as a phone gives it back: letters, and nothing that a key would tell."""
    given = {
        "schema": "mobilekit.result/1",
        "kind": "evaluate",
        "device": {"class": "android-arm64"},
        "runtime": {"name": "executorch"},
        "artifact": {"id": name, "sha256": "0" * 64},
        "workload": {"id": "Mobile-MMLU"},
        "letters": letters,
        "metrics": metrics,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Result.parse(json.loads(json.dumps(given)), "device")


def wrong(letter: str) -> str:
    return "B" if letter == "A" else "A"


def with_errors(*indices: int) -> dict[str, str]:
    return {n: wrong(LETTERS[n]) if i in indices else LETTERS[n] for i, n in enumerate(NAMES)}


def test_a_paired_test_by_hand_and_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    first = from_device(with_errors(0, 1, 2, 3, 4, 5), "dense")
    second = from_device(with_errors(0, 11), "small")
    found = evaluate.compare(first, second, key=KEY)
    assert (found["n"], found["asked"]) == (12, 12)
    assert (found["only_first"], found["only_second"]) == (1, 5)
    assert found["p_value"] == pytest.approx(stats.binomtest(1, 6, 0.5).pvalue)
    assert found["first"] == {
        "artifact": "dense",
        "device": "android-arm64",
        "accuracy": 0.5,
        "interval": list(wilson_interval(6, 12)),
        "correct": 6,
    }
    assert found["second"]["accuracy"] == pytest.approx(10 / 12)
    assert found["agreement"] == pytest.approx(6 / 12)
    assert found["warnings"] == []
    assert evaluate.comparison_line(found) == (
        "50.0% against 83.3% (n 12), only one right: 1 against 5, p 0.219 (exact McNemar); "
        "the same letter to 50.0% of 12 questions"
    )


def test_right_answers_that_results_name_take_the_place_of_a_key(
    runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    results = [
        evaluate.run(
            runtime,
            tokenizer,
            evaluate.MobileMMLUConfig(data=str(FULL), key=str(KEY), scorer=scorer),
            artifact=ArtifactRef(id=scorer, sha256="0" * 64),
            device={"class": "host"},
        )
        for scorer in ("loglik", "generate")
    ]
    with_key = evaluate.compare(results[0], results[1], key=KEY)
    assert evaluate.compare(results[0], results[1]) == with_key
    assert with_key["first"]["accuracy"] == results[0].metrics["accuracy"]
    assert with_key["warnings"] == ["scorer: loglik and generate"]
    same = evaluate.compare(results[0], results[0])
    assert (same["p_value"], same["agreement"], same["only_first"]) == (1.0, 1.0, 0)


def test_without_a_key_there_is_agreement_alone() -> None:
    letters = {**with_errors(0), NAMES[1]: ""}
    first, second = from_device(letters), from_device(with_errors())
    found = evaluate.compare(first, second)
    assert found["agreement"] == pytest.approx(10 / 12)
    assert (found["n"], found["p_value"], found["first"]["accuracy"]) == (0, None, None)
    assert found["reason"] == "no answer key was given"
    assert evaluate.comparison_line(found).endswith("no accuracy (no answer key was given)")
    nothing = evaluate.compare(from_device({"1": ""}), from_device({"1": ""}))
    assert nothing["agreement"] == 0  # two that gave no answer did not agree on one


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="11 questions in common; 1 and 0 are in one"):
        evaluate.compare(from_device(LETTERS), from_device(dict.fromkeys(NAMES[1:], "A")))
    with pytest.raises(InvalidInputError, match="has no letters"):
        evaluate.compare(from_device(LETTERS), from_device({}))
    other = tmp_path / "key.csv"
    other.write_text("question_id,answer\n1,A\n", encoding="utf-8")
    found = evaluate.compare(from_device(LETTERS), from_device(LETTERS), key=other)
    assert (found["n"], found["reason"]) == (0, "the key has none of these questions")


def test_different_files_and_different_keys_are_told() -> None:
    first = from_device(LETTERS, dataset={"sha256": "a"}, correct_ids=NAMES, n=12)
    second = from_device(LETTERS, dataset={"sha256": "b"}, correct_ids=NAMES[:3], n=3)
    found = evaluate.compare(first, second)
    assert found["reason"] == "the two results were scored with different keys"
    assert found["warnings"] == ["question files: their checksums differ"]


def test_letters_from_a_device_are_scored() -> None:
    device = from_device({**with_errors(3), NAMES[5]: ""})
    scored = evaluate.rescore(device, KEY)
    assert scored.letters == device.letters
    assert (scored.metrics["accuracy"], scored.metrics["n"]) == (pytest.approx(10 / 12), 12)
    assert scored.metrics["invalid_rate"] == pytest.approx(1 / 12)
    assert "fields" not in scored.metrics
    assert evaluate.summary_line(scored).startswith("Mobile-MMLU 83.3% (")
    known = evaluate.rescore(device, KEY, data=FULL).metrics
    assert known["categories"]["Academic & Learning"]["n"] == 2
    assert list(known["categories"]) == [
        "Academic & Learning",
        "Business & Career",
        "Technology & Digital",
        "Health & Safety",
        "Lifestyle & Personal",
        "Home & Family",
        "Environment",
    ]
    assert sum(one["correct"] for one in known["fields"].values()) == 10


@pytest.mark.parametrize("settings", [{"rotations": 4}, {"scorer": "cloze"}, {"limit": 5}])
def test_scoring_later_gives_what_scoring_at_once_gives(
    runtime: TorchRuntime, tokenizer: TextTokenizer, settings: dict[str, Any]
) -> None:
    at_once = mobile_mmlu(runtime, tokenizer, FULL, key=KEY, **settings).metrics
    without = mobile_mmlu(runtime, tokenizer, FULL, **settings)
    later = evaluate.rescore(
        from_device(copy.deepcopy(without.letters), **without.metrics),  # type: ignore[arg-type]
        KEY,
        data=FULL,
    ).metrics
    assert later == at_once


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has no letters"):
        evaluate.rescore(from_device({}), KEY)
    with pytest.raises(InvalidInputError, match="6 of the 12 questions in the result are not in"):
        evaluate.rescore(from_device(LETTERS), KEY, data=VECTORS / "fixture_pro.csv")
    (tmp_path / "r.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="'schema' is missing"):
        evaluate.read_result(tmp_path / "r.json")


@pytest.mark.parametrize(
    "metrics",
    [
        {"order": 3},
        {"order": {"letters": {"1": "A"}}},
        {"order": {"letters": {NAMES[0]: "A"}, "rotations": "x", "position_prior": {}}},
        {"sampling": {"weights": [1]}},
        {"sampling": []},
        {"cloze": {"acc": None}},
        {"cloze": []},
    ],
)
def test_metrics_that_no_run_writes_are_refused(metrics: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="not as a run writes them"):
        evaluate.rescore(from_device(LETTERS, **metrics), KEY, data=FULL)


@pytest.mark.parametrize(
    "metrics",
    [
        {"correct_ids": ["other"], "n": 12},
        {"correct_ids": NAMES, "n": 3},
        {"correct_ids": NAMES, "n": "12"},
        {"correct_ids": NAMES, "n": [12]},
    ],
)
def test_right_answers_that_contradict_the_letters_are_refused(metrics: dict[str, Any]) -> None:
    device = from_device(LETTERS, **metrics)
    with pytest.raises(InvalidInputError, match="not among their letters"):
        evaluate.compare(device, device)
    assert evaluate.compare(device, device, key=KEY)["n"] == 12


def test_a_result_of_a_phone_has_a_line_before_it_is_scored() -> None:
    assert evaluate.summary_line(from_device(LETTERS)) == (
        "Mobile-MMLU: 12 answers, no accuracy (no answer key was given)"
    )
