from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilekit.core.files import sha256_file
from mobilekit.schema.manifest import (
    Artifact,
    FileRecord,
    Manifest,
    ParityRecord,
    ProgramRecord,
    RuntimeRequirement,
    TensorSpec,
    Tolerance,
    WeightRecord,
)

VOCAB, CONTEXT, HIDDEN = 32, 64, 8


@pytest.fixture(scope="session")
def checkpoint(tiny_qwen3: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense Qwen3 as a directory."""
    folder = tmp_path_factory.mktemp("profile") / "checkpoint"
    tiny_qwen3.save_pretrained(folder)
    return folder


def write_onnx(path: Path) -> None:
    """Write the smallest graph with a decoder's interface: embedding times its transpose."""
    onnx = pytest.importorskip("onnx")
    helper, FLOAT, INT64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    table = np.random.default_rng(0).standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    weights = {
        "embedding": table,
        "head": np.ascontiguousarray(table.T),
        "last": np.array([-1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["all"], axis=0),
        helper.make_node("Gather", ["all", "last"], ["hidden"], axis=1),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    inputs = {"input_ids": "S", "attention_mask": "T", "position_ids": "S"}
    values = [helper.make_tensor_value_info(n, INT64, [1, d]) for n, d in inputs.items()]
    outputs = [helper.make_tensor_value_info("logits", FLOAT, [1, 1, VOCAB])]
    for kind in ("key", "value"):
        past, present = f"past_key_values.0.{kind}", f"present.0.{kind}"
        nodes.append(helper.make_node("Identity", [past], [present]))
        values.append(helper.make_tensor_value_info(past, FLOAT, [1, 2, "P", 4]))
        outputs.append(helper.make_tensor_value_info(present, FLOAT, [1, 2, "P", 4]))
    graph = helper.make_graph(
        nodes, "decoder", values, outputs,
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def artifact(root: Path, name: str, path: str, format_: str, runtime: str) -> Artifact:
    """Return the manifest's record of a file that lies in the bundle."""
    file = root / path
    record = FileRecord(path=path, bytes=file.stat().st_size, sha256=sha256_file(file))
    state = TensorSpec(name="cache", dtype="float32", shape=(2, 1, 2, CONTEXT, 4))
    return Artifact(
        id=name,
        format=format_,  # type: ignore[arg-type]
        backend=name.split("-")[1],
        precision=name.split("-")[2],
        runtime=RuntimeRequirement(name=runtime, min="1"),
        files=(record,),
        programs={"forward": ProgramRecord(inputs=(), outputs=(), states=(state,))},
        weights=WeightRecord(bytes_by_dtype={"float32": 1}, share_at_precision=1),
        parity=ParityRecord(
            executed=False, reason="not run", tolerance=Tolerance(max_abs=1, kl=1, kl_p90=1, top1=0)
        ),
    )


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[[], Path]:
    """Return what writes a bundle of an ``.onnx`` that runs and an ``.mlpackage`` that need not."""

    def make() -> Path:
        root = tmp_path / "bundle"
        write_onnx(root / "onnx/model.onnx")
        package = root / "coreml/model.mlpackage/Manifest.json"
        package.parent.mkdir(parents=True)
        package.write_text("{}")
        package_file = package.relative_to(root).as_posix()
        manifest = Manifest(
            task="causal-lm",
            interface="token-logits/1",
            model={"context_length": CONTEXT, "vocab_size": VOCAB},
            artifacts=(
                artifact(root, "onnx-cpu-fp32", "onnx/model.onnx", "onnx", "onnxruntime"),
                artifact(root, "coreml-mlprogram-fp32", package_file, "mlpackage", "coreml"),
            ),
        )
        (root / "manifest.json").write_text(json.dumps(manifest.to_json()))
        return root

    return make
