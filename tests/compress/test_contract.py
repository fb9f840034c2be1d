"""The contract that every registered method keeps, on every tiny model that it can act on."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mobilekit as mk
from mobilekit.compress import METHODS, Method
from mobilekit.compress.base import check_order
from mobilekit.core.errors import UnsupportedModelError, UsageError
from mobilekit.models.families import Family, Phase, StateForm, family_of
from mobilekit.models.surgery import meta_copy
from mobilekit.models.tiny import TINY_MODELS, tiny_family
from mobilekit.schema.plan import TENSORS_FILE, Plan, read_plans, with_tensors

IDS = torch.arange(9, 33).reshape(2, 12)
# what a method looks at: more tokens than a tiny layer has columns
DATA = torch.randint(1, 250, (12, 16), generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.usefixtures("own_cache")
# one tiny model of every family
MODELS = [name for name in TINY_MODELS if "-" not in name]
SEARCH: dict[str, Any] = {
    "levels": 3,
    "offspring": 3,
    "generations": 2,
    "survivors": [2, 1],
    "fitness_tokens": [32, 64],
    "tolerance": 0.3,
}
# settings under which each method is held to the contract; a new method adds its line
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "aimer": [
        {"variant": v, "sparsity": 0.375}
        for v in ("aimer", "random", "magnitude", "frequency", "reap")
    ],
    "darwinlm": [
        {"variant": "uniform", "levels": 3},
        {"variant": "evopress", "group_mode": "whole", **SEARCH},
        {"variant": "darwin", "group_mode": "free", "finetune_tokens": [32, 32], **SEARCH},
    ],
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@dataclass
class Subject:
    """A method, its settings, and a model that it can act on."""

    method: Method[Any]
    settings: dict[str, Any]
    model: nn.Module

    @property
    def uses_data(self) -> bool:
        variants = self.method.Config.variants
        return bool(variants) and variants[self.settings["variant"]].needs != "none"

    def plan(self) -> Plan:
        data = [DATA] if self.uses_data else None
        return mk.plan(self.model, self.method.name, data=data, **self.settings)


def suits(name: str, model: str) -> bool:
    return METHODS.get(name).needs <= set(tiny_family(model).units_of)


def cases() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield every method on every model that it can act on, and all its settings on one."""
    for name in METHODS.names():
        models = [model for model in MODELS if suits(name, model)]
        yield from ((name, SETTINGS[name][0], model) for model in models)
        yield from ((name, settings, models[0]) for settings in SETTINGS[name][1:])


@pytest.fixture(params=cases(), ids=lambda p: f"{p[0]}-{p[1].get('variant', 'default')}-{p[2]}")
def subject(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> Subject:
    name, settings, model = request.param
    return Subject(METHODS.get(name), settings, copy.deepcopy(tiny(model)))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS.to(model.device)).logits.cpu()


def test_every_method_is_held_to_the_contract() -> None:
    assert set(SETTINGS) == set(METHODS.names())


def test_every_method_states_what_it_is() -> None:
    for name in METHODS.names():
        method = METHODS.get(name)
        assert method.name == name
        assert method.version >= 1
        assert not method.after & method.conflicts
        assert method.needs <= set(Family.KINDS)
        fields = method.Config.model_fields
        assert all(field.description for field in fields.values()), name


@pytest.mark.parametrize(
    ("name", "model"), [(n, m) for n in METHODS.names() for m in MODELS if not suits(n, m)]
)
def test_models_without_the_units_are_refused(
    name: str, model: str, tiny: Callable[[str], nn.Module]
) -> None:
    with pytest.raises(UnsupportedModelError, match="Families with"):
        mk.plan(tiny(model), name)


def test_config_goes_through_json(subject: Subject) -> None:
    config = subject.method.Config.parse(subject.settings, "test")
    dumped = json.loads(json.dumps(config.model_dump(mode="json")))
    assert subject.method.Config.parse(dumped, "test") == config
    assert subject.method.Config.parse(subject.plan().config, "test") == config


def test_plan_goes_through_json_and_is_deterministic(subject: Subject, tmp_path: Path) -> None:
    plan = subject.plan()
    text = json.dumps(plan.to_json(), allow_nan=False)
    torch.rand(3)  # the global generator must not matter
    assert json.dumps(subject.plan().to_json(), allow_nan=False) == text
    (tmp_path / "plan.json").write_text(text)
    assert read_plans(tmp_path / "plan.json") == [plan]
    assert plan.method == subject.method.name
    assert plan.method_version == subject.method.version
    assert plan.seed == plan.config["seed"]


def test_planning_touches_neither_the_model_nor_the_global_generator(subject: Subject) -> None:
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    mk.apply(subject.model, subject.plan())
    after = subject.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(torch.get_rng_state(), state)


