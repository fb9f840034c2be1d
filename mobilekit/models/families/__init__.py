"""One file a family; find the family of a model here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.core.registry import Registry
from mobilekit.core.suggest import closest

from .base import Counter, Family, Phase, Program, Slice, StateForm, SubBlock, UnitGroup

if TYPE_CHECKING:
    from torch import nn

FAMILIES: Registry[Family] = Registry("family")
FAMILIES.register("deepseek_v2", "mobilekit.models.families.deepseek_v2:DEEPSEEK_V2")
FAMILIES.register("deepseek_v3", "mobilekit.models.families.deepseek_v3:DEEPSEEK_V3")
FAMILIES.register("ernie4_5_moe", "mobilekit.models.families.ernie4_5_moe:ERNIE4_5_MOE")
FAMILIES.register("gemma2", "mobilekit.models.families.gemma2:GEMMA2")
FAMILIES.register("gemma3", "mobilekit.models.families.gemma3:GEMMA3")
FAMILIES.register("glm4_moe", "mobilekit.models.families.glm4_moe:GLM4_MOE")
FAMILIES.register("gpt_oss", "mobilekit.models.families.gpt_oss:GPT_OSS")
FAMILIES.register("granite_moe", "mobilekit.models.families.granite_moe:GRANITE_MOE")
FAMILIES.register("llama", "mobilekit.models.families.llama:LLAMA")
FAMILIES.register("mamba2", "mobilekit.models.families.mamba2:MAMBA2")
FAMILIES.register("mistral", "mobilekit.models.families.mistral:MISTRAL")
FAMILIES.register("mixtral", "mobilekit.models.families.mixtral:MIXTRAL")
FAMILIES.register("olmoe", "mobilekit.models.families.olmoe:OLMOE")
FAMILIES.register("phi3", "mobilekit.models.families.phi3:PHI3")
FAMILIES.register("qwen2", "mobilekit.models.families.qwen2:QWEN2")
FAMILIES.register("qwen2_moe", "mobilekit.models.families.qwen2_moe:QWEN2_MOE")
FAMILIES.register("qwen3", "mobilekit.models.families.qwen3:QWEN3")
FAMILIES.register("qwen3_moe", "mobilekit.models.families.qwen3_moe:QWEN3_MOE")


def all_families() -> list[Family]:
    """Return every registered family."""
    return [FAMILIES.get(name) for name in FAMILIES.names()]


def family_for_class(class_name: str) -> Family:
    """Return the family that covers a class, by the class's name.

    Raises:
        UnsupportedModelError: If none does; the hint lists the supported classes.
    """
    for family in all_families():
        if class_name in family.classes:
            return family
    known = [name for family in all_families() for name in family.classes]
    # by the part that tells them apart: any two that end in ForCausalLM look alike
    stems = {name.removesuffix("ForCausalLM"): name for name in known}
    stem = closest(class_name.removesuffix("ForCausalLM"), stems, cutoff=0.8)
    near = closest(class_name, known, cutoff=0.95) or (stem and stems[stem])  # or a slip at the end
    suggestion = f"; did you mean '{near}'?" if near else ""
    raise UnsupportedModelError(
        f"unsupported architecture '{class_name}'{suggestion}",
        hint=f"Supported classes: {', '.join(sorted(known))}.",
    )


def family_of(model: nn.Module) -> Family:
    """Return the family of a model."""
    return family_for_class(type(model).__name__)


__all__ = [
    "FAMILIES",
    "Counter",
    "Family",
    "Phase",
    "Program",
    "Slice",
    "StateForm",
    "SubBlock",
    "UnitGroup",
    "all_families",
    "family_for_class",
    "family_of",
]
