"""Statistics of experts against a slow recomputation, token by token, on every routed class."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from mobilekit.compress.aimer.criteria import ExpertStatistics
from mobilekit.compress.aimer.routing import expert_statistics
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError
from mobilekit.models.families import Slice, UnitGroup

IDS = torch.arange(5, 77).reshape(6, 12)
SUMS = ("tokens", "gates", "norms", "squares", "gated_norms")
BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
GROUPED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 6,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
}
# class without "ForCausalLM" -> what its config needs to be tiny and to route
CLASSES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 6},
    "Olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 6},
    "Mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 6},
    "Qwen2Moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 6,
        "shared_expert_intermediate_size": 6,
        "decoder_sparse_step": 1,
    },
    "Ernie4_5_Moe": {
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_intermediate_size": 6,
        "moe_layer_start_index": 0,
        "intermediate_size": 12,
    },
    "GraniteMoe": {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 6},
    "GptOss": {
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 6,
        "layer_types": ["full_attention", "full_attention"],
    },
    "DeepseekV2": {**LATENT, **GROUPED, "v_head_dim": 8, "topk_method": "group_limited_greedy"},
    "DeepseekV3": {**LATENT, **GROUPED, "v_head_dim": 8, "head_dim": 4},
    "Glm4Moe": GROUPED,
}


@cache
def tiny_routed(name: str) -> nn.Module:
    """A routed class in float64 with weights large enough to tell experts apart; copy first."""
    cls = getattr(transformers, f"{name}ForCausalLM")
    model: Any = cls(cls.config_class(**{**BASE, **CLASSES[name]})).eval().double()
    model.set_experts_implementation("eager")  # grouped products have no float64
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise * (0.6 if parameter.dim() > 1 else 0.05))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.add_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return model  # type: ignore[no-any-return]


def blocks(model: Any) -> list[tuple[str, Any]]:
    names = [name for name, _ in model.named_modules() if name.endswith(".experts")]
    paths = [name.removesuffix(".experts") for name in names]
    return [(path, model.get_submodule(path)) for path in paths]


def groups(model: Any) -> list[UnitGroup]:
    return [
        UnitGroup(
            "expert",
            layer,
            count=block.experts.down_proj.shape[0],
            minimum=1,
            slices=(
                Slice(f"{path}.experts", "gate_up_proj", scored=True),
                Slice(f"{path}.experts", "down_proj", scored=True),
            ),
        )
        for layer, (path, block) in enumerate(blocks(model))
    ]


def one_expert(experts: Any, expert: int, x: Tensor) -> Tensor:
    """The output of one expert for one token (D,), from its matrices."""
    if hasattr(experts, "gate_up_proj_bias"):  # GPT-OSS: transposed, interleaved, with biases
        both = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate = both[::2].clamp(max=experts.limit)
        up = both[1::2].clamp(-experts.limit, experts.limit)
        inner = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        return inner @ experts.down_proj[expert] + experts.down_proj_bias[expert]
    gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
    return experts.down_proj[expert] @ (F.silu(gate) * up)


def slow_statistics(model: Any, ids: Tensor) -> list[dict[str, Tensor]]:
    """Every sum, token by token and expert by expert, from what router and block are given."""
    seen: list[dict[str, Any]] = []
    handles = []
    for _, block in blocks(model):
        record: dict[str, Any] = {}
        router = block.gate if hasattr(block, "gate") else block.router

        def block_input(_: Any, args: Any, record: Any = record) -> None:
            record["hidden"] = args[0].reshape(-1, args[0].shape[-1])

        def routed(_: Any, __: Any, output: Any, record: Any = record) -> None:
            record["weights"], record["index"] = output[1], output[2]

        handles.append(block.register_forward_pre_hook(block_input))
        handles.append(router.register_forward_hook(routed))
        seen.append(record)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    found = []
    for record, (_, block) in zip(seen, blocks(model), strict=True):
        sums = {
            name: torch.zeros(len(block.experts.down_proj), dtype=torch.float64) for name in SUMS
        }
        for x, experts, weights in zip(
            record["hidden"], record["index"], record["weights"], strict=True
        ):
            for expert, weight in zip(experts.tolist(), weights.tolist(), strict=True):
                with torch.no_grad():
                    norm = float(one_expert(block.experts, expert, x).norm())
                for name, value in zip(
                    SUMS, (1, weight, norm, norm**2, weight * norm), strict=True
                ):
                    sums[name][expert] += value
        found.append(sums)
    return found


def check(found: list[ExpertStatistics], expected: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(expected) == 2
    for one, sums in zip(found, expected, strict=True):
        for name in SUMS:
            torch.testing.assert_close(getattr(one, name), sums[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_routed_class_against_a_loop_over_tokens(name: str, implementation: str) -> None:
    model: Any = copy.deepcopy(tiny_routed(name))
    expected = slow_statistics(model, IDS)
    assert all(float(sums["tokens"].sum()) > 0 for sums in expected)
    assert any(len(set(sums["tokens"].tolist())) > 1 for sums in expected)  # the router chooses
    model.set_experts_implementation(implementation)
    check(expert_statistics(model, groups(model), [IDS], outputs=True), expected)


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral"])
def test_gates_are_those_of_the_softmax_over_the_chosen(name: str) -> None:
    model: Any = tiny_routed(name)
    hidden: list[Tensor] = []
    path, block = blocks(model)[0]
    handle = block.register_forward_pre_hook(lambda _, args: hidden.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    handle.remove()
    gates = torch.zeros(6, dtype=torch.float64)
    for x in hidden[0]:
        probabilities = (block.gate.weight @ x).float().softmax(0)
        value, index = probabilities.topk(2)
        if name == "Mixtral" or block.gate.norm_topk_prob:
            value = value / value.sum()
        gates[index] += value.double()
    (found, _) = expert_statistics(model, groups(model), [IDS], outputs=False)
    torch.testing.assert_close(found.gates, gates, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", ["Olmoe", "DeepseekV3"])
def test_batch_size_changes_nothing_but_rounding(name: str, size: int) -> None:
    model = tiny_routed(name)
    whole = expert_statistics(model, groups(model), [IDS], outputs=True)
    cut = expert_statistics(model, groups(model), IDS.split(size), outputs=True)
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        for field in SUMS:
            torch.testing.assert_close(
                getattr(one, field), getattr(other, field), rtol=1e-12, atol=1e-12
            )


def test_routing_alone_never_asks_for_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilekit.compress.aimer import routing

    model = tiny_routed("Qwen3Moe")
    both = expert_statistics(model, groups(model), [IDS], outputs=True)

    def never(*_: object) -> Tensor:
        raise AssertionError("an output was computed")

    monkeypatch.setattr(routing, "_output_norms", never)
    routed = expert_statistics(model, groups(model), [IDS], outputs=False)
    for one, other in zip(both, routed, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.gates, other.gates)
        assert not other.norms.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float64(dtype: torch.dtype) -> None:
    model: Any = copy.deepcopy(tiny_routed("Qwen3Moe")).to(dtype)
    found = expert_statistics(model, groups(model), [IDS], outputs=True)
    for one in found:
        assert one.norms.dtype == torch.float64
        assert one.is_finite()
        assert float(one.tokens.sum()) == IDS.numel() * 2


def test_activations_that_overflow_name_the_layer() -> None:
    model: Any = copy.deepcopy(tiny_routed("Qwen3Moe"))
    model.model.layers[1].mlp.experts.down_proj.data.fill_(1e308)
    with pytest.raises(InvalidInputError, match="of layer 1 are NaN or infinite"):
        expert_statistics(model, groups(model), [IDS], outputs=True)


class Renamed(nn.Module):
    """Experts behind a signature that no class of transformers has."""

    def __init__(self, inner: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, hidden_states: Tensor, routing: tuple[Tensor, Tensor]) -> Tensor:
        return self.call(hidden_states, *routing)


def test_experts_with_another_signature_are_refused() -> None:
    model: Any = copy.deepcopy(tiny_routed("Qwen3Moe"))
    block = model.model.layers[0].mlp
    inner = block.experts
    block.experts = Renamed(inner, inner)
    made = groups(tiny_routed("Qwen3Moe"))[:1]

    def forward(hidden_states: Tensor) -> Tensor:
        flat = hidden_states.view(-1, hidden_states.shape[-1])
        _, weights, index = block.gate(flat)
        return block.experts(flat, (index, weights)).view(hidden_states.shape)

    block.forward = forward
    with pytest.raises(UnsupportedModelError, match="experts of layer 0 \\(Renamed\\)"):
        expert_statistics(model, made, [IDS], outputs=True)


def test_experts_in_several_modules_are_refused() -> None:
    pieces = (Slice("a.experts", "w", scored=True), Slice("b.experts", "w", scored=True))
    group = UnitGroup("expert", 3, 4, 1, slices=pieces)
    with pytest.raises(UnsupportedModelError, match="layer 3 are spread over 2 modules"):
        expert_statistics(tiny_routed("Qwen3Moe"), [group], [IDS], outputs=False)
