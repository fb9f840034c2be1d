"""A Mamba-2 mixer for one token, its two states explicit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class RunningStates:
    """The states of every layer during one token.

    Attributes:
        conv: Last K inputs of each layer's convolution, each (1, C, K).
        ssm: State of each layer's recurrence, each (1, H, Dh, N).
        kept: 1 to go on from the states, 0 to start from nothing, shape (1,), in their dtype.
    """

    conv: list[Tensor]
    ssm: list[Tensor]
    kept: Tensor


class Mamba2Step(nn.Module):
    """Stands in for transformers' ``Mamba2Mixer``: the same parameters, one token a call.

    The convolution is a product with its last K inputs, and no group's B and C is repeated for
    its heads: there is no operator in it that a back end lacks.

    Args:
        mixer: The mixer whose projections and norm it takes over; weights are shared.
    """

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.layer_idx: int = mixer.layer_idx
        self.heads, self.head_dim = mixer.num_heads, mixer.head_dim
        self.groups, self.state_size = mixer.n_groups, mixer.ssm_state_size
        self.kernel: int = mixer.conv_kernel_size
        self.widths = (mixer.intermediate_size, mixer.conv_dim, mixer.num_heads)
        self.in_proj, self.norm, self.out_proj = mixer.in_proj, mixer.norm, mixer.out_proj
        self.act = mixer.act
        self.conv_weight = _frozen(mixer.conv1d.weight[:, 0])  # (C, K)
        self.conv_bias = None if mixer.conv1d.bias is None else _frozen(mixer.conv1d.bias)
        per_head = (1, self.heads, 1, 1)
        self.dt_bias = _frozen(mixer.dt_bias.view(per_head))
        self.skip = _frozen(mixer.D.view(per_head))
        self.rate = _frozen(-torch.exp(mixer.A_log.detach().float()).to(mixer.D).view(per_head))
        low, high = mixer.time_step_limit
        self.time_limits = (low, high) if low > 0.0 or high < float("inf") else None

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the convolution's and the recurrence's state."""
        recurrence = (1, self.heads, self.head_dim, self.state_size)
        return (1, self.widths[1], self.kernel), recurrence

    def forward(self, hidden_states: Tensor, cache: RunningStates, *_: Any, **__: Any) -> Tensor:
        """Return the mixer's output, (1, 1, D) like its input, and replace its states."""
        gate, mixed, time = self.in_proj(hidden_states).split(self.widths, dim=-1)
        # a running state sums over the whole text, so it may be float32 where weights are not
        mixed, time = mixed.to(self.rate.dtype), time.to(self.rate.dtype)
        x, b, c = self._convolve(mixed, cache)
        output = self._recur(x, b, c, time, cache)
        normed = self.norm(output, gate).to(hidden_states.dtype)
        return self.out_proj(normed)  # type: ignore[no-any-return]

    def _convolve(self, mixed: Tensor, states: RunningStates) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (1, H·Dh), B and C (1, G·N) of the new column ``mixed``, (1, 1, C)."""
        before = states.conv[self.layer_idx][:, :, 1:] * states.kept
        window = torch.cat([before, mixed.transpose(1, 2)], dim=-1)  # (1, C, K)
        states.conv[self.layer_idx] = window
        convolved = (window * self.conv_weight).sum(dim=-1)
        if self.conv_bias is not None:
            convolved = convolved + self.conv_bias
        shared = self.groups * self.state_size
        x, b, c = self.act(convolved).split((self.widths[0], shared, shared), dim=-1)
        return x, b, c

    def _recur(
        self, x: Tensor, b: Tensor, c: Tensor, time: Tensor, states: RunningStates
    ) -> Tensor:
        """Return the recurrence's output for one step, shape (1, 1, H·Dh)."""
        per_head = (1, self.heads, -1, 1)
        step = F.softplus(time.view(per_head) + self.dt_bias)  # (1, H, 1, 1)
        if self.time_limits is not None:
            step = step.clamp(*self.time_limits)
        x = x.view(per_head)  # (1, H, Dh, 1)
        # heads of a group lie side by side, so a group's rows are those of its heads
        rows = (x * step).reshape(1, self.groups, -1, 1)
        entering = (rows * b.view(1, self.groups, 1, -1)).view(self.state_shapes[1])
        decay = torch.exp(step * self.rate) * states.kept  # to forget costs no pass of its own
        state = states.ssm[self.layer_idx] * decay + entering
        states.ssm[self.layer_idx] = state
        grouped = state.view(1, self.groups, -1, self.state_size)
        read = (grouped @ c.view(1, self.groups, -1, 1)).view(per_head)
        return (read + x * self.skip).reshape(1, 1, -1)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
