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
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.passes.cse_pass import CSEPass

from mobilekit.models.families import Program
from mobilekit.runtime.executorch import RECURRENT

from ..base import ExportSpec
from .expert_delegates import ToShippedOperators, experts_to_delegates, take_experts
from .partition import DecoderPartitioner
from .rewrites import drop_copies, infer_free_dimension, mean_as_product, mean_row
from .share import share_constants


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
        "use_sdpa_with_kv_cache": not program.is_recurrent,
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
    experts = take_experts(program.module)
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
        if experts:
            longest = int(program.dynamic_shapes["tokens"][1].max)
            edge = edge.transform([experts_to_delegates(experts, longest)])
        # cache writes in place: without it each step copies every layer's whole cache twice
        config = ExecutorchBackendConfig(
            run_reinplace_pass=True, to_out_var_pass=ToShippedOperators()
        )
        with path.open("wb") as file:
            edge.to_executorch(config).write_to_file(file)
    share_constants(path)
    sizes = {p.shape[-1] for p in program.module.parameters() if p.dim()}
    return constants | {_digest(mean_row(size)) for size in sizes}


def _plain_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    from .quantize import QuantizedEmbedding

    for child in module.modules():
        if not isinstance(child, QuantizedEmbedding):
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
