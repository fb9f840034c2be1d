"""Narrowed models, and what they are held to: the whole model with silent heads and channels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mobilekit.models.lineage import Provenance, provenance, record
from mobilekit.models.surgery import copy_for, restructure_
from mobilekit.models.tiny import make_tiny
from mobilekit.schema.plan import Edit, KeepEdit, Plan, RemoveEdit

IDS = torch.arange(5, 25)[None]  # four times the tiny models' windows
HEADS, KV_HEADS, HEAD_DIM, WIDTH, LAYERS = 8, 4, 8, 96, 3

# name -> (tiny model, changes): every class, biases where a class can have them
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral-window", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2-window", {}),
    "qwen3": ("qwen3", {"attention_bias": True}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {}),
    "phi3": ("phi3", {}),
}


def wide(name: str, kv_heads: int = KV_HEADS) -> Any:
    """Return a model of three layers, 8 query heads and as many key-value heads as asked."""
    tiny, changes = CLASSES[name]
    shape = {
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
    }
    model: Any = make_tiny(tiny, **shape, **changes)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def head(layer: int, *indices: int) -> KeepEdit:
    return KeepEdit(unit="head", layer=layer, indices=indices)


def kv_head(layer: int, *indices: int) -> KeepEdit:
    return KeepEdit(unit="kv_head", layer=layer, indices=indices)


def channel(layer: int, *indices: int) -> KeepEdit:
    return KeepEdit(unit="channel", layer=layer, indices=indices)


def remove(unit: str, layer: int) -> RemoveEdit:
    return RemoveEdit(unit=unit, layer=layer)


def plan_of(edits: Sequence[Edit]) -> Plan:
    return Plan(
        schema="mobilekit.plan/1",
        method="hand",
        method_version=1,
        config={},
        seed=0,
        parent=None,
        edits=tuple(edits),
    )


def narrowed(model: nn.Module, *steps: Sequence[Edit]) -> Any:
    """Carry out steps of edits, one after the other, on a copy; note them as plans."""
    result = model
    for edits in steps:
        result = copy_for(result, edits)
        restructure_(result, edits)
    plans = (*provenance(model).plans, *(plan_of(edits) for edits in steps))
    record(result, Provenance(plans=plans))
    return result


@dataclass
class Kept:
    """Which of the original units of a layer are left, worked out by hand."""

    heads: list[int] = field(default_factory=lambda: list(range(HEADS)))
    kv_heads: list[int] = field(default_factory=lambda: list(range(KV_HEADS)))
    channels: list[int] = field(default_factory=lambda: list(range(WIDTH)))
    per_group: int = HEADS // KV_HEADS  # of the original
    attention: bool = True
    mlp: bool = True

    def group(self, head: int) -> int:
        """Return the key-value head that an original query head reads."""
        return head // self.per_group

    def counts(self) -> list[int]:
        """Return how many query heads each key-value head has."""
        return [sum(self.group(h) == kv for h in self.heads) for kv in self.kv_heads]

    def is_even(self) -> bool:
        return len(set(self.counts())) == 1

    def carry_out(self, edit: Edit) -> None:
        if isinstance(edit, RemoveEdit):
            setattr(self, edit.unit, False)
        elif isinstance(edit, KeepEdit) and edit.unit == "channel":
            self.channels = [self.channels[i] for i in edit.indices]
        elif isinstance(edit, KeepEdit) and edit.unit == "kv_head":
            self.kv_heads = [self.kv_heads[i] for i in edit.indices]
            self.heads = [h for h in self.heads if self.group(h) in self.kv_heads]
        elif isinstance(edit, KeepEdit):
            alone = self.counts() == [1] * len(self.kv_heads)
            self.heads = [self.heads[i] for i in edit.indices]
            if alone:
                self.kv_heads = [kv for kv in self.kv_heads if kv in map(self.group, self.heads)]


def kept_by(steps: Sequence[Sequence[Edit]], kv_heads: int = KV_HEADS) -> list[Kept]:
    """Return what the steps leave of each layer."""
    layers = [
        Kept(kv_heads=list(range(kv_heads)), per_group=HEADS // kv_heads) for _ in range(LAYERS)
    ]
    for edits in steps:
        for edit in edits:
            assert not isinstance(edit, KeepEdit) or edit.indices
            layers[edit.layer].carry_out(edit)  # type: ignore[union-attr]
    return layers


def silenced(model: nn.Module, steps: Sequence[Sequence[Edit]], kv_heads: int = KV_HEADS) -> Any:
    """Return the whole model with zeros in the columns of what the steps take away: the oracle."""
    result: Any = copy.deepcopy(model)
    for layer, kept in zip(result.model.layers, kept_by(steps, kv_heads), strict=True):
        lost = [
            h * HEAD_DIM + i for h in range(HEADS) for i in range(HEAD_DIM) if h not in kept.heads
        ]
        _zero_(layer.self_attn.o_proj, lost, whole=not kept.attention)
        _zero_(
            layer.mlp.down_proj,
            [c for c in range(WIDTH) if c not in kept.channels],
            whole=not kept.mlp,
        )
    return result


@torch.no_grad()
def _zero_(linear: nn.Linear, columns: list[int], *, whole: bool) -> None:
    linear.weight[:, slice(None) if whole else columns] = 0
    if whole and linear.bias is not None:
        linear.bias.zero_()


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    return model(ids, use_cache=False).logits  # type: ignore[no-any-return]


def generated(model: Any, **options: Any) -> Tensor:
    """Return 12 tokens after the prompt, greedily unless asked otherwise."""
    settings = {"max_new_tokens": 12, "do_sample": False, "use_cache": True, **options}
    return model.generate(IDS, **settings)  # type: ignore[no-any-return]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def expected_parameters(model: Any, steps: Sequence[Sequence[Edit]]) -> int:
    """Return the closed form: the whole, less what each layer lost."""
    total, width = parameters(model), model.config.hidden_size
    for layer, kept in zip(model.model.layers, kept_by(steps), strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        rows = getattr(attention, "q_proj", None) or attention.qkv_proj
        biased = int(rows.bias is not None)
        if kept.attention:
            lost_q, lost_kv = HEADS - len(kept.heads), KV_HEADS - len(kept.kv_heads)
            total -= lost_q * HEAD_DIM * (2 * width + biased)
            total -= lost_kv * 2 * HEAD_DIM * (width + biased)
        else:
            norms = [layer.input_layernorm]
            if hasattr(layer, "pre_feedforward_layernorm"):
                norms.append(layer.post_attention_layernorm)
            total -= parameters(attention) + sum(map(parameters, norms))
        if kept.mlp:
            gates = getattr(mlp, "gate_proj", None) or mlp.gate_up_proj
            total -= (WIDTH - len(kept.channels)) * (3 * width + 2 * int(gates.bias is not None))
        else:
            norms = [layer.post_attention_layernorm]
            if hasattr(layer, "pre_feedforward_layernorm"):
                norms = [layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm]
            total -= parameters(mlp) + sum(map(parameters, norms))
    return total
