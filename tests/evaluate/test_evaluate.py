from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from mobilekit import evaluate
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.config import MobileMMLUConfig, PerplexityConfig, SuiteConfig
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.runtime.torch import TorchRuntime
from mobilekit.schema.result import ArtifactRef, Result

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
ARTIFACT = ArtifactRef(id="tiny", sha256="0" * 64)
DEVICE = {"class": "host-x86_64"}


def test_perplexity_as_a_result(runtime: TorchRuntime, tokenizer: TextTokenizer) -> None:
    config = PerplexityConfig(max_tokens=300, window=64)
    result = evaluate.run(runtime, tokenizer, config, artifact=ARTIFACT, device=DEVICE)
    assert Result.parse(json.loads(json.dumps(result.to_json())), "result") == result
    assert result.kind == "evaluate"
    assert result.workload.id == "perplexity"
    assert result.runtime == {"name": "torch", "version": runtime.version}
    assert result.metrics["tokens"] == 300
    assert result.metrics["dataset"]["name"] == "cpython-heldout"


def test_perplexity_of_a_text_of_ones_own(
    runtime: TorchRuntime, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("my own words", encoding="utf-8")
    config = PerplexityConfig(data=str(tmp_path / "mine.txt"))
    result = evaluate.run(runtime, tokenizer, config, artifact=ARTIFACT, device=DEVICE)
    assert result.metrics["bytes"] == 12
    assert str(tmp_path) not in json.dumps(result.to_json())


def test_the_sample_as_a_result(runtime: TorchRuntime, tokenizer: TextTokenizer) -> None:
    config = MobileMMLUConfig()
    result = evaluate.run(runtime, tokenizer, config, artifact=ARTIFACT, device=DEVICE)
    assert Result.parse(json.loads(json.dumps(result.to_json())), "result") == result
    assert result.workload.id == "mobilekit-sample-80"
    assert result.metrics["chance"] == 0.25
    assert result.metrics["dataset"]["is_mobile_mmlu"] is False
    assert set(result.letters.values()) <= set("ABCD")
    assert [sample.phase for sample in result.samples] == ["question"] * 80
    assert all(sample.ns > 0 for sample in result.samples)
    assert len(result.metrics["categories"]) == 9
    assert len(result.metrics["fields"]) == 80


def test_no_result_holds_question_text(runtime: TorchRuntime, tokenizer: TextTokenizer) -> None:
    config = MobileMMLUConfig(limit=20)
    result = evaluate.run(runtime, tokenizer, config, artifact=ARTIFACT, device=DEVICE)
    stored = json.dumps(result.to_json(), ensure_ascii=False)
    assert len(result.letters) == 20
    for question in load_dataset("sample").questions:
        for text in (question.text, *question.options):
            assert len(text) < 12 or text not in stored


def test_a_limit_with_another_seed_asks_other_questions(
    runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    asked = []
    for seed in (0, 0, 1):
        config = MobileMMLUConfig(limit=8, seed=seed)
        result = evaluate.run(runtime, tokenizer, config, artifact=ARTIFACT, device=DEVICE)
        asked.append(set(result.letters))
    assert asked[0] == asked[1] != asked[2]


def test_the_tokenizer_of_transformers_gives_the_same_letters(
    runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    from transformers import PreTrainedTokenizerFast

    inner = tokenizer._inner
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    ours, theirs, raw = (
        evaluate.mobile_mmlu(runtime, one, VECTORS / "fixture_full").letters
        for one in (tokenizer, fast, inner)
    )
    assert ours == theirs == raw


def test_an_unknown_scorer_is_refused(runtime: TorchRuntime, tokenizer: TextTokenizer) -> None:
    with pytest.raises(UsageError, match="unknown scorer 'loglick'; did you mean 'loglik'"):
        evaluate.mobile_mmlu(runtime, tokenizer, scorer="loglick")


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'perplexity'"):
        evaluate.SUITES.get("perplexty")
    for name in evaluate.SUITES.names():
        assert evaluate.SUITES.get(name).size(settings_of(name)) > 0


def settings_of(name: str) -> Any:
    return TypeAdapter(SuiteConfig).validate_python({"suite": name})


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'limit'"):
        MobileMMLUConfig.parse({"suite": "mobile_mmlu", "limt": 3}, "recipe")
    with pytest.raises(InvalidInputError, match="'scorer' is 'letter'"):
        MobileMMLUConfig.parse({"suite": "mobile_mmlu", "scorer": "letter"}, "recipe")
    with pytest.raises(InvalidInputError, match="max_tokens"):
        PerplexityConfig.parse({"suite": "perplexity", "max_tokens": 0}, "recipe")


def test_settings_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, mobilekit.evaluate, mobilekit.evaluate.config\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_evaluating_an_artifact_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "import mobilekit.data.tokenizer\n"
        "import mobilekit.evaluate.suites.perplexity\n"
        "import mobilekit.evaluate.suites.mobile_mmlu.run\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