def test_identity_settings_leave_every_bit(subject: Subject) -> None:
    config = subject.method.identity()
    if config is None:
        pytest.skip("the method has no identity")
    plan = mk.plan(subject.model, subject.method.name, **config.model_dump())
    assert plan.warnings == ()
    result = mk.apply(subject.model, plan)
    expected = subject.model.state_dict()
    assert result.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in result.state_dict().items())
    assert torch.equal(logits(result), logits(subject.model))


def test_saved_result_reloads_to_the_same_output(subject: Subject, tmp_path: Path) -> None:
    plan = subject.plan()
    result: Any = mk.apply(subject.model, plan)
    path = mk.save(result, tmp_path / "out")
    loaded = mk.load(path, device="cpu")
    if "expert" in family_of(result).units_of:  # each form sums in an order of its own
        result.set_experts_implementation("eager")
    expected = result.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    assert torch.equal(logits(loaded), logits(result))
    if plan.tensors is not None:  # the weights hold them
        plan = with_tensors(plan, path / TENSORS_FILE)
    assert read_plans(path / "plan.json") == [plan]


def test_sizes_in_the_summary_are_exact(subject: Subject) -> None:
    plan = subject.plan()
    result = mk.apply(subject.model, plan)
    for when, model in (("before", subject.model), ("after", result)):
        parameters = list(model.parameters())
        names = model.state_dict().keys()
        buffers = [b for name, b in model.named_buffers() if name in names]
        assert plan.summary[f"parameters_{when}"] == sum(p.numel() for p in parameters)
        assert plan.summary[f"bytes_{when}"] == sum(p.nbytes for p in [*parameters, *buffers])
        assert plan.summary[f"active_parameters_{when}"] <= plan.summary[f"parameters_{when}"]


def test_restructure_on_meta_gives_the_shapes_of_apply(subject: Subject) -> None:
    plan = subject.plan()
    empty = meta_copy(subject.model)
    subject.method.restructure(empty, plan)
    result = mk.apply(subject.model, plan)
    shapes = {k: (v.shape, v.dtype) for k, v in result.state_dict().items()}
    assert {k: (v.shape, v.dtype) for k, v in empty.state_dict().items()} == shapes
    assert {v.device.type for v in empty.state_dict().values()} == {"meta"}


def test_result_can_be_captured(subject: Subject) -> None:
    result: Any = mk.apply(subject.model, subject.plan())
    if family_of(result).obstacle is not None:  # no class of the family can be, pruned or not
        with pytest.raises(UnsupportedModelError, match="cannot be exported yet"):
            family_of(result).export_program(result, Phase("forward", StateForm.RESIDENT, 32))
        return
    program = family_of(result).export_program(result, Phase("forward", StateForm.RESIDENT, 32))
    captured = torch.export.export(
        program.module, program.example_inputs, dynamic_shapes=program.dynamic_shapes, strict=False
    )
    with torch.no_grad():
        found = captured.module()(IDS[:1], torch.tensor([0]))  # (1, 1, V)
    torch.testing.assert_close(found[0, 0], logits(result)[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_gives_the_same_plan(subject: Subject, device: str) -> None:
    expected = subject.plan()
    subject.model.to(device)
    plan = subject.plan()
    if subject.uses_data:  # activations differ in their last digits, so scores do
        assert plan.edits == expected.edits
    else:
        assert plan.to_json() == expected.to_json()
    result = mk.apply(subject.model, plan)
    assert {p.device.type for p in result.parameters()} == {device}
    cpu = mk.apply(subject.model.cpu(), plan)
    torch.testing.assert_close(logits(result.cpu()), logits(cpu), rtol=1e-4, atol=1e-4)


@dataclass
class Named:
    """The part of a method that its order depends on."""

    name: str
    after: frozenset[str] = frozenset()
    conflicts: frozenset[str] = frozenset()


def applied(*names: str) -> list[Plan]:
    base = {"method_version": 1, "config": {}, "seed": 0, "parent": None, "edits": ()}
    return [Plan(method=name, **base) for name in names]


def test_order_and_conflicts_between_methods() -> None:
    first, second = Named("first"), Named("second", after=frozenset({"first"}))
    rival = Named("rival", conflicts=frozenset({"first"}))
    known: dict[str, Any] = {m.name: m for m in (first, second, rival)}
    check: Any = check_order
    check(second, applied("first"), known)
    check(first, applied("first", "unknown"), known)
    check(second, applied(), known)
    with pytest.raises(UsageError, match="first must come before second"):
        check(first, applied("second"), known)
    for one, other in (("rival", "first"), ("first", "rival")):
        with pytest.raises(UsageError, match=f"{one} cannot be combined with {other}"):
            check(known[one], applied(other), known)
