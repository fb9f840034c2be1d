"""Capture, rewrite, partition for XNNPACK, serialise.

Lowering takes seconds of pure Python per layer, nearly all of it in passes that retrace every
partition, and in repeated decompositions. Two settings of ExecuTorch's own cut it to about a
third without changing the result; both need care in which operators are taken (see below).
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition import config as xnnpack
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from executorch.exir.passes.cse_pass import CSEPass
from torch.export import ExportedProgram

from mobilekit.models.families import Program
from mobilekit.runtime.executorch import RECURRENT

from ..base import ExportSpec
from .rewrites import drop_copies, infer_free_dimension, mean_as_product, mean_row


class ExactGeluConfig(xnnpack.GeluConfig):  # type: ignore[misc]
    """GELU by the error function: XNNPACK computes it whatever the operator says.

    The tanh form differs by up to 4.7e-4, which tiny Gemma logits showed as 5.9e-4.
    """

    def check_constraints(self, node: torch.fx.Node, ep: ExportedProgram) -> bool:
        """Accept the operator if it does not ask for the tanh form."""
        return node.kwargs.get("approximate", "none") == "none" and bool(
            super().check_constraints(node, ep)
        )


class ShortCatConfig(xnnpack.CatConfig):  # type: ignore[misc]
    """Concatenation of as many tensors as XNNPACK has an operator for."""

    def check_constraints(self, node: torch.fx.Node, ep: ExportedProgram) -> bool:
        """Tell whether XNNPACK takes ``node`` as it is."""
        return len(node.all_input_nodes) <= 5 and bool(super().check_constraints(node, ep))


# Only operators whose XNNPACK form needs none of the passes that LINEAR_ONLY leaves out (channels
# last, batch norm, padding, up-sampling, concatenations of more than five, pooling).
_CONFIGS = [
    xnnpack.AbsConfig,
    xnnpack.AddConfig,
    xnnpack.AddmmConfig,
    xnnpack.BMMConfig,
    xnnpack.ChooseQParamsAffineConfig,
    xnnpack.CosConfig,
    xnnpack.DeQuantizeAffineConfig,
    xnnpack.DivConfig,
    xnnpack.ExpConfig,
    ExactGeluConfig,
    xnnpack.LinearConfig,
    xnnpack.MMConfig,
    xnnpack.MulConfig,
    xnnpack.NegConfig,
    xnnpack.PermuteConfig,
    xnnpack.PowConfig,
    xnnpack.QuantizeAffineConfig,
    xnnpack.ReciprocalSquareRootConfig,
    xnnpack.SigmoidConfig,
    xnnpack.SinConfig,
    xnnpack.SoftmaxConfig,
    xnnpack.SquareRootConfig,
    xnnpack.SubConfig,
    xnnpack.TanhConfig,
    xnnpack.ViewCopyConfig,
    ShortCatConfig,
]
# with this compile spec XNNPACK's preprocessing runs its linear pass only, not all seventeen
_LINEAR_ONLY = CompileSpec("dqlinear_partitioner", b"")


class DecoderPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK partitioner for decoder programs: dense, elementwise and softmax operators."""

    def __init__(self) -> None:
        super().__init__(configs=_CONFIGS)
        self.delegation_spec = DelegationSpec("XnnpackBackend", [_LINEAR_ONLY])

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[Any], None]:
        """Keep the same operators whole, without a filter: a filter costs four more retracings.

        The filter would decompose linears that XNNPACK cannot take, such as those with weights
        computed at run time; a decoder has none, and if it had, lowering would fail aloud.
        """
        keep, _ = super().ops_to_not_decompose(ep)
        return keep, None


def metadata_methods(program: Program, spec: ExportSpec) -> dict[str, Any]:
    """Return the constant methods that ExecuTorch's own LLM runner reads.

    ``get_max_seq_len`` is the longest prompt one call takes, the runner's chunk length, and
    ``get_max_context_len`` the positions of the cache. A token id that is not known has no
    method: the runner then asks the tokenizer.
    """
    methods: dict[str, Any] = {
        "get_vocab_size": program.module.vocab_size,
        "get_max_seq_len": longest_call(program, spec),
        "get_max_context_len": spec.context_length,
        "get_n_layers": len(program.layers),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": program.dynamic_shapes is not None,
    }
    if program.is_recurrent:
        methods[RECURRENT] = True
    if spec.bos_token_id is not None:
        methods["get_bos_id"] = spec.bos_token_id
    if spec.eos_token_ids:
        methods["get_eos_ids"] = list(spec.eos_token_ids)
    return methods


def longest_call(program: Program, spec: ExportSpec) -> int:
    """Return the most tokens that one call of the program takes."""
    length = program.inputs[0].shape[1]
    if isinstance(length, int):
        return length
    return min(int(program.dynamic_shapes["tokens"][1].max), spec.context_length)


def lower_program(program: Program, methods: dict[str, Any], path: Path) -> set[str]:
    """Lower ``program`` and write it to ``path``.

    Returns:
        SHA-256 of every constant of the graph that is not a weight (rotary frequencies, expert
        ids, the rows of means), by which the file's weights can be told from them.
    """
    constants = {_digest(buffer) for _, buffer in _plain_buffers(program.module)}
    with torch.no_grad(), quiet():
        captured = torch.export.export(
            program.module,
            program.example_inputs,
            dynamic_shapes=program.dynamic_shapes,
            strict=False,
        )
        edge = to_edge_transform_and_lower(
            captured,
            transform_passes=[drop_copies, infer_free_dimension, mean_as_product, CSEPass()],
            partitioner=[DecoderPartitioner()],
            constant_methods=methods,
            # the validator knows neither whole linears nor quantized operators
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        # cache writes in place: without it each step copies every layer's whole cache twice
        config = ExecutorchBackendConfig(run_reinplace_pass=True)
        with path.open("wb") as file:
            edge.to_executorch(config).write_to_file(file)
    sizes = {p.shape[-1] for p in program.module.parameters() if p.dim()}
    return constants | {_digest(mean_row(size)) for size in sizes}


def _plain_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    from .int8 import Int8Embedding

    for child in module.modules():
        if not isinstance(child, Int8Embedding):
            yield from child.named_buffers(recurse=False)


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the toolchain says of itself and the user can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree", "executorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
