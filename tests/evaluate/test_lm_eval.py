"""Our scorers against lm-eval's hf backend, on the task files that we write for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from mobilekit import evaluate
from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import load_tokenizer
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.models.inspect import embedded_path
from mobilekit.runtime.torch import TorchRuntime

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
FULL, KEY = str(VECTORS / "fixture_full"), str(VECTORS / "fixture_key.csv")


def config(**settings: Any) -> evaluate.MobileMMLUConfig:
    return evaluate.MobileMMLUConfig(**settings)


def test_a_group_of_one_task_a_category(tmp_path: Path) -> None:
    out = tmp_path / "task"
    group = evaluate.write_lm_eval_task(config(), out)
    assert group == "mobilekit_sample_80"
    head = yaml.safe_load((out / f"_{group}.yaml").read_text(encoding="utf-8"))
    assert len(head["task"]) == 9
    assert head["aggregate_metric_list"] == [{"metric": "acc", "weight_by_size": True}]
    key = load_dataset("sample").key or {}
    seen = {}
    for name in head["task"]:
        task = yaml.safe_load((out / f"{name}.yaml").read_text(encoding="utf-8"))
        assert task["task"] == name
        assert task["output_type"] == "multiple_choice"
        assert task["doc_to_choice"] == list(LETTERS)
        assert task["num_fewshot"] == 0
        assert [one["metric"] for one in task["metric_list"]] == ["acc"]
        data = Path(task["dataset_kwargs"]["data_files"]["test"])
        assert data == out / f"{name}.jsonl"
        for line in data.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            seen[row["question_id"].removeprefix("id:")] = LETTERS[row["answer"]]
            assert row["prompt"].endswith("\nAnswer:")
    assert seen == key


def test_what_lm_eval_cannot_do_is_refused(tmp_path: Path) -> None:
    partial = tmp_path / "key.csv"
    partial.write_text("question_id,answer\n3869e20b,A\n", encoding="utf-8")
    for settings, message in (
        ({"data": FULL}, "needs an answer key"),
        ({"data": FULL, "key": str(partial)}, "no answer to 11 of 12 questions"),
        ({"scorer": "generate"}, "scorer 'generate'"),
        ({"rotations": 4}, "4 order"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            evaluate.write_lm_eval_task(config(**settings), tmp_path / "task")
    assert not (tmp_path / "task").exists()


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    path = str(embedded_path())
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


def by_lm_eval(
    embedded: tuple[Any, Any], out: Path, group: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return lm-eval's log-probabilities of the four choices by id, and the group's figures."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(out / "cache"))
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_DATASETS_CACHE = str(out / "cache")  # type: ignore[attr-defined]
    model, tokenizer = embedded
    manager = TaskManager(include_path=str(out), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=[group],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )
    values = {
        sample["doc"]["question_id"].removeprefix("id:"): [float(one[0]) for one in resps]
        for samples in found["samples"].values()
        for sample in samples
        for resps in [sample["filtered_resps"]]
    }
    return values, found["groups"][group]


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["loglik", "cloze"])
@pytest.mark.parametrize("data", ["sample", FULL], ids=["sample", "fixture"])
def test_lm_eval_gives_the_same_letters(
    embedded: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scorer: str,
    data: str,
) -> None:
    key = None if data == "sample" else KEY
    group = evaluate.write_lm_eval_task(
        config(data=data, key=key, scorer=scorer), tmp_path / "task"
    )
    theirs, figures = by_lm_eval(embedded, tmp_path / "task", group, monkeypatch)
    runtime, tokenizer = TorchRuntime(embedded[0]), load_tokenizer(embedded_path())
    ours = mobile_mmlu(runtime, tokenizer, data, key=key, scorer=scorer)
    assert theirs.keys() == ours.letters.keys()
    for name, values in theirs.items():
        assert ours.metrics["logprobs"][name] == pytest.approx(values, abs=1e-4)
        assert ours.letters[name] == LETTERS[int(np.argmax(values))]
    if scorer == "loglik":
        assert figures["acc,none"] == pytest.approx(ours.metrics["accuracy"])
    else:
        for metric, one in ours.metrics["cloze"].items():
            assert figures[f"{metric},none"] == pytest.approx(one["accuracy"])
