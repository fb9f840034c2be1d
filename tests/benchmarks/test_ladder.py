"""The invented questions of the compression ladder, and what is said of its steps."""

from __future__ import annotations

import importlib
import json
import random
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.metrics.intervals import mcnemar_exact

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what imports a script as it is run: from its own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def facts_of(module: Any) -> ModuleType:
    """The module of the facts."""
    found: ModuleType = module("ladder_facts")
    return found


def test_questions_are_read_by_the_suite_and_the_key_is_the_truth(
    facts_of: ModuleType, tmp_path: Path
) -> None:
    facts = facts_of.invented_facts(3)
    assert facts == facts_of.invented_facts(3) != facts_of.invented_facts(4)
    questions, key = facts_of.write_questions(tmp_path, facts, 3)
    found = load_dataset(questions, key)
    assert len(found.questions) == len(facts) >= 2000
    assert not found.is_mobile_mmlu
    truth = {fact.question: fact.value for fact in facts}
    for question in found.questions:
        assert found.key is not None
        right = question.options["ABCD".index(found.key[question.id])]
        assert right == truth[question.text]
        assert list(question.options) == sorted(question.options)


def test_the_options_alone_give_nothing_away(facts_of: ModuleType) -> None:
    rng = random.Random(0)
    facts = facts_of.invented_facts(0)
    letters = Counter(facts_of.ask(rng.choice(facts), rng)[1] for _ in range(20_000))
    assert max(letters.values()) / 20_000 == pytest.approx(0.25, abs=0.015)


def test_who_knows_all_and_reads_no_option_is_as_good_as_said(facts_of: ModuleType) -> None:
    rng = random.Random(0)
    facts = facts_of.invented_facts(0)
    by_value: dict[str, Counter[str]] = {}
    for _ in range(60_000):
        fact = rng.choice(facts)
        by_value.setdefault(fact.value, Counter())[facts_of.ask(fact, rng)[1]] += 1
    best = sum(max(letters.values()) for letters in by_value.values()) / 60_000
    assert best == pytest.approx(facts_of.blind_share(), abs=0.01)


def _trained(module: Any, folder: Path, **recipe: Any) -> dict[str, bytes]:
    """Teach a few facts for a few steps; return the files of the checkpoint."""
    model = module("ladder_model")
    few = module("ladder_facts").invented_facts(0)[:64]
    settings = {"look_every": 2, "fresh": 8, "final_steps": 3, "rows": 4, "packs": 2, **recipe}
    folder.mkdir(exist_ok=True)
    model.train(folder / "checkpoint", folder, few, 0, model.Recipe(**settings))
    return {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}


def _stages(folder: Path) -> dict[str, Any]:
    stages: dict[str, Any] = json.loads((folder / "stages.json").read_text())["stages"]
    return stages


def test_a_stage_lasts_until_its_goal_is_met_or_its_steps_are_used_up(
    module: Any, tmp_path: Path
) -> None:
    _trained(module, tmp_path / "never", recalled=1.0, answered=1.0, most_steps=4)
    assert [stage["steps"] for stage in _stages(tmp_path / "never").values()] == [4, 8]
    assert all(stage["right"] < 1 for stage in _stages(tmp_path / "never").values())
    _trained(module, tmp_path / "at-once", recalled=0.0, answered=0.0, most_steps=4)
    assert [stage["steps"] for stage in _stages(tmp_path / "at-once").values()] == [0, 0]


def test_an_interrupted_course_ends_in_the_same_checkpoint(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"recalled": 1.0, "answered": 1.0, "most_steps": 4}
    whole = _trained(module, tmp_path / "whole", **recipe)
    model = module("ladder_model")
    loss, calls = model._loss, Counter[str]()

    def stop_at_times(*given: Any) -> Any:
        calls["loss"] += 1
        if calls["loss"] in (3, 8, 13):  # in each of the stages
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(model, "_loss", stop_at_times)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            _trained(module, tmp_path / "parts", **recipe)
    assert _trained(module, tmp_path / "parts", **recipe) == whole
    assert _stages(tmp_path / "parts") == _stages(tmp_path / "whole")


def _variant(sparsity: float, precision: str, right: range, seed: int = 0) -> dict[str, Any]:
    return {
        "seed": seed,
        "sparsity": sparsity,
        "experts": round(16 * (1 - sparsity)),
        "precision": precision,
        "accuracy": len(right) / 100,
        "interval": [len(right) / 100 - 0.05, len(right) / 100 + 0.05],
        "n": 100,
        "correct_ids": [str(i) for i in right],
        "bytes": 1_000_000,
        "prefill_ms": {"p50": 1.5},
        "decode_ms": {"p50": 0.5},
        "memory": {"peak_bytes": 3_000_000, "baseline_bytes": 1_000_000},
        "busy": [{"cpu_share": 0.5, "resolution": 0.02}, None],
    }


def test_every_step_of_the_ladder_is_tested_once(module: Any) -> None:
    variants = [
        _variant(0.0, "fp32", range(90)),
        _variant(0.5, "fp32", range(60)),
        _variant(0.0, "int8", range(89)),
        _variant(0.5, "int8", range(10, 95)),
    ]
    found = module("ladder_report").summary(variants)
    assert (found["falls"], found["rises"]) == (3, 1)
    assert found["rises_beyond_chance"] == 1  # int8 at half the experts beats fp32 there
    steps = {
        (s["from"]["precision"], s["to"]["precision"], s["change"] > 0) for s in found["steps"]
    }
    assert ("fp32", "int8", True) in steps
    fall = next(s for s in found["steps"] if s["from"]["precision"] == s["to"]["precision"])
    assert fall["p"] == mcnemar_exact(30, 0)
    assert found["spearman"] == {"seed 0, fp32": -1.0, "seed 0, int8": -1.0}


def test_table_and_picture_hold_every_variant(module: Any) -> None:
    variants = [
        _variant(0.0, "fp32", range(90)),
        _variant(0.5, "fp32", range(60)),
        _variant(0.0, "int8", range(80)),
        _variant(0.5, "int8", range(40)),
    ]
    found = {
        "seeds": [0],
        "threads": 1,
        "prompt_tokens": 44,
        "blind_share": 0.66,
        "variants": variants,
        "summary": module("ladder_report").summary(variants),
    }
    table = module("ladder_report").markdown(found)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert len({line.count("|") for line in rows}) == 1
    assert "| 8 of 16 | fp32 | 1.00 | 60.0% (55.0% to 65.0%) | 1.5 | 0.5 | 2.0 |" in table
    assert "fell on 4" in table
    assert "other work used 50% of the CPUs in the median run" in table
    picture = ElementTree.fromstring(module("ladder_figure").figure(found))
    marks = [n for n in picture.iter() if "mark" in n.attrib.get("class", "").split()]
    assert len(marks) == 2 * 4 + 3  # two charts, and the key
    assert "not Mobile-MMLU" in "".join(picture.itertext())
