"""Base of every part of the configuration: strict models, units, secret references."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0, le=86_400)]
Amount = Annotated[float, Field(ge=0, le=1e9)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$")]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys.

    Values stay out of error texts: somebody may have written a secret in place of its reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SecretRef(Strict):
    """Place of a secret, never the secret itself: exactly one of `file` and `env`."""

    file: Annotated[str, Field(min_length=1)] | None = None
    env: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("needs exactly one of `file` and `env`")
        return self


def import_named(path: str) -> Any:
    """The object that `module:name` in a config names.

    Raises what the import of a user's module raises: anything.
    """
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
