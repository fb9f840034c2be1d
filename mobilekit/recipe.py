"""The recipe: what to do to which model, typed and checked before any work starts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.strict import StrictModel
from mobilekit.core.suggest import did_you_mean
from mobilekit.core.wording import kind_of
from mobilekit.evaluate.config import MobileMMLUConfig, PerplexityConfig
from mobilekit.profile.config import ProfileConfig
from mobilekit.schema.manifest import LayerPrecision
from mobilekit.train.recover import RecoverConfig

if TYPE_CHECKING:
    from mobilekit.compress.config import MethodConfig

_MAX_BYTES = 1 << 20


class ModelConfig(StrictModel):
    """Which checkpoint to start from."""

    source: str = Field(
        "embedded", description="Checkpoint directory, cached hub id, or 'embedded'."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")


class CompressStep(StrictModel):
    """One method with its settings, which the method itself checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str

    @property
    def settings(self) -> dict[str, Any]:
        """All keys but ``method``."""
        return dict(self.model_extra or {})


class ExportConfig(StrictModel):
    """Which artifacts to make."""

    targets: tuple[str, ...] = Field(("executorch", "onnx", "coreml"), min_length=1)
    precisions: tuple[str, ...] = Field(("fp32", "int8"), min_length=1)
    context_length: int = Field(512, ge=8, description="Positions that the cache holds.")
    overrides: dict[str, LayerPrecision] = Field(
        {}, description="Layer pattern to precision, in quantized artifacts; first match wins."
    )


class Budget(StrictModel):
    """What at least one artifact must fit into; the run fails (exit 1) otherwise."""

    file_mb: float | None = Field(None, gt=0, description="File size in MB (10^6 bytes).")
    peak_memory_mb: float | None = Field(
        None, gt=0, description="Measured peak that the model adds to its process, MB."
    )
    device: str = Field("host", description="Profiled device whose measured peaks count.")


EvaluateConfig = Annotated[PerplexityConfig | MobileMMLUConfig, Field(discriminator="suite")]


class Recipe(StrictModel):
    """A whole run: compress → (recover) → export → verify → profile → evaluate → report."""

    version: Literal[1]
    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    compress: tuple[CompressStep, ...] = ()
    recover: RecoverConfig | None = None
    export: ExportConfig | None = ExportConfig()
    profile: ProfileConfig | None = None
    evaluate: tuple[EvaluateConfig, ...] = ()
    budget: Budget | None = None

    def method_configs(self) -> list[MethodConfig]:
        """Return the settings of the compress steps, as their methods have them."""
        from mobilekit.compress import METHODS

        return [METHODS.get(s.method).Config.parse(s.settings, s.method) for s in self.compress]

    def to_json(self, *, of: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the recipe, or some of its keys, as plain JSON values, defaults filled in."""
        return self.model_dump(mode="json", include=None if of is None else set(of))


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        InvalidInputError: If it is missing, too large, not YAML, or not a recipe.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory, expected a file" if path.is_dir() else "does not exist"
        raise InvalidInputError(f"recipe {path} {what}", hint="Write one with: mobilekit init")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InvalidInputError(
            f"{path} has {size} bytes, a recipe has at most {_MAX_BYTES}",
            hint="Check that this is the recipe you meant.",
        )
    return parse_recipe(path.read_bytes(), path.name)


def parse_recipe(text: bytes | str, name: str = "recipe") -> Recipe:
    """Check the text of a recipe; see :func:`load_recipe`."""
    return check_recipe(_parse_yaml(text, name), name)


def check_recipe(data: object, name: str = "recipe") -> Recipe:
    """Check a recipe that is already plain data, method settings included."""
    if not isinstance(data, dict):
        held = "is empty" if data is None else f"holds {kind_of(data)}"
        raise InvalidInputError(
            f"{name} {held}, expected a mapping of recipe keys",
            hint="Start from the recipe that `mobilekit init` writes.",
        )
    version = data.get("version")
    if type(version) is int and version > 1:
        raise InvalidInputError(
            f"{name}: 'version' is {version}, this MobileKit reads version 1",
            hint="Update MobileKit, or write the recipe anew: mobilekit init",
        )
    recipe = Recipe.parse(data, name)
    for index, step in enumerate(recipe.compress):
        _check_method(step, f"{name}: compress step {index + 1} ({step.method})")
    if recipe.export is not None:
        _check_export(recipe.export, recipe.profile, name)
    if recipe.budget is not None:
        _check_budget(recipe, recipe.budget, name)
    return recipe


def _check_method(step: CompressStep, where: str) -> None:
    from mobilekit.compress import METHODS

    METHODS.get(step.method).Config.parse(step.settings, where)


def _check_export(export: ExportConfig, profile: ProfileConfig | None, name: str) -> None:
    """Check targets and precisions by name, and that each workload fits the exported context."""
    from mobilekit.export.offers import check_offered
    from mobilekit.profile.workloads import check_fits, parse_all

    check_offered(export.targets, export.precisions, where=name)
    for workload in parse_all(profile.workloads) if profile else ():
        check_fits(workload, export.context_length)


def _check_budget(recipe: Recipe, budget: Budget, name: str) -> None:
    """Refuse a budget that nothing of the run could be held to."""
    if recipe.export is None:
        raise UsageError(
            f"{name}: there is a budget, but nothing is exported",
            hint="Add an export section, or set budget: null.",
        )
    devices = recipe.profile.devices if recipe.profile else ()
    if budget.peak_memory_mb is not None and budget.device not in devices:
        raise UsageError(
            f"{name}: budget.peak_memory_mb needs a measured peak on '{budget.device}', which the "
            f"recipe does not profile{did_you_mean(budget.device, devices)}",
            hint=f"Add it to profile.devices: [{', '.join((*devices, budget.device))}].",
        )


class _StrictLoader(yaml.SafeLoader):
    """A safe loader without aliases (which can explode) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed in a recipe")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, Hashable) and keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' is given twice")
        return super().construct_mapping(node, deep)


def _parse_yaml(text: bytes | str, name: str) -> object:
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InvalidInputError(
            f"{name} is not a YAML recipe: {problem}{place}",
            hint="Start from the recipe that `mobilekit init` writes.",
        ) from None
