"""A run that never happened: every value in it is invented, in the forms of the schema."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilekit.core.files import atomic_write_json
from mobilekit.metrics.intervals import wilson_interval
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.plan import Plan
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

LAYERS, EXPERTS, PRUNED = 4, 16, 4
CATEGORIES = {
    "Academic & Learning": 15,
    "Business & Career": 11,
    "Culture & Society": 9,
    "Environment": 2,
    "Health & Safety": 7,
    "Home & Family": 10,
    "Lifestyle & Personal": 17,
    "Miscellaneous": 2,
    "Technology & Digital": 7,
}
# artifact id -> (format, backend, file, bytes, decode ms, peak bytes, perplexity, right answers)
ARTIFACTS: dict[str, tuple[str, str, str, int, float, int | None, float, int]] = {
    "executorch-xnnpack-fp32": (
        "pte",
        "xnnpack",
        "model.pte",
        12_930_412,
        0.62,
        61_200_000,
        24.3,
        27,
    ),
    "executorch-xnnpack-int8": (
        "pte",
        "xnnpack",
        "model.pte",
        3_402_118,
        0.31,
        48_900_000,
        24.6,
        28,
    ),
    "onnx-cpu-fp32": ("onnx", "cpu", "model.onnx", 13_015_880, 0.55, 88_100_000, 24.3, 27),
    "onnx-cpu-int8": ("onnx", "cpu", "model.onnx", 3_610_004, 0.47, 79_500_000, 24.9, 26),
    "coreml-cpu-fp32": ("mlpackage", "coreml", "m.mlpackage/w.bin", 12_990_000, 0, None, 0, 0),
    "coreml-cpu-int8": ("mlpackage", "coreml", "m.mlpackage/w.bin", 3_390_500, 0, None, 0, 0),
}
_SPECS = {"inputs": [], "outputs": []}


def record() -> dict[str, Any]:
    """An invented ``run.json``."""

    def model(hash_: str, parameters: int, path: str) -> dict[str, Any]:
        return {
            "hash": f"sha256:{hash_ * 16}",
            "class": "Qwen3MoeForCausalLM",
            "parameters": parameters,
            "active_parameters": 1_066_240,
            "weight_bytes": parameters * 2,
            "path": path,
        }

    steps = [
        ("compress", "aimer, sparsity 0.25: 16 → 12 experts in 4 layers", 0.8, False, "checkpoint"),
        ("recover", "adamw, 200 000 tokens, next_token", 71.2, False, "checkpoint"),
        ("export", "executorch, onnx, coreml × fp32, int8", 132.9, True, "bundle"),
        ("verify", "4 artifacts run, 2 evaluated without their runtime", 21.4, False, "bundle"),
        ("profile", "host, pp128 and tg64, 5 repetitions", 48.0, False, "results"),
        ("evaluate", "perplexity and mobilekit-sample-80 on 6 models", 65.5, False, "results"),
    ]
    keys = ("name", "detail", "seconds", "cached", "output")
    return {
        "schema": "mobilekit.run/1",
        "mobilekit": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "command": "mobilekit run recipe.yaml --out runs/invented",
        "recipe": {
            "version": 1,
            "seed": 0,
            "model": {"source": "embedded", "dtype": "auto", "device": "auto"},
            "compress": [{"method": "aimer", "variant": "aimer", "sparsity": 0.25}],
            "recover": {"objective": ["next_token"], "tokens": 200_000, "optimizer": "adamw"},
            "export": {"targets": ["executorch", "onnx", "coreml"], "precisions": ["fp32", "int8"]},
            "budget": None,
        },
        "versions": {"torch": "2.13.0", "executorch": "1.5.1", "onnxruntime": "1.32.0"},
        "host": {"system": "Linux", "machine": "x86_64", "cpu": "Invented CPU", "cores": 2},
        "steps": [
            {**dict(zip(keys, step, strict=True)), "peak_rss_bytes": 910_000_000} for step in steps
        ],
        "models": {
            "before": model("0a1b", 4_212_096, "embedded"),
            "after": model("4c5d", 3_230_080, "checkpoint"),
        },
        "recovery": {
            "tokens": 200_000,
            "seconds": 71.2,
            "loss_before": 3.41,
            "loss_after": 3.19,
            "curve": [[step, 3.19 + 0.3 * 0.97**step] for step in range(0, 100, 2)],
        },
    }


def plan() -> dict[str, Any]:
    """An invented AIMER plan."""
    rng = random.Random(7)
    layers, edits = [], []
    for layer in range(LAYERS):
        scores = [round(0.70 + 0.12 * rng.random(), 6) for _ in range(EXPERTS)]
        gone = sorted(sorted(range(EXPERTS), key=lambda e: -scores[e])[:PRUNED])
        kept = [e for e in range(EXPERTS) if e not in gone]
        layers.append({"layer": layer, "scores": scores, "kept": kept, "pruned": gone})
        edits.append({"op": "keep", "unit": "expert", "layer": layer, "indices": kept})
    return {
        "schema": "mobilekit.plan/1",
        "method": "aimer",
        "method_version": 1,
        "config": {"variant": "aimer", "sparsity": 0.25},
        "seed": 0,
        "parent": "sha256:" + "0a1b" * 16,
        "edits": edits,
        "tensors": None,
        "scores": {
            "layers": layers,
            "criterion": "norm ratio of weights",
            "larger_is": "removable",
        },
        "summary": {
            "parameters_before": 4_212_096,
            "parameters_after": 3_230_080,
            "routed_experts_before": LAYERS * EXPERTS,
            "routed_experts_after": LAYERS * (EXPERTS - PRUNED),
            "seconds": 0.42,
        },
        "warnings": [],
    }


def manifest() -> dict[str, Any]:
    """An invented manifest of six artifacts."""
    artifacts = []
    for name, (form, backend, file, size, *_) in ARTIFACTS.items():
        precision = name.rpartition("-")[2]
        dtypes = {"float32": size - 90_000}
        if precision == "int8":
            dtypes = {"int8": size - 190_000, "float32": 61_000, "scales": 96_000}
        artifacts.append(
            {
                "id": name,
                "format": form,
                "backend": backend,
                "precision": precision,
                "runtime": {"name": backend, "min": "1.0"},
                "files": [{"path": f"{name}/{file}", "bytes": size, "sha256": "ab" * 32}],
                "programs": {"forward": _SPECS},
                "weights": {"bytes_by_dtype": dtypes, "share_at_precision": 0.982},
                "parity": _parity(form, precision),
            }
        )
    return {
        "schema": "mobilekit.bundle/1",
        "task": "causal-lm",
        "interface": "token-logits/1",
        "model": {"class": "Qwen3MoeForCausalLM", "context_length": 512, "vocab_size": 2048},
        "artifacts": artifacts,
        "tokenizer": [{"path": "tokenizer.json", "bytes": 91_004, "sha256": "cd" * 32}],
        "licences": ["PSF-2.0"],
        "provenance": {"checkpoint": "sha256:" + "4c5d" * 16},
    }


def _parity(form: str, precision: str) -> dict[str, Any]:
    tolerance = {"max_abs": 1e-3, "kl": 1e-4, "kl_p90": 1e-4, "top1": 0.99}
    if form == "mlpackage" and precision == "int8":
        reason = "the evaluator lacks the operator 'invented_op'"
        return {"executed": False, "reason": reason, "tolerance": tolerance}
    error = 2.4e-6 if precision == "fp32" else 0.213
    same = {
        "reference": f"eager-{precision}",
        "max_abs": 3.1e-6,
        "kl": 4e-12,
        "kl_p90": 9e-12,
        "top1": 1.0,
    }
    return {
        "executed": True,
        "evaluator": "mil-numpy" if form == "mlpackage" else {"pte": "executorch"}.get(form, form),
        "against_fp32": {
            "reference": "eager-fp32",
            "max_abs": error,
            "kl": 2e-4,
            "kl_p90": 5e-4,
            "top1": 0.994,
        },
        "against_same": same,
        "greedy": {"prompts": 8, "new_tokens": 64, "equal": 7, "excused": 1, "different": 0},
        "tolerance": tolerance,
        "passed": True,
    }


def results() -> list[dict[str, Any]]:
    """Invented results of the model before and of every artifact that a Linux host runs."""
    every: dict[str, tuple[int, float, int, float, int]] = {
        "before": (8_424_192, 4.9, 512_000_000, 23.8, 29)
    }
    found = []
    for name, (_, _, _, size, ms, peak, ppl, right) in ARTIFACTS.items():
        if peak is None:
            skipped = {"skipped": "Core ML runs on macOS and iOS only"}
            load = {"id": "pp128+tg64", "prompt_tokens": 128, "new_tokens": 64, "repetitions": 0}
            found.append({**_base(name, size, "profile", load), "metrics": skipped})
        else:
            every[name] = (size, ms, peak, ppl, right)
    for name, (size, ms, peak, ppl, right) in every.items():
        found += [
            _profile(name, size, ms, peak),
            _evaluation(name, size, "perplexity", {"perplexity": ppl, "bits_per_byte": ppl / 12}),
            _evaluation(name, size, "mobilekit-sample-80", _answers(right)),
        ]
    return found


def _base(name: str, size: int, kind: str, workload: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": "mobilekit.result/1",
        "kind": kind,
        "device": {"class": "host-x86_64", "cpu": "Invented CPU"},
        "runtime": {"name": "torch" if name == "before" else name.partition("-")[0]},
        "artifact": {"id": name, "sha256": "ab" * 32, "bytes": size},
        "workload": workload,
        "created": "2026-01-02T03:04:05Z",
    }


def _profile(name: str, size: int, ms: float, peak: int) -> dict[str, Any]:
    rng = random.Random(name)
    samples: list[dict[str, Any]] = [
        {"phase": "load", "ns": int(38e6 * (1 + ms))},
        {"phase": "first", "ns": int(9e6 * (1 + ms))},
    ]
    for repetition in range(5):
        prefill = int(20e6 * ms * rng.uniform(0.95, 1.1))
        samples.append({"phase": "prefill", "repetition": repetition, "tokens": 128, "ns": prefill})
        for token in range(64):
            ns = int(1e6 * ms * (rng.lognormvariate(0, 0.08) + 0.001 * token))
            samples.append({"phase": "decode", "repetition": repetition, "token": token, "ns": ns})
    workload = {"id": "pp128+tg64", "prompt_tokens": 128, "new_tokens": 64, "repetitions": 5}
    return {
        **_base(name, size, "profile", {**workload, "warmup": 3}),
        "samples": samples,
        "metrics": {},
        "memory": {"counter": "VmHWM", "peak_bytes": peak, "baseline_bytes": int(peak * 0.62)},
        "energy": {"status": "unavailable", "reason": "no powercap interface"},
    }


def _evaluation(name: str, size: int, suite: str, metrics: dict[str, Any]) -> dict[str, Any]:
    letters = {f"q{i:02d}": "ABCD"[i % 4] for i in range(80)} if "accuracy" in metrics else {}
    base = _base(name, size, "evaluate", {"id": suite})
    return {**base, "metrics": metrics, "letters": letters}


def _answers(right: int) -> dict[str, Any]:
    rng = random.Random(right)
    left, categories = right, {}
    for index, (category, n) in enumerate(CATEGORIES.items()):
        last = index == len(CATEGORIES) - 1
        good = min(n, left) if last else min(n, left, round(n * rng.uniform(0.15, 0.55)))
        left -= good
        categories[category] = _share(good, n)
    ids = rng.sample([f"q{i:02d}" for i in range(80)], right)
    return {**_share(right, 80), "categories": categories, "correct_ids": sorted(ids)}


def _share(right: int, n: int) -> dict[str, Any]:
    interval = list(wilson_interval(right, n))
    return {"accuracy": right / n, "interval": interval, "n": n, "correct": right}


def write_invented_run(root: Path) -> Path:
    """Write the whole invented run directory."""
    atomic_write_json(root / "run.json", RunRecord.parse(record(), "run").to_json())
    atomic_write_json(root / "checkpoint/plan.json", [Plan.parse(plan(), "plan").to_json()])
    atomic_write_json(root / "bundle/manifest.json", Manifest.parse(manifest(), "m").to_json())
    for index, result in enumerate(results()):
        document = Result.parse(result, "result").to_json()
        atomic_write_json(root / f"results/{index:02d}.json", document)
    return root


@pytest.fixture
def invented_run(tmp_path: Path) -> Path:
    """A complete run directory with invented values."""
    return write_invented_run(tmp_path / "run")


@pytest.fixture
def documents() -> Callable[[], tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[Any]]]:
    """Return fresh copies of the invented record, plan, manifest and results."""
    return lambda: (record(), plan(), manifest(), results())
