"""Find the first layer of a shipped file that diverges, by tapping the file itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mobilekit.models.families import Program

from .write import DATA_FILE, read_taps

Hidden = dict[str, NDArray[np.float32]]


def tapped_states(path: Path, tokens: Sequence[int]) -> Hidden:
    """Run the file at ``path`` on one prompt; return each layer's output, (S, D).

    The graph outputs are added in memory: the file is read, never written.
    """
    model = onnx.load(path, load_external_data=False)
    taps = read_taps(model, path)
    for name in taps.values():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if (path.parent / DATA_FILE).is_file():  # weights beside the graph are found by this folder
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(path.parent))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = session.run(list(taps.values()), _feeds(session, tokens))
    return {layer: value[0] for layer, value in zip(taps, outputs, strict=True)}


def _feeds(
    session: onnxruntime.InferenceSession, tokens: Sequence[int]
) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    specs = {spec.name: spec.shape for spec in session.get_inputs()}
    ids = np.asarray(tokens, dtype=np.int64)[None]
    if specs["input_ids"][1] == 1:  # a recurrent program, which takes one token a call
        ids = ids[:, :1]
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
    }
    feeds: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {}
    for name, shape in specs.items():
        empty = [size if isinstance(size, int) else 0 for size in shape]  # a free size is a length
        feeds[name] = known[name] if name in known else np.zeros(empty, dtype=np.float32)
    return feeds


@torch.no_grad()
def reference_states(program: Program, tokens: Sequence[int]) -> Hidden:
    """Run the resident program on one prompt; return each layer's output, (S, D)."""
    states: Hidden = {}
    handles = []
    for path in program.layers:
        layer = path.removeprefix("model.")  # the program's own attribute

        def keep(_module: object, _inputs: object, output: object, layer: str = layer) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            states[layer] = hidden[0].float().numpy().copy()  # type: ignore[index]

        handles.append(program.module.get_submodule(path).register_forward_hook(keep))
    taken = list(tokens[:1] if program.is_recurrent else tokens)
    ids = torch.tensor([taken], dtype=torch.long)
    program.module(ids, torch.zeros(1, dtype=torch.long))
    for handle in handles:
        handle.remove()
    return states


def first_divergence(found: Hidden, expected: Hidden, *, limit: float) -> str | None:
    """Return the first layer whose relative error is above ``limit``.

    The error is the Frobenius norm of the difference over that of the expected states.
    """
    for layer, state in expected.items():
        error = np.linalg.norm(found[layer] - state) / np.linalg.norm(state)
        if not error <= limit:  # a NaN diverges too
            return layer
    return None
