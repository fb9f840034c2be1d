"""Experts that see only the tokens sent to them, from operators that every runtime has.

How many tokens an expert gets is known at run time only. ``torch.export`` would give each count a
symbol of its own, which XNNPACK refuses. The operators here therefore promise the most there can
be: one row for every token. What stands in the file is ``aten::nonzero`` and ``aten::cat``, which
resize their results to what there is, and so does every operator and delegate after them; an
expert without tokens does nothing.

Against the two linears of ``StaticMoE`` it does k / E of the arithmetic, and at decode reads k / E
of the experts' weights. What it costs is about a microsecond an expert and call. Measured on one
block in 4 bits, 2 threads, idle machine, best of 11 in turns, in milliseconds, apart / together:

========================================  =============  ============
hidden, inner, experts, top k             1 token        128 tokens
========================================  =============  ============
1024, 768, 16, 4                          0.084 / 0.183  4.20 / 11.95
512, 256, 32, 4                           0.044 / 0.068  1.25 / 4.36
256, 192, 16, 2                           0.021 / 0.020  0.30 / 0.75
128, 96, 16, 2 (the embedded model's)     0.020 / 0.010  0.18 / 0.28
========================================  =============  ============
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mobilekit.models.families import Program
from mobilekit.models.modules.plain_linear import plain_linear
from mobilekit.models.modules.static_moe import StaticMoE

# room that the experts' inputs and outputs may take: the file plans for every expert getting all
# tokens of a call, so the length of a call is bounded by it
_ROOM_BYTES = 64 << 20
_SHORTEST_CALL = 32


@torch.library.custom_op("mobilekit::rows_where", mutates_args=())
def rows_where(mask: Tensor) -> Tensor:
    """Return where ``mask`` (S,) is not zero, shape (n, 1) int64; captured as (S, 1)."""
    return torch.nonzero(mask)


@rows_where.register_fake
def _(mask: Tensor) -> Tensor:
    return torch.empty(mask.shape[0], 1, dtype=torch.int64)


@torch.library.custom_op("mobilekit::stack_rows", mutates_args=())
def stack_rows(parts: list[Tensor], like: Tensor) -> Tensor:
    """Return the rows of all parts, (n, D) each; ``like`` (R,) says how many there are in all."""
    return torch.cat(parts)


@stack_rows.register_fake
def _(parts: list[Tensor], like: Tensor) -> Tensor:
    return parts[0].new_empty(like.shape[0], parts[0].shape[1])


@torch.library.custom_op("mobilekit::expert", mutates_args=())
def call_expert(hidden: Tensor, path: str) -> Tensor:
    """Stand for the expert at ``path`` of a captured program, (n, D) → (n, D)."""
    raise NotImplementedError("it stands for an expert in a captured graph only")


@call_expert.register_fake
def _(hidden: Tensor, path: str) -> Tensor:
    return torch.empty_like(hidden)


class Expert(nn.Module):
    """One gated MLP; gate rows first in ``gate_up``, shape (2F, D), and ``down`` is (D, F)."""

    def __init__(self, gate_up: Tensor, down: Tensor, act_fn: Any) -> None:
        super().__init__()
        self.gate_up, self.down, self.act_fn = plain_linear(gate_up), plain_linear(down), act_fn

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the expert's output, (n, D) like its input."""
        both = self.gate_up(hidden)
        inner = both.shape[-1] // 2
        return self.down(self.act_fn(both[..., :inner]) * both[..., inner:])  # type: ignore[no-any-return]


