"""What one key of bananas.yaml is: how its value is read, described and defaulted; and closed mappings of such keys.

The keys themselves are in ``bananas.manifest_schema``, the kinds of value in ``bananas.manifest_values``. Defaults and
bounds are read from the structs of ``bananas.spec``, so there is no second truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from bananas import manifest_values as kinds
from bananas.manifest_values import Bounds, Kind

#: Stands for a key that was not written; nothing reads it (see ``Keys.fields``).
LEFT_OUT: Any = None


@dataclass(frozen=True, slots=True)
class Key:
    """How the value of a key is read, described and defaulted."""

    kind: Kind
    says: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    default: Any = None
    #: The field of the spec it ends in; None when it is not part of one.
    into: str | None = None

    def read(self, value: Any) -> Any:
        """The spec's value, or an error whose message is the finished sentence."""
        try:
            if value is None and not self.kind.takes_nothing:
                raise ValueError("has no value; write one, or leave the key out")
            return self.kind.read(value, self.bounds)
        except ValueError as e:
            # As context, because a template would take braces in the sentence for a field.
            raise PydanticCustomError("bananas", "{says}", {"says": str(e)}) from e

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A scalar is read by ``read`` alone; a list or mapping goes on to pydantic with its items."""
        if self.kind.is_nested:
            return core_schema.no_info_before_validator_function(self.read, handler(source))
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, inner: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For editors."""
        described = self.kind.json(self.bounds)
        if self.kind in (kinds.RETRIES, kinds.SCHEDULE, kinds.RATE):  # the short form, or the mapping
            described = {"anyOf": [described, handler(inner)]}
        if self.kind is kinds.WEIGHTS:
            described = handler(inner)
        if self.kind is kinds.NAMED:
            (each,) = handler(inner)["patternProperties"].values()
            described["patternProperties"] = {kinds.NAME_BOUNDS.pattern: each}
        default = {} if self.default is None else {"default": self.kind.show(self.default)}
        return described | ({"description": self.says} if self.says else {}) | default


def spec_key(struct: type[msgspec.Struct], into: str, kind: Kind, says: str) -> Key:
    """A key that becomes a field of a spec, with that field's bounds and default."""
    return Key(kind, says, Bounds.of(struct, into), getattr(struct(), into), into)


class Keys(BaseModel):
    """A closed mapping. Every key may be left out; ``fields`` gives only those that were written."""

    model_config = ConfigDict(extra="forbid", strict=True)
    #: Keys of a later release, and what to do meanwhile.
    LATER: ClassVar[frozenset[str]] = frozenset()

    def fields(self) -> dict[str, Any]:
        """Spec field → value, for the keys that were written."""
        found = {}
        for name in self.model_fields_set:
            key = next(m for m in type(self).model_fields[name].metadata if isinstance(m, Key))
            if key.into:
                value = getattr(self, name)
                found[key.into] = value.fields() if isinstance(value, Keys) else value
        return found
