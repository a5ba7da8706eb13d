"""What a class that people configure says of an argument that it does not have, or that is out of its range."""

from __future__ import annotations

from collections.abc import Iterable
from functools import wraps
from typing import Any, TypeVar

import attrs

from tinyllm.errors import ConfigError, UnknownSetting
from tinyllm.graph.findings import near

C = TypeVar("C", bound=type)


@attrs.frozen
class Whole:
    """A validator: a whole number of at least `least`."""

    least: int

    @property
    def allowed(self) -> str:
        return f"a whole number of at least {self.least}"

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < self.least:
            raise ConfigError(attribute.name, value, self.allowed)


@attrs.frozen
class OneOf:
    """A validator: one of a few values."""

    values: tuple[Any, ...]

    @property
    def allowed(self) -> str:
        *most, last = map(repr, self.values)
        return f"{', '.join(most)} or {last}"

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not any(type(value) is type(known) and value == known for known in self.values):
            raise ConfigError(attribute.name, value, self.allowed)


flag = OneOf((True, False))


def refuse_unknown(cls: C) -> C:
    """Have the attrs class `cls` raise `UnknownSetting` for keyword arguments that it does not have."""
    known = {field.alias or field.name: field.validator for field in attrs.fields(cls) if field.init}
    construct = cls.__init__  # type: ignore[misc]

    @wraps(construct)
    def checked(self: Any, *arguments: Any, **settings: Any) -> None:
        for name, value in settings.items():
            if name not in known:
                raise unknown(name, value, known, {key: getattr(of, "allowed", "") for key, of in known.items()})
        construct(self, *arguments, **settings)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


def unknown(name: str, value: Any, known: Iterable[str], ranges: dict[str, str]) -> UnknownSetting:
    """The error for a setting `name` that is none of those `known`. `ranges`: what each of them may be."""
    meant = near(name, known)
    return UnknownSetting(name, value, ", ".join(known) if meant is None else ranges.get(meant, ""), meant)
