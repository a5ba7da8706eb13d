"""The one strict converter: how each kind of annotation takes a restored value, or says what is wrong with it."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections import Counter, OrderedDict, defaultdict
from collections.abc import (
    Callable,
    Collection,
    Container,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Reversible,
    Sequence,
    Set,
)
from datetime import date, datetime
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import attrs
import cattrs
from cattrs import cols
from cattrs.gen import make_dict_structure_fn

from tinyllm.errors import TinyLLMError
from tinyllm.graph.misfit import Misfit, at, inside, name_of, unknown_keys, wrong
from tinyllm.graph.tags import short
from tinyllm.graph.values import capture

Hook = Callable[[Any, Any], Any]
"""Takes a value and the annotation; raises `Misfit`, or for a class a group of them."""


# -- members ---------------------------------------------------------------------------------------------------


def passes(annotation: Any) -> bool:
    """Whether a value passes unchanged and unchecked."""
    return (
        annotation in (Any, object, inspect.Parameter.empty)
        or isinstance(annotation, typing.TypeVar)
        or (typing.get_origin(annotation) is typing.Annotated and passes(typing.get_args(annotation)[0]))
    )


def hook_of(annotation: Any) -> Callable[[Any], Any]:
    """What is done to a member with that annotation."""
    if passes(annotation):
        return _unchanged
    if annotation is None:
        annotation = types.NoneType
    try:
        hook = converter.get_structure_hook(annotation)
    except RecursionError:  # a class that contains itself: looked up when it is needed
        hook = converter.structure
    return lambda value: hook(value, annotation)


def _unchanged(value: Any) -> Any:
    return value


def _args(annotation: Any) -> list[Callable[[Any], Any]]:
    return [hook_of(arg) for arg in typing.get_args(annotation) if arg is not Ellipsis]


def _members(items: Iterable[Any], hooks: Iterable[Callable[[Any], Any]]) -> list[Any]:
    result: list[Any] = []
    for hook, item in zip(hooks, items, strict=False):
        try:
            result.append(hook(item))
        except Exception as error:
            raise at(f"[{len(result)}]", error) from error
    return result


# -- scalars ---------------------------------------------------------------------------------------------------


def _exact(value: Any, annotation: Any) -> Any:
    if type(value) is not annotation:
        raise wrong(value, name_of(annotation))
    return value


def _float(value: Any, _: Any) -> float:
    if type(value) is not int:
        return float(_exact(value, float))
    try:
        return float(value)
    except OverflowError:
        raise wrong(value, "float: it is too large") from None


_BASES = (str, int, float, bytes)


@lru_cache(maxsize=1024)
def _scalar(annotation: Any) -> Hook:
    """The hook of one of `_BASES` or a subclass, of which only the plain value was stored."""
    if annotation is float:
        return _float
    if annotation is bool or annotation in _BASES:
        return _exact
    if issubclass(annotation, enum.Enum):
        return _enum(annotation)
    base = next(base for base in annotation.__mro__ if base in _BASES)
    return lambda value, _: annotation(_exact(value, base))


def _by_value(members: Iterable[tuple[Any, Any]], annotation: Any) -> Hook:
    """A choice among (value, member) pairs; captured bytes tell 1, 1.0 and True apart."""
    table: dict[bytes, Any] = {}
    for value, member in members:
        table.setdefault(capture(value), member)

    def convert(value: Any, _: Any) -> Any:
        try:
            return table[capture(value)]
        except (KeyError, TinyLLMError):
            allowed = ", ".join(body.decode() for body in list(table)[:10])
            raise wrong(value, f"{name_of(annotation)}: one of {allowed}") from None

    return convert


def _enum(annotation: Any) -> Hook:
    if issubclass(annotation, enum.Flag):
        return lambda value, _: annotation(_exact(value, int))  # flags may be combined
    return _by_value(((member.value, member) for member in annotation.__members__.values()), annotation)


def _literal(annotation: Any) -> Hook:
    choices = typing.get_args(annotation)
    return _by_value(((c.value if isinstance(c, enum.Enum) else c, c) for c in choices), annotation)


def _instance(annotation: Any) -> Hook:
    """The fallback, for classes that are no data."""
    kind = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type):
        raise TypeError(f"a value cannot be structured into {name_of(annotation)}; annotate with a class, or with Any")
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return lambda value, _: value

    def convert(value: Any, _: Any) -> Any:
        if not isinstance(value, kind):
            raise wrong(value, name_of(annotation))
        return value

    return convert


# -- containers ------------------------------------------------------------------------------------------------


def _check_sequence(value: Any, annotation: Any) -> None:
    if type(value) is not list and type(value) is not tuple:
        raise wrong(value, name_of(annotation))


def _sequence(annotation: Any) -> Hook:
    make: Callable[[Any], Any] = tuple if (typing.get_origin(annotation) or annotation) is tuple else list
    (hook,) = _args(annotation) or [_unchanged]

    def convert(value: Any, _: Any) -> Any:
        _check_sequence(value, annotation)
        return make(value if hook is _unchanged else _members(value, repeat(hook)))

    return convert


def _fixed_tuple(annotation: Any) -> Hook:
    hooks = _args(annotation)

    def convert(value: Any, _: Any) -> Any:
        _check_sequence(value, annotation)
        if len(value) != len(hooks):
            raise Misfit("", f"has {len(value)} items, not the {len(hooks)} of {name_of(annotation)}")
        return tuple(_members(value, hooks))

    return convert


def _named_tuple(annotation: Any) -> Hook:
    hooks = [hook_of(kind) for kind in typing.get_type_hints(annotation, include_extras=True).values()]
    least = len(hooks) - len(annotation._field_defaults)

    def convert(value: Any, _: Any) -> Any:
        _check_sequence(value, annotation)
        if not least <= len(value) <= len(hooks):
            raise Misfit("", f"has {len(value)} items, not the {len(hooks)} of {name_of(annotation)}")
        return annotation(*_members(value, hooks))

    return convert


def _set(annotation: Any) -> Hook:
    origin = typing.get_origin(annotation) or annotation
    taken = (set, frozenset) if origin is Set else (set,) if origin is MutableSet else (origin,)
    (hook,) = _args(annotation) or [_unchanged]

    def convert(value: Any, _: Any) -> Any:
        if type(value) not in taken:
            raise wrong(value, name_of(annotation))
        result = set()
        for item in value:
            try:
                result.add(hook(item))
            except Exception as error:
                raise inside("element", item, error) from error
        return type(value)(result)

    return convert


def _mapping(annotation: Any) -> Hook:
    origin = typing.get_origin(annotation) or annotation
    key_hook, item_hook = [*_args(annotation), _unchanged, _unchanged][:2]
    make: Callable[[Any], Any] = dict
    if origin is Counter:
        item_hook, make = hook_of(int), Counter
    elif origin is defaultdict:
        make = lambda items: defaultdict([*typing.get_args(annotation), None, None][1], items)  # noqa: E731
    elif origin is OrderedDict:
        make = OrderedDict

    def convert(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise wrong(value, name_of(annotation))
        if key_hook is item_hook:  # both let everything pass
            return make(value)
        result = {}
        for key, item in value.items():
            try:
                name = key_hook(key)
            except Exception as error:
                raise inside("key", key, error) from error
            try:
                result[name] = item_hook(item)
            except Exception as error:
                raise at(f"[{short.repr(key)}]", error) from error
        return make(result)

    return convert


def _union(annotation: Any) -> Hook:
    """One arm may fit, but an arm that takes the value as it is goes before: `int | float` leaves an int alone."""
    arms = typing.get_args(annotation)
    optional = types.NoneType in arms
    others = [arm for arm in arms if arm is not types.NoneType]
    hooks = [hook_of(arm) for arm in others]

    def convert(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        if len(hooks) == 1:
            return hooks[0](value)
        fits: list[tuple[Any, Any]] = []
        misfits: list[Misfit] = []
        for arm, hook in zip(others, hooks, strict=True):
            try:
                result = hook(value)
            except Exception as error:
                misfits.append(at("", error))
                continue
            if result is value:
                return value
            fits.append((arm, result))
        if len(fits) == 1:
            return fits[0][1]
        if fits:
            names = " and ".join(name_of(arm) for arm, _ in fits)
            raise Misfit("", f"fits {names}; give them a field that tells them apart, such as a Literal")
        furthest = max(misfits, key=lambda misfit: len(misfit.path))  # what fitted furthest was most likely meant
        raise furthest if furthest.path else wrong(value, name_of(annotation))

    return convert


# -- classes ---------------------------------------------------------------------------------------------------


def _is_class(annotation: Any) -> bool:
    cls = typing.get_origin(annotation) or annotation
    return attrs.has(cls) or dataclasses.is_dataclass(cls)


def _class(annotation: Any) -> Hook:
    cls = typing.get_origin(annotation) or annotation
    if parameters := getattr(annotation, "__parameters__", ()):  # a generic class, named without its arguments
        annotation = cls[(Any,) * len(parameters)]
    fields: Iterable[Any] = (
        attrs.fields(attrs.resolve_types(cls, include_extras=True)) if attrs.has(cls) else dataclasses.fields(cls)
    )
    inner = make_dict_structure_fn(annotation, converter, _cattrs_forbid_extra_keys=True)
    # Fields that __init__ does not take are set afterwards, also where the class is frozen; cattrs would drop them.
    names = [field.name for field in fields if not field.init]
    kinds = typing.get_type_hints(cls, include_extras=True) if names else {}
    late = {name: hook_of(kinds.get(name, Any)) for name in names}

    def convert(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise wrong(value, name_of(annotation))
        if not late:
            return inner(value, annotation)
        result = inner({name: item for name, item in value.items() if name not in late}, annotation)
        for name, hook in late.items():
            if name in value:
                try:
                    object.__setattr__(result, name, hook(value[name]))
                except Exception as error:
                    raise at(f".{name}", error) from error
        return result

    return convert


def _is_typed_dict(annotation: Any) -> bool:
    return hasattr(typing.get_origin(annotation) or annotation, "__required_keys__")


def _typed_dict(annotation: Any) -> Hook:
    cls = typing.get_origin(annotation) or annotation
    hooks: dict[str, Callable[[Any], Any]] = {}
    required: set[str] = set()
    for name, kind in typing.get_type_hints(cls, include_extras=True).items():
        # `__required_keys__` alone is wrong where annotations are strings: it was made before they were read.
        marks = {typing.Required: True, typing.NotRequired: False}
        if marks.get(typing.get_origin(kind), name in cls.__required_keys__):
            required.add(name)
        hooks[name] = hook_of(typing.get_args(kind)[0] if typing.get_origin(kind) in marks else kind)

    def convert(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise wrong(value, name_of(annotation))
        if missing := required - value.keys():
            raise Misfit("", f"has no {', '.join(map(repr, sorted(missing)))}, which {name_of(annotation)} needs")
        if unknown := value.keys() - hooks.keys():
            raise Misfit("", unknown_keys(unknown, annotation))
        result = {}
        for name, item in value.items():
            try:
                result[name] = hooks[name](item)
            except Exception as error:
                raise at(f"[{name!r}]", error) from error
        return result

    return convert


# -- the converter ---------------------------------------------------------------------------------------------


def _origin_in(*kinds: Any) -> Callable[[Any], bool]:
    return lambda annotation: (typing.get_origin(annotation) or annotation) in kinds


def _is_fixed_tuple(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple and typing.get_args(annotation)[-1:] != (Ellipsis,)


converter = cattrs.Converter(forbid_extra_keys=True, structure_fallback_factory=_instance)

for _predicate, _factory in (  # the one that is registered last is asked first
    (_is_class, _class),
    (_is_typed_dict, _typed_dict),
    (_origin_in(dict, Mapping, MutableMapping, OrderedDict, defaultdict, Counter), _mapping),
    (_origin_in(set, frozenset, Set, MutableSet), _set),
    (_origin_in(list, tuple, Sequence, MutableSequence, Iterable, Collection, Container, Reversible), _sequence),
    (_is_fixed_tuple, _fixed_tuple),
    (cols.is_namedtuple, _named_tuple),
    (lambda annotation: isinstance(annotation, type) and issubclass(annotation, enum.Enum), _enum),
    (_origin_in(typing.Literal), _literal),
    (_origin_in(typing.Union, types.UnionType), _union),
):
    converter.register_structure_hook_factory(_predicate, _factory)

# cattrs asks these before any predicate, also for their subclasses, so that an IntEnum too comes to `_scalar`.
for _base in _BASES:
    converter.register_structure_hook(_base, lambda value, annotation: _scalar(annotation)(value, annotation))
converter.register_structure_hook(Path, lambda value, annotation: _instance(annotation)(value, annotation))
for _kind in (types.NoneType, date, datetime):  # exactly: a datetime is no date
    converter.register_structure_hook(_kind, _exact)
