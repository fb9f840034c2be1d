"""What the contracts share: each file says which contract, and which version of it, it keeps."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.strict import StrictModel


def _requires_schema(schema: dict[str, Any]) -> None:
    schema["required"] = ["schema", *schema.get("required", [])]


class Contract(StrictModel):
    """A record with a key ``schema``: filled in by code that makes one, required of a file."""

    model_config = ConfigDict(json_schema_extra=_requires_schema)

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """Check what a file holds, its version first: all else may have changed with it.

        Raises:
            InvalidInputError: If the version is missing or another, or something is wrong.
        """
        known: str = cls.model_fields["schema_"].default
        if isinstance(data, dict):
            if "schema" not in data:
                raise InvalidInputError(
                    f"{where}: key 'schema' is missing",
                    hint=f"Give the file that MobileKit wrote; it has '{known}' there.",
                )
            found = data["schema"]
            is_kin = isinstance(found, str) and found.startswith(known.rpartition("/")[0] + "/")
            if is_kin and found != known:
                raise InvalidInputError(
                    f"{where} has schema {found}, this version reads {known}",
                    hint="Update MobileKit, or make the file anew with this version.",
                )
        return super().parse(data, where)
