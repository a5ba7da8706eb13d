"""pydantic models as annotations: pydantic judges them, strictly. Nothing here imports it before the user does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tinyllm.graph.hooks import Hook, converter, hook_of
from tinyllm.graph.misfit import Misfit, at, name_of, unknown_keys, wrong


def _is_model(annotation: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return bool(pydantic and isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel))


def _model(annotation: Any) -> Hook:
    """Strict pydantic takes only instances of enums and dataclasses, so members are structured first."""
    pydantic = sys.modules["pydantic"]
    fields = annotation.model_fields
    hooks: dict[str, Callable[[Any], Any]] = {}
    for name, field in fields.items():
        try:
            hooks[name] = hook_of(field.annotation)
        except TypeError:  # a type of pydantic's own
            continue
    aliases = {field.alias for field in fields.values() if field.alias is not None}
    options: dict[str, Any] = {"strict": True} | ({"by_name": True, "by_alias": True} if aliases else {})
    open_ended = annotation.model_config.get("extra") == "allow"

    def convert(value: Any, _: Any) -> Any:
        is_root = issubclass(annotation, pydantic.RootModel)
        given = {"root": value} if is_root else value
        if type(given) is not dict:
            raise wrong(value, name_of(annotation))
        if not open_ended and (unknown := given.keys() - fields.keys() - aliases):
            raise Misfit("", unknown_keys(unknown, annotation))
        members, misfits = dict(given), []
        for name in [name for name in hooks if name in given]:
            try:
                members[name] = hooks[name](given[name])
            except Exception as error:  # pydantic may yet take it: it knows more types than we do
                misfits.append(at("" if is_root else f".{name}", error))
        try:
            return annotation.model_validate(members["root"] if is_root else members, **options)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise (misfits[0] if misfits else Misfit(path, first["msg"])) from error

    return convert


converter.register_structure_hook_factory(_is_model, _model)
