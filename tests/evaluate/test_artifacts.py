from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import Qwen3ForCausalLM

from mobilekit import evaluate
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.config import MobileMMLUConfig, PerplexityConfig
from mobilekit.models import checkpoint_hash
from mobilekit.runtime.torch import TorchRuntime

PERPLEXITY = PerplexityConfig(max_tokens=150, window=50)
QUESTIONS = MobileMMLUConfig(limit=20)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    from mobilekit import export

    out = tmp_path_factory.mktemp("export") / "bundle"
    export.build(checkpoint, out, targets=["onnx"], precisions=["fp32"], context_length=512)
    return out


def test_a_checkpoint_gives_what_its_model_gives(
    checkpoint: Path, model: Qwen3ForCausalLM, tokenizer: TextTokenizer
) -> None:
    assert evaluate.targets_of(checkpoint) == ["torch"]
    assert evaluate.cannot_run(checkpoint, "torch") is None
    for config in (PERPLEXITY, QUESTIONS):
        result = evaluate.run_on(checkpoint, "torch", config)
        assert result.artifact.id == "torch"
        assert f"sha256:{result.artifact.sha256}" == checkpoint_hash(checkpoint)
        assert result.device["class"].startswith("host-")
        expected = evaluate.run(
            TorchRuntime(model), tokenizer, config, artifact=result.artifact, device={}
        )
        assert result.letters == expected.letters
        for name in ("perplexity", "bits_per_byte", "tokens", "bytes", "accuracy", "n", "dataset"):
            wanted = expected.metrics.get(name)
            wanted = pytest.approx(wanted, rel=1e-5) if isinstance(wanted, float) else wanted
            assert result.metrics.get(name) == wanted


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InvalidInputError, match=r"has no tokenizer\.json"):
        evaluate.run_on(folder, None, PERPLEXITY)


@pytest.mark.slow
def test_an_exported_artifact_gives_what_the_checkpoint_gives(
    bundle: Path, checkpoint: Path
) -> None:
    (name,) = evaluate.targets_of(bundle)
    assert evaluate.targets_of(bundle, "onnx") == [name]
    assert evaluate.cannot_run(bundle, name) is None
    eager = evaluate.run_on(checkpoint, None, PERPLEXITY).metrics
    exported = evaluate.run_on(bundle, name, PERPLEXITY)
    assert exported.artifact.id == name
    assert exported.metrics["logits"] == "step"
    assert exported.metrics["tokens"] == eager["tokens"]
    assert exported.metrics["bytes"] == eager["bytes"]
    assert exported.metrics["perplexity"] == pytest.approx(eager["perplexity"], rel=1e-4)
    letters = [evaluate.run_on(source, None, QUESTIONS).letters for source in (checkpoint, bundle)]
    assert letters[0] == letters[1]


@pytest.mark.slow
def test_a_changed_tokenizer_or_an_unknown_artifact_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    with pytest.raises(UsageError, match="no artifact 'onyx'"):
        evaluate.run_on(folder, "onyx", PERPLEXITY)
    file = folder / "tokenizer" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"<|end|>", b"<|fin|>"))
    with pytest.raises(InvalidInputError, match=r"tokenizer\.json has changed"):
        evaluate.run_on(folder, None, PERPLEXITY)


@pytest.mark.slow
def test_core_ml_is_left_out_where_it_cannot_predict(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["artifacts"][0]["format"] = "mlpackage"
    file.write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setattr(sys, "platform", "linux")
    assert evaluate.cannot_run(folder) == "Core ML predicts on macOS only"


def test_settings_by_name() -> None:
    assert evaluate.make_config("perplexity", {"max_tokens": 9}).suite == "perplexity"
    with pytest.raises(UsageError, match="did you mean 'mobile_mmlu'"):
        evaluate.make_config("mobile_mlu", {})
    with pytest.raises(InvalidInputError, match="did you mean 'max_tokens'"):
        evaluate.make_config("perplexity", {"max_token": 9})


def test_a_result_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    line = evaluate.summary_line(evaluate.run_on(checkpoint, None, PERPLEXITY))
    assert line.startswith("perplexity ")
    assert line.endswith(" bits a byte, 150 tokens")
    line = evaluate.summary_line(evaluate.run_on(checkpoint, None, QUESTIONS))
    assert line.startswith("mobilekit-sample-80 ")
    assert line.endswith("n 20, chance 25%)")
    own = tmp_path / "law.csv"
    own.write_text("question_id,Question,A,B,C,D\n1,?,a,b,c,d\n", encoding="utf-8")
    result = evaluate.run_on(checkpoint, None, MobileMMLUConfig(data=str(own)))
    assert evaluate.summary_line(result) == (
        "local:law.csv: 1 answers, no accuracy (no answer key was given)"
    )


def test_a_setting_goes_to_the_suites_that_have_it() -> None:
    questions, text = evaluate.make_configs(
        ["mobile_mmlu", "perplexity"], {"max_tokens": 512, "seed": 3}
    )
    assert isinstance(questions, MobileMMLUConfig)
    assert isinstance(text, PerplexityConfig)
    assert (text.max_tokens, questions.seed) == (512, 3)


def test_a_setting_that_no_suite_has_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="'max_token'; did you mean 'max_tokens'"):
        evaluate.make_configs(["mobile_mmlu", "perplexity"], {"max_token": 512})
    with pytest.raises(UsageError, match="unknown suite 'perplexty'"):
        evaluate.make_configs(["perplexty", "perplexity"], {"max_tokens": 512})
    with pytest.raises(InvalidInputError, match="unknown key 'seed'"):
        evaluate.make_configs(["perplexity"], {"seed": 3})
