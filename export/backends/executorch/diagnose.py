"""Which layer of a shipped ``.pte`` goes wrong first, by running that file with taps.

ExecuTorch's event tracer records the arguments of every operator and delegate call. The cache
separates attention from what comes before it, so the hidden state that enters a layer is always
handed from one delegate to another, and must be among the recorded values. A layer is sound if
the hidden state that the reference computes after it is found there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from executorch.devtools import Inspector
from torch import Tensor, nn

from mobilekit.models.families import Program
from mobilekit.runtime.executorch import METHOD, load_program

# Largest error of a sound layer's hidden state, as a share of its norm. Measured on the embedded
# model and on random ones: fp32 up to 1e-6, int8 up to 0.006.
_RELATIVE = {"fp32": 1e-4, "int8": 0.05, "int4": 0.05}
NOT_LOCATED = "not located: ExecuTorch's tracer records no float16 tensors"
_TAPPED_TOKENS = 16  # enough to see a fault, few enough to record everything
_TRACE_BYTES = 1 << 26


def first_diverging_layer(
    path: Path, program: Program, tokens: list[int], *, precision: str
) -> str | None:
    """Return the path of the first layer whose result the file does not reproduce.

    Args:
        path: The ``.pte``.
        program: The reference program, quantized like the file.
        tokens: A prompt; its first tokens are run.
        precision: Precision of both, which sets how close they must be.

    Returns:
        The layer's path in the model; the path of what comes before the first layer if that
        layer's input is wrong already; ``None`` if no layer diverges; for a file in half
        precision, that it cannot be told.
    """
    if precision == "fp16":
        return NOT_LOCATED
    fixed = program.inputs[0].shape[1]
    longest = fixed if isinstance(fixed, int) else int(program.dynamic_shapes["tokens"][1].max)
    ids = torch.tensor([tokens[: min(_TAPPED_TOKENS, longest)]])
    expected = hidden_states(program, ids)
    recorded = record(path, ids, cache_bytes=_cache_bytes(program))
    for name, states in expected:
        if min(relative_error(recorded, state) for state in states) > _RELATIVE[precision]:
            return name.removeprefix("model.")
    return None


def hidden_states(program: Program, ids: Tensor) -> list[tuple[str, list[Tensor]]]:
    """Return, in order, each stage of the program and the values that show it to be sound.

    The stages are what feeds the first layer, then the layers. A layer is shown sound by the
    next one's input; the last by its own output, that of the module after it, or the logits.
    """
    parent = program.layers[0].rpartition(".")[0].rpartition(".")[0]
    children = program.module.get_submodule(parent).named_children()
    siblings = [f"{parent}.{name}" for name, _ in children]
    after = siblings[siblings.index(program.layers[0].rpartition(".")[0]) + 1 :]
    module: Any = program.module
    with _captured(module, [*program.layers, *after]) as (inputs, outputs), torch.no_grad():
        module.reset()
        logits = module(ids, torch.zeros(1, dtype=torch.long))
    stages = [(siblings[0], [inputs[program.layers[0]]])]
    stages += [(layer, [inputs[successor]]) for layer, successor in pairwise(program.layers)]
    shape = inputs[program.layers[0]].shape
    last = [outputs[path] for path in (program.layers[-1], *after) if path in outputs]
    # sound logits show it too, where one delegate computes all from the last layer's inside on
    shown = [*(value for value in last if value.shape == shape), logits]
    stages.append((program.layers[-1], shown))
    return stages


@contextmanager
def _captured(
    module: nn.Module, paths: list[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def tap(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            result = output[0] if isinstance(output, tuple) else output
            if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
                inputs[path], outputs[path] = args[0].clone(), result.clone()

        return hook

    handles = [module.get_submodule(path).register_forward_hook(tap(path)) for path in paths]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def record(path: Path, ids: Tensor, *, cache_bytes: int) -> list[Tensor]:
    """Run the file on ``ids`` from position 0 and return every float tensor it handled."""
    room = _TRACE_BYTES + 8 * cache_bytes  # each cache is an argument of a few calls
    program = load_program(path, enable_etdump=True, debug_buffer_size=room)
    program.load_method(METHOD).execute([ids.contiguous(), torch.zeros(1, dtype=torch.long)])
    with tempfile.TemporaryDirectory() as folder:
        trace, values = str(Path(folder, "trace.etdp")), str(Path(folder, "values.bin"))
        program.write_etdump_result_to_file(trace, values)
        inspector = Inspector(etdump_path=trace, debug_buffer_path=values)
    tensors = [
        value
        for block in inspector.event_blocks
        for event in block.events
        for value in (event.debug_data or [])
    ]
    return [t.clone() for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]


def relative_error(recorded: list[Tensor], expected: Tensor) -> float:
    """Return the least error of a recorded tensor of that shape, as a share of its norm.

    A norm over all tokens, not a maximum: where a quantized file takes another, near-tied expert
    for a single token, that is no fault of the layer.
    """
    scale = float(expected.norm()) or 1.0
    errors = [float((t - expected).norm()) for t in recorded if t.shape == expected.shape]
    return min(errors, default=float("inf")) / scale


def _cache_bytes(program: Program) -> int:
    names = {state.name for state in program.states}
    buffers = dict(program.module.named_buffers())
    return sum(buffers[name].nbytes for name in names)
