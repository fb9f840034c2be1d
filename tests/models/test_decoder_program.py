"""Programs of every family against transformers' own forward, windows exceeded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilekit.core.errors import UnsupportedModelError, UsageError
from mobilekit.models.families import Phase, Program, StateForm, family_of
from mobilekit.models.modules.mamba2 import Mamba2Step
from mobilekit.models.tiny import TINY_MODELS, tiny_family

LENGTH = 18  # more than three of the tiny models' windows
CONTEXT = 24
IDS = torch.arange(1, LENGTH + 1)[None]
FORMS = list(StateForm)
CUTS = [[LENGTH], list(range(1, LENGTH + 1)), [1, 5, 6, 13, LENGTH]]


EXPORTABLE = [name for name in TINY_MODELS if tiny_family(name).obstacle is None]
OBSTRUCTED = [name for name in TINY_MODELS if tiny_family(name).obstacle is not None]


@pytest.fixture(scope="module", params=EXPORTABLE)
def tiny_model(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> nn.Module:
    """The tiny model of every family that has programs, in turn."""
    return tiny(request.param)


def exported(model: Any, form: StateForm, length: int | None = None) -> Program:
    return family_of(model).export_program(model, Phase("forward", form, CONTEXT, length))


def empty_past(program: Program) -> list[Tensor]:
    shapes = [s.shape for s in program.inputs if s.name.startswith("past")]
    return [torch.zeros([0 if isinstance(n, str) else n for n in shape]) for shape in shapes]


def call(run: Any, program: Program, start: int, end: int, past: list[Tensor]) -> Any:
    """Feed tokens ``start`` to ``end``; return (logits, past)."""
    inputs: dict[str, Tensor] = {
        "tokens": IDS[:, start:end],
        "input_ids": IDS[:, start:end].to(program.example_inputs[0].dtype),
        "input_pos": torch.tensor([start], dtype=program.example_inputs[0].dtype),
        "attention_mask": torch.ones(1, end, dtype=torch.long),
        "position_ids": torch.arange(start, end)[None],
    }
    arguments = [inputs[s.name] for s in program.inputs if not s.name.startswith("past")]
    return run(*arguments, past) if past else (run(*arguments), [])


def stepped(program: Program, cuts: list[int], run: Any = None) -> Tensor:
    """Last logits (V,) after feeding tokens 1 to ``LENGTH`` in calls that end at ``cuts``."""
    past, start = empty_past(program), 0
    with torch.no_grad():
        for end in cuts:
            logits, past = call(run or program.module, program, start, end, past)
            start = end
    return logits[0, -1]


def expected(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits[0, -1]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OBSTRUCTED)
def test_what_cannot_be_captured_is_refused_with_the_reason(
    tiny: Callable[[str], nn.Module], name: str
) -> None:
    model = tiny(name)
    family = family_of(model)
    assert family.program is None
    for call in (family.export_program, family.example_inputs):
        with pytest.raises(UnsupportedModelError) as caught:
            call(model, Phase("forward", StateForm.RESIDENT, CONTEXT))
        assert str(family.obstacle) in caught.value.message
        assert type(model).__name__ in caught.value.hint


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cuts", CUTS, ids=["one", "tokens", "chunks"])
def test_every_form_says_what_the_model_says(
    tiny_model: nn.Module, form: StateForm, cuts: list[int]
) -> None:
    assert_close(stepped(exported(tiny_model, form), cuts), expected(tiny_model))


@pytest.mark.slow  # a minute for all of them
@pytest.mark.parametrize("form", [StateForm.RESIDENT, StateForm.EXPLICIT])
def test_every_program_can_be_captured(tiny_model: nn.Module, form: StateForm) -> None:
    program = exported(tiny_model, form)
    captured = torch.export.export(
        program.module, program.example_inputs, dynamic_shapes=program.dynamic_shapes, strict=False
    )
    # a program captured to concatenate does not take fewer than 4 positions in all
    cuts = CUTS[1] if program.dynamic_shapes is None else CUTS[2][1:]
    assert_close(stepped(program, cuts, captured.module()), expected(tiny_model))


def test_every_fixed_step_can_be_captured(tiny_model: nn.Module) -> None:
    program = exported(tiny_model, StateForm.ARITHMETIC, length=1)
    captured = torch.export.export(program.module, program.example_inputs, strict=False)
    assert_close(stepped(program, CUTS[1], captured.module()), expected(tiny_model))


@pytest.mark.parametrize("form", FORMS)
def test_specs_say_what_goes_in_and_out(tiny_model: nn.Module, form: StateForm) -> None:
    program = exported(tiny_model, form)
    flat = [t for x in program.example_inputs for t in (x if isinstance(x, list) else [x])]
    outputs = program.module(*copy.deepcopy(program.example_inputs))
    given = [outputs] if isinstance(outputs, Tensor) else [outputs[0], *outputs[1]]
    for specs, tensors in ((program.inputs, flat), (program.outputs, given)):
        for spec, tensor in zip(specs, tensors, strict=True):
            assert str(tensor.dtype) == f"torch.{spec.dtype}", spec.name
            for size, found in zip(spec.shape, tensor.shape, strict=True):
                assert size == found or isinstance(size, str), spec.name
    buffers = dict(program.module.named_buffers())
    for spec in program.states:
        assert buffers[spec.name].shape == spec.shape
    assert all(program.module.get_submodule(path) for path in program.layers)


def test_position_0_starts_anew_whatever_the_state_holds(tiny_model: nn.Module) -> None:
    for form in (StateForm.RESIDENT, StateForm.ARITHMETIC):
        program = exported(tiny_model, form)
        first = stepped(program, CUTS[2])
        assert torch.equal(stepped(program, CUTS[2]), first)


def test_export_leaves_the_model_as_it_is(tiny_model: nn.Module) -> None:
    model = copy.deepcopy(tiny_model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    wanted = expected(model)
    for form in FORMS:
        stepped(exported(model, form), CUTS[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert any(flags)
    assert torch.equal(expected(model), wanted)


def test_a_tied_table_stays_one_tensor(tiny: Callable[[str], nn.Module]) -> None:
    body: Any = exported(tiny("gemma3"), StateForm.RESIDENT).module
    assert body.model.lm_head.weight is body.model.model.embed_tokens.table.weight


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral-window", {"sliding_window": 6}),
        ("phi3", {"sliding_window": 6}),
        ("qwen2-window", {"sliding_window": 6}),
        ("gemma2", {"sliding_window": 6}),
        ("gemma2", {"attn_logit_softcapping": 2.0}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("gemma3", {"sliding_window": 6}),
        ("olmoe", {"clip_qkv": 0.5}),
        ("mixtral", {"sliding_window": 6}),
        ("qwen2_moe", {"norm_topk_prob": True}),
        (
            "qwen2_moe",
            {
                "use_sliding_window": True,
                "sliding_window": 6,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
        ),
        ("granite_moe", {"embedding_multiplier": 1.0}),
        ("granite_moe", {"attention_multiplier": 1.0}),
        ("granite_moe", {"residual_multiplier": 1.0}),
        ("granite_moe", {"logits_scaling": 1.0}),
        ("ernie4_5_moe", {"moe_norm_min": 1.0}),
        ("glm4_moe", {"norm_topk_prob": False}),
        ("glm4_moe", {"routed_scaling_factor": 1.0}),
        ("glm4_moe", {"topk_group": 2}),
        ("glm4_moe", {"n_group": 1}),
    ],
)
def test_a_setting_changes_program_and_model_alike(
    tiny: Callable[[str], nn.Module], name: str, changes: dict[str, Any]
) -> None:
    model: Any = tiny(name)
    config = type(model.config).from_dict({**model.config.to_dict(), **changes})
    other = type(model)._from_config(config).eval()
    other.load_state_dict(model.state_dict())
    wanted = expected(other)
    assert (wanted - expected(model)).abs().max() > 1e-3
    for form in FORMS:
        assert_close(stepped(exported(other, form), CUTS[2]), wanted)


def test_layers_may_have_different_key_value_heads(tiny: Callable[[str], nn.Module]) -> None:
    model: Any = copy.deepcopy(tiny("llama"))
    attention = model.model.layers[1].self_attn
    for projection in (attention.k_proj, attention.v_proj):
        projection.weight = nn.Parameter(projection.weight[:16])
        projection.out_features = 16
    attention.num_key_value_groups = 4
    for form in FORMS:
        program = exported(model, form)
        assert_close(stepped(program, CUTS[2]), expected(model))
    assert [s.shape[1] for s in exported(model, StateForm.RESIDENT).states] == [2, 2, 1, 1]


def test_rotary_frequencies_hold_for_the_whole_context(tiny: Callable[[str], nn.Module]) -> None:
    model: Any = tiny("phi3-longrope")
    phase = Phase("forward", StateForm.RESIDENT, 65)
    with pytest.raises(UsageError, match="after 64 positions"):
        family_of(model).export_program(model, phase)
    ids = torch.arange(80)[None]
    with torch.no_grad():
        model(ids)  # past its limit the model computes other frequencies and keeps them
    assert_close(stepped(exported(model, StateForm.RESIDENT), CUTS[0]), expected(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"use_bidirectional_attention": True}, "does not generate text"),
    ],
)
def test_attention_that_no_mask_describes_is_refused(
    tiny: Callable[[str], nn.Module], changes: dict[str, Any], message: str
) -> None:
    model: Any = copy.deepcopy(tiny("gemma3"))
    for key, value in changes.items():
        setattr(model.config, key, value)
    with pytest.raises(UnsupportedModelError, match=message):
        exported(model, StateForm.RESIDENT)


def test_mamba2_keeps_to_its_time_step_limits(tiny: Callable[[str], nn.Module]) -> None:
    model: Any = copy.deepcopy(tiny("mamba2"))
    for layer in model.backbone.layers:
        layer.mixer.time_step_limit = (0.2, 0.7)
    wanted = expected(model)
    assert (wanted - expected(tiny("mamba2"))).abs().max() > 1e-3
    assert_close(stepped(exported(model, StateForm.RESIDENT), CUTS[1]), wanted)
    program: Any = exported(model, StateForm.EXPLICIT)
    assert isinstance(program.module.model.backbone.layers[0].mixer, Mamba2Step)
    assert not isinstance(model.backbone.layers[0].mixer, Mamba2Step)
