"""The runner on tiny real checkpoints: composed, resumed, interrupted, killed."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import mobilekit as mk
from mobilekit.core.errors import MobileKitError
from mobilekit.schema.run import RunRecord

IDS = torch.tensor([[1, 2, 3, 4, 5]])


def recipe(source: Path, **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "model": {"source": str(source)},
        "compress": [{"method": "aimer", "sparsity": 0.25}],
        "export": None,
        "evaluate": [{"suite": "perplexity", "max_tokens": 64, "window": 32}],
    } | changes


def cached(record: RunRecord) -> dict[str, bool]:
    return {f"{step.name} {step.output}": step.cached for step in record.steps}


def test_a_run_makes_what_it_says(moe_checkpoint: Path, tmp_path: Path) -> None:
    record = mk.run(recipe(moe_checkpoint), tmp_path / "run")
    root = tmp_path / "run"
    assert [step.name for step in record.steps] == ["compress", "evaluate", "evaluate"]
    assert (root / "report.html").is_file()
    assert (root / "model_card.md").is_file()
    names = sorted(p.name for p in (root / "results").iterdir())
    assert names == ["evaluate-perplexity-0-after.json", "evaluate-perplexity-0-before.json"]
    assert record.models is not None
    assert record.models.after is not None
    assert record.models.before.hash != record.models.after.hash
    stored = json.loads((root / "run.json").read_text())
    assert stored["models"]["after"]["parameters"] == record.models.after.parameters
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == [".state"]


def test_the_checkpoint_reloads_here_and_in_plain_transformers(
    moe_checkpoint: Path, tmp_path: Path
) -> None:
    mk.run(recipe(moe_checkpoint, evaluate=[]), tmp_path / "run")
    ours = mk.load(tmp_path / "run" / "checkpoint")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")
    plain.set_experts_implementation("eager")
    assert plain.config.num_experts == 6
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, plain(IDS).logits)


def test_resume_skips_what_is_done_and_redoes_what_changed(
    moe_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    mk.run(recipe(moe_checkpoint), out)
    assert all(cached(mk.run(recipe(moe_checkpoint), out, resume=True)).values())
    changed = recipe(moe_checkpoint, compress=[{"method": "aimer", "sparsity": 0.5}])
    again = cached(mk.run(changed, out, resume=True))
    assert again == {
        "compress checkpoint": False,
        "evaluate results/evaluate-perplexity-0-before.json": True,
        "evaluate results/evaluate-perplexity-0-after.json": False,
    }


def test_a_changed_text_is_scored_anew(moe_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    config = {"suite": "perplexity", "data": str(text), "max_tokens": 64, "window": 32}
    steps = recipe(moe_checkpoint, compress=[], evaluate=[config])
    text.write_text("one text of a few words, again and again and again")
    mk.run(steps, tmp_path / "run")
    text.write_text("quite another text of a few words, never seen before")
    assert not any(cached(mk.run(steps, tmp_path / "run", resume=True)).values())


def test_a_changed_calibration_text_is_looked_at_anew(moe_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    step = {"method": "aimer", "variant": "ean", "sparsity": 0.25, "calibration_length": 16}
    step |= {"calibration_data": str(text), "calibration_tokens": 160}
    steps = recipe(moe_checkpoint, compress=[step], evaluate=[])
    text.write_text("one text of a few words, again and again and again")
    mk.run(steps, tmp_path / "run")
    assert all(cached(mk.run(steps, tmp_path / "run", resume=True)).values())
    text.write_text("quite another text of a few words, never seen before")
    assert not any(cached(mk.run(steps, tmp_path / "run", resume=True)).values())
    plan = json.loads((tmp_path / "run" / "checkpoint" / "plan.json").read_text())[0]
    assert plan["scores"]["calibration"]["tokens"] == 160


@pytest.mark.parametrize("name", ["text", "tokenizer"])
def test_what_calibration_lacks_is_found_before_any_work(
    name: str, tiny_qwen3_moe: Any, moe_checkpoint: Path, tmp_path: Path
) -> None:
    step: dict[str, Any] = {"method": "aimer", "variant": "seer"}
    source = moe_checkpoint
    if name == "text":
        step["calibration_data"] = str(tmp_path / "absent.txt")
    else:
        source = mk.save(copy.deepcopy(tiny_qwen3_moe), tmp_path / "bare")
    with pytest.raises(MobileKitError, match="does not exist|has no tokenizer"):
        mk.run(recipe(source, compress=[step], evaluate=[]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_output_is_made_anew(moe_checkpoint: Path, tmp_path: Path) -> None:
    steps = recipe(moe_checkpoint)
    first = mk.run(steps, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoint" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    again = mk.run(steps, tmp_path / "run", resume=True)
    assert not cached(again)["compress checkpoint"]
    assert again.models == first.models


def test_without_resume_an_existing_run_is_refused(moe_checkpoint: Path, tmp_path: Path) -> None:
    mk.run(recipe(moe_checkpoint, evaluate=[]), tmp_path / "run")
    with pytest.raises(MobileKitError, match="not empty"):
        mk.run(recipe(moe_checkpoint, evaluate=[]), tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"source": "no/such/dir"}},
        {"model": {"source": "embedded", "device": "tpu"}},
        {"compress": [{"method": "aimer", "sparsity": 2}]},
        {"compress": [{"method": "nothing"}]},
        {"export": {"targets": ["tflite"]}},
        {"export": {"targets": []}},
        {"evaluate": [{"suite": "perplexity", "data": "absent.txt"}]},
        {"evaluate": [{"suite": "perplexity", "window": 100}], "export": {"context_length": 32}},
        {"compress": [], "model": {"source": "embedded", "dtype": "float16"}},
        {"recover": {"data": "absent.npy"}},
        {"recover": {"data": ["pyproject.toml"], "heldout": "absent.txt"}},
        {"recover": {"optimizer": "sgd"}},
        {"budget": {"file_mb": 1}},
        {"budget": {"peak_memory_mb": 1}, "export": {"targets": ["onnx"]}},
    ],
)
def test_a_recipe_that_cannot_work_creates_nothing(
    change: dict[str, Any], moe_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(MobileKitError):
        mk.run(recipe(moe_checkpoint, **change), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_cannot_lose_experts(dense_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MobileKitError, match="no experts"):
        mk.run(recipe(dense_checkpoint), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_two_methods_in_one_recipe_compose(moe_checkpoint: Path, tmp_path: Path) -> None:
    steps = [{"method": "aimer", "sparsity": 0.25}, {"method": "aimer", "sparsity": 0.5}]
    mk.run(recipe(moe_checkpoint, compress=steps, evaluate=[]), tmp_path / "run")
    plans = json.loads((tmp_path / "run" / "checkpoint" / "plan.json").read_text())
    assert [len(plan["edits"][0]["indices"]) for plan in plans] == [6, 3]
    assert mk.load(tmp_path / "run" / "checkpoint").config.num_experts == 3


def test_recovery_is_a_step_of_its_own(moe_checkpoint: Path, tmp_path: Path) -> None:
    training = {"tokens": 256, "batch_size": 2, "sequence_length": 32, "learning_rate": 1e-3}
    record = mk.run(recipe(moe_checkpoint, recover=training, evaluate=[]), tmp_path / "run")
    assert [step.name for step in record.steps] == ["compress", "recover"]
    assert record.recovery is not None
    assert record.recovery.tokens == 256
    trained, pruned = (mk.load(tmp_path / "run" / n) for n in ("checkpoint", "compressed"))
    with torch.no_grad():
        assert not torch.equal(trained(IDS).logits, pruned(IDS).logits)
    assert not list((tmp_path / "run" / ".state").glob("recover.safetensors"))


def test_leaving_recovery_out_again_gives_the_pruned_checkpoint(
    moe_checkpoint: Path, tmp_path: Path
) -> None:
    training = {"tokens": 64, "batch_size": 2, "sequence_length": 32, "learning_rate": 1e-3}
    out = tmp_path / "run"
    mk.run(recipe(moe_checkpoint, recover=training), out)
    plain = mk.run(recipe(moe_checkpoint, evaluate=[]), out, resume=True)
    fresh = mk.run(recipe(moe_checkpoint, evaluate=[]), tmp_path / "fresh")
    assert plain.recovery is None
    assert plain.models is not None
    assert fresh.models is not None
    assert plain.models.after == fresh.models.after
    assert list((out / "results").iterdir()) == []  # figures of another recipe do not stay


def test_the_recipes_seed_reaches_recovery(moe_checkpoint: Path, tmp_path: Path) -> None:
    training = {"tokens": 64, "batch_size": 2, "sequence_length": 32}
    curves = []
    for seed in (0, 1):
        changes = {"seed": seed, "recover": training, "evaluate": []}
        record = mk.run(recipe(moe_checkpoint, **changes), tmp_path / str(seed))
        assert record.recovery is not None
        curves.append(record.recovery.curve)
    assert curves[0] != curves[1]


def test_recovery_reads_the_users_files_and_anew_where_they_changed(
    moe_checkpoint: Path, tmp_path: Path
) -> None:
    text, tokens = tmp_path / "text.txt", tmp_path / "tokens.npy"
    text.write_text("one text of a few words, again and again and again " * 9)
    np.save(tokens, np.arange(200, dtype=np.uint16))
    training = {"tokens": 64, "batch_size": 2, "sequence_length": 32, "learning_rate": 1e-3}
    training |= {"data": [str(text)], "heldout": str(tokens)}
    steps = recipe(moe_checkpoint, recover=training, evaluate=[])
    first = mk.run(steps, tmp_path / "run")
    assert first.recovery is not None
    assert all(cached(mk.run(steps, tmp_path / "run", resume=True)).values())
    np.save(tokens, np.arange(200, dtype=np.uint16)[::-1].copy())
    again = mk.run(steps, tmp_path / "run", resume=True)
    assert cached(again) == {"compress compressed": True, "recover checkpoint": False}
    assert again.recovery is not None
    assert again.recovery.loss_before != first.recovery.loss_before
    assert again.recovery.curve == first.recovery.curve


def test_the_record_is_of_the_weights_that_were_kept(moe_checkpoint: Path, tmp_path: Path) -> None:
    training = {"tokens": 64, "batch_size": 2, "sequence_length": 32, "learning_rate": 9.0}
    record = mk.run(recipe(moe_checkpoint, recover=training, evaluate=[]), tmp_path / "run")
    assert record.recovery is not None
    assert record.recovery.loss_after == record.recovery.loss_before
    assert record.steps[1].detail.endswith(": the weights stay as they were")
    trained, pruned = (mk.load(tmp_path / "run" / n) for n in ("checkpoint", "compressed"))
    with torch.no_grad():
        assert torch.equal(trained(IDS).logits, pruned(IDS).logits)


def interruptible() -> None:
    """Undo what a shell does to its background jobs, which ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(path: Path, out: Path, *extra: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mobilekit", "run", str(path), "--out", str(out), *extra]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
    )


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a step has begun or ended, by what it leaves on disk."""
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "landmark", [".state/lock", ".state/compress.json", "results/evaluate-perplexity-0-before.json"]
)
def test_a_killed_run_resumes_to_the_same_logits(
    landmark: str, moe_checkpoint: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(json.dumps(recipe(moe_checkpoint)))
    process = start(path, out)
    wait_for(out / landmark, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = start(path, out, "--resume")
    _, errors = done.communicate()
    assert done.returncode == 0, errors.decode()
    whole = mk.run(recipe(moe_checkpoint), tmp_path / "whole")
    assert whole.models is not None
    stored = json.loads((out / "run.json").read_text())
    assert stored["models"]["after"]["hash"] == whole.models.after.hash  # type: ignore[union-attr]
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == [".state"]


@pytest.mark.slow
def test_a_run_killed_while_exporting_resumes_to_the_same_artifact(
    moe_checkpoint: Path, tmp_path: Path
) -> None:
    wanted = {"targets": ["onnx"], "precisions": ["fp32"], "context_length": 96}
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(json.dumps(recipe(moe_checkpoint, export=wanted, evaluate=[])))
    process = start(path, out)
    deadline = time.monotonic() + 120
    while not list(out.glob(".bundle.*/.work/*.job.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (out / "bundle").exists()
    done = start(path, out, "--resume")
    _, errors = done.communicate()
    assert done.returncode == 0, errors.decode()
    mk.run(recipe(moe_checkpoint, export=wanted, evaluate=[]), tmp_path / "whole")
    ids = np.arange(20)
    first, second = (mk.runtime.open(tmp_path / n / "bundle", "onnx") for n in ("run", "whole"))
    assert np.array_equal(first.forward(ids, 0), second.forward(ids, 0))
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == [".state"]


@pytest.mark.slow
def test_ctrl_c_is_two_lines_and_exit_code_130(moe_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(json.dumps(recipe(moe_checkpoint)))
    process = start(path, out)
    wait_for(out / ".state/compress.json", process)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert errors.decode().strip().splitlines()[-2:] == [
        "error: interrupted",
        "Finished steps are kept: go on with --resume.",
    ]