class SparseExperts(nn.Module):
    """Top-k routed experts, each a pair of linears of its own.

    Args:
        moe: The block that it takes the place of.
        path: Where that is in the program.
    """

    expert_ids: Tensor

    def __init__(self, moe: StaticMoE, path: str) -> None:
        super().__init__()
        self.path = path
        self.routing, self.num_experts = moe.routing, moe.num_experts
        count, inner = moe.num_experts, moe.intermediate_size
        rows = moe.gate_up.weight.detach().view(2, count, inner, -1)
        columns = moe.down.weight.detach().view(-1, count, inner)
        self.experts = nn.ModuleList(
            Expert(rows[:, e].flatten(0, 1), columns[:, e], moe.act_fn) for e in range(count)
        )
        self.register_buffer("expert_ids", torch.arange(count), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output, shape (1, S, D) like its input."""
        tokens = hidden_states[0]  # (S, D)
        value, index = self.routing(tokens)  # (S, k), float32 always
        sent = torch.eq(index.unsqueeze(-1), self.expert_ids).sum(dim=-2)  # (S, E), 0 or 1
        made = self._made(tokens, sent, _places(sent, index))  # (S·k, D)
        made = made.view(-1, self.routing.top_k, tokens.shape[-1])
        mixed = torch.bmm(value.unsqueeze(1), made.float()).to(tokens.dtype)
        return mixed.view(1, -1, tokens.shape[-1])

    def _made(self, tokens: Tensor, sent: Tensor, places: Tensor) -> Tensor:
        """Return what the experts make of the tokens sent to them, a token's k rows together."""
        parts = []
        for number in range(self.num_experts):
            rows = torch.ops.mobilekit.rows_where(sent[:, number]).squeeze(1)
            if torch.compiler.is_exporting():
                hidden = torch.index_select(tokens, 0, rows)
                parts.append(torch.ops.mobilekit.expert(hidden, expert_path(self.path, number)))
            elif rows.numel():  # eager linears in few bits cannot do without rows
                parts.append(self.experts[number](tokens[rows]))
        stacked = torch.ops.mobilekit.stack_rows(parts, places)
        return torch.index_select(stacked, 0, places)


def expert_path(block: str, number: int) -> str:
    """Return the path of an expert of the block at that path."""
    return f"{block}.experts.{number}"


def _places(sent: Tensor, index: Tensor) -> Tensor:
    """Return where the row of each token and choice stands among the experts' rows, (S·k,).

    Experts come one after another, and the tokens of one in their order.
    """
    through = sent.cumsum(0)  # (S, E): tokens that the expert got up to here
    counts = through[-1:]
    before = counts.cumsum(1) - counts  # (1, E): rows of the experts before it
    return torch.gather(through + before - 1, 1, index).flatten()


def split_experts_(program: Program) -> tuple[Program, dict[str, str]]:
    """Put :class:`SparseExperts` in the place of every sparse block of a program's private copy.

    Returns:
        The program, with calls as short as its experts' buffers ask for, and for each of the new
        linears the path of the ``StaticMoE`` linear that it is a part of.
    """
    blocks = [(n, m) for n, m in program.module.named_modules() if isinstance(m, StaticMoE)]
    origin = {}
    for path, moe in blocks:
        program.module.set_submodule(path, SparseExperts(moe, path))
        for number in range(moe.num_experts):
            for name in ("gate_up", "down"):
                origin[f"{expert_path(path, number)}.{name}"] = f"{path}.{name}"
    if blocks and program.dynamic_shapes is not None:
        program = _with_calls_up_to(min(_longest_call(moe) for _, moe in blocks), program)
    return program, origin


def _longest_call(moe: StaticMoE) -> int:
    """Return the most tokens whose rows fit the room, were all experts to get all of them."""
    weight = moe.gate_up.weight  # not quantized yet: its dtype is that of the rows, in and out
    a_token = 2 * moe.num_experts * weight.shape[1] * weight.element_size()
    return max(_SHORTEST_CALL, _ROOM_BYTES // a_token)


def _with_calls_up_to(longest: int, program: Program) -> Program:
    allowed = int(program.dynamic_shapes["tokens"][1].max)
    length = torch.export.Dim("seq", min=1, max=min(longest, allowed))
    shapes = {**program.dynamic_shapes, "tokens": {1: length}}
    return replace(program, dynamic_shapes=shapes)
