"""Contract 2: the manifest of a bundle, which is what a phone gets."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from mobilekit.core.files import sha256_json
from mobilekit.core.strict import StrictModel

from .contract import Contract

BUNDLE_SCHEMA: Final = "mobilekit.bundle/1"
MANIFEST_FILE = "manifest.json"

# task -> interface, fixed: apps and hosts are written once for each
INTERFACES = {
    "causal-lm": "token-logits/1",
    "masked-diffusion-lm": "masked-logits/1",
    "class-to-image": "denoiser/1",
    "text-to-image": "denoiser/1",
    "detector": "text-score/1",
}
Task = Literal["causal-lm", "masked-diffusion-lm", "class-to-image", "text-to-image", "detector"]
LayerPrecision = Literal["float", "int8", "int4"]
Interface = Literal["token-logits/1", "masked-logits/1", "denoiser/1", "text-score/1"]


class FileRecord(StrictModel):
    """One file of a bundle, by path relative to the manifest."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TensorSpec(StrictModel):
    """Name, dtype and shape of one input, output or state; a string stands for a free length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class ProgramRecord(StrictModel):
    """One entry point of an artifact."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...] = ()


class RuntimeRequirement(StrictModel):
    """Which runtime opens the artifact, from which version on."""

    name: str
    min: str


class WeightRecord(StrictModel):
    """How the weights are stored in the file, counted from the file itself.

    ``bytes_by_dtype`` maps a storage dtype ("float32", "int8") to bytes of weights; scales and
    zero points count under "scales". ``share_at_precision`` is the share of the weight *elements'*
    bytes that are stored at the artifact's precision, in [0, 1].
    """

    bytes_by_dtype: dict[str, int]
    share_at_precision: float = Field(ge=0, le=1)


class Tolerance(StrictModel):
    """What parity must hold to; ``verify`` fails outside of it."""

    max_abs: float = Field(gt=0, description="Against the reference of the same precision.")
    kl: float = Field(gt=0, description="Mean KL in nats against the same reference.")
    kl_p90: float = Field(
        gt=0,
        description="Nine of ten steps stay below: a router's near-tie moves a few steps far, a "
        "fault of the weights many steps a little.",
    )
    top1: float = Field(ge=0, le=1, description="Least top-1 agreement with that reference.")


class Deviation(StrictModel):
    """How far logits are from a reference's."""

    reference: str = Field(description="eager-fp32, or eager-<precision> of the same scheme.")
    max_abs: float = Field(ge=0)
    kl: float = Field(description="Mean KL divergence in nats, reference first.")
    kl_p90: float = Field(description="What nine of ten recorded steps stay below, in nats.")
    top1: float = Field(ge=0, le=1)


class GreedyRecord(StrictModel):
    """Greedy continuations beside eager's.

    In fp32, a divergence is ``excused`` where eager's top-2 gap is below twice the measured error.
    """

    prompts: int
    new_tokens: int
    equal: int = Field(description="Prompts whose whole continuation is token-identical.")
    excused: int = Field(description="Prompts that first diverge at a near-tie of the reference.")
    different: int


class ParityRecord(StrictModel):
    """What came out when the artifact was run on the bundle's parity vectors.

    ``against_fp32`` measures the loss of precision and conversion together; ``against_same`` only
    the conversion, since its reference computes at the artifact's own precision.
    """

    executed: bool
    reason: str | None = None
    evaluator: str | None = Field(None, description="What ran it: a runtime, or 'mil-numpy'.")
    against_fp32: Deviation | None = None
    against_same: Deviation | None = None
    program: Deviation | None = Field(
        None, description="Of the float program that was lowered, from the checkpoint itself."
    )
    greedy: GreedyRecord | None = None
    tolerance: Tolerance
    passed: bool | None = None
    first_diverging_layer: str | None = None


class Artifact(StrictModel):
    """One runnable file (or package directory) of a bundle."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    format: Literal["pte", "onnx", "mlpackage"]
    backend: str
    precision: str = Field(description="fp32, fp16, int8 or int4.")
    overrides: dict[str, LayerPrecision] = Field(
        {}, description="Layer pattern to precision; first match."
    )
    route: str = Field("own", description="Who made the graph: 'own' or another exporter's name.")
    runtime: RuntimeRequirement
    files: tuple[FileRecord, ...] = Field(min_length=1)
    companions: tuple[FileRecord, ...] = Field(
        (), description="Copies of tokenizer files that the ecosystem's own tools expect beside it."
    )
    programs: dict[str, ProgramRecord]
    weights: WeightRecord
    parity: ParityRecord
    settings: dict[str, Any] = {}

    @property
    def sha256(self) -> str:
        """The artifact's identity: its file's SHA-256, or one over those of all its files."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return sha256_json([[record.path, record.sha256] for record in self.files])

    @property
    def total_bytes(self) -> int:
        """Size of all its files."""
        return sum(record.bytes for record in self.files)


class Manifest(Contract):
    """The table of contents of a bundle."""

    schema_: Literal["mobilekit.bundle/1"] = Field(BUNDLE_SCHEMA, alias="schema")
    task: Task
    interface: Interface
    model: dict[str, Any] = Field(description="Class, parameters, context length, vocabulary.")
    artifacts: tuple[Artifact, ...]
    tokenizer: tuple[FileRecord, ...] = ()
    vectors: FileRecord | None = Field(None, description="Parity vectors, safetensors.")
    loop: dict[str, Any] | None = None
    plans: tuple[dict[str, Any], ...] = ()
    licences: tuple[str, ...] = ()
    licence_texts: tuple[FileRecord, ...] = ()
    recipe: dict[str, Any] | None = None
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _says_what_a_host_needs(self) -> Manifest:
        for key in ("context_length", "vocab_size"):
            value = self.model.get(key)
            if self.task == "causal-lm" and (type(value) is not int or value < 1):
                raise ValueError(f"a whole number at model.{key}, 1 or more")
        return self

    def all_files(self) -> list[FileRecord]:
        """Return the record of every file that the bundle has beside the manifest."""
        owned = [f for item in self.artifacts for f in (*item.files, *item.companions)]
        return [
            *owned,
            *self.tokenizer,
            *self.licence_texts,
            *([self.vectors] if self.vectors else []),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)
