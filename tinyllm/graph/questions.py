"""What a node asks, how that is recorded with its activation, and which answers fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import attrs
import msgspec

from tinyllm.errors import AnswerRefused, TinyLLMError, ValueNotStorable
from tinyllm.graph.ids import activation_id
from tinyllm.graph.redact import Redaction
from tinyllm.graph.values import capture, reads, restore


@attrs.frozen(kw_only=True)
class Question:
    """A question that waits for an answer. `schema` is a JSON Schema; None: any storable value will do."""

    trace_id: str
    node_id: str
    activation_id: str
    name: str
    prompt: str
    schema: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """What tells it from all others of its trace: two activations may ask under the same name."""
        return f"{self.node_id}.{self.activation_id[:8]}.{self.name}"


@attrs.frozen
class Asked:
    """One question of an activation, as it is recorded. `answer`: a captured value, None while it waits."""

    name: str
    prompt: str
    schema: Mapping[str, Any] | None
    answer: bytes | None = None


def waiting(trace_id: str, node_id: str, causal: bytes, asked: Sequence[Asked]) -> Question | None:
    """What an activation waits to be told: the last that it asked, unless that has an answer."""
    if not asked or (last := asked[-1]).answer is not None:
        return None
    return Question(
        trace_id=trace_id,
        node_id=node_id,
        activation_id=activation_id(trace_id, causal).hex(),
        name=last.name,
        prompt=last.prompt,
        schema=last.schema,
    )


def answered(asked: Sequence[Asked], body: bytes) -> tuple[Asked, ...]:
    """`asked`, when that has its answer."""
    return (*asked[:-1], attrs.evolve(asked[-1], answer=body))


def redacted(asked: Asked, redaction: Redaction) -> Asked:
    """`asked` as it may be recorded and told."""
    schema = restore(attrs.evolve(redaction, names=None).body(capture(asked.schema)))
    return attrs.evolve(asked, prompt=redaction.text(asked.prompt), schema=schema)


def encode_asked(asked: Sequence[Asked]) -> bytes:
    return capture([[a.name, a.prompt, a.schema, None if a.answer is None else a.answer.decode()] for a in asked])


@reads("a list of questions")
def decode_asked(body: bytes | None) -> list[Asked]:
    if body is None:
        return []
    found = []
    for name, prompt, schema, answer in restore(body):
        if not (isinstance(name, str) and isinstance(prompt, str) and isinstance(schema, Mapping | None)):
            raise TypeError("a name or a prompt is no text, or a schema no dict")
        found.append(Asked(name, prompt, schema, None if answer is None else answer.encode()))
    return found


def schema_of(wanted: Any, path: str) -> Mapping[str, Any] | None:
    """The JSON Schema of an annotation; a dict is one already.

    :raises ValueNotStorable: there is none.
    """
    if wanted is None or wanted is Any:
        return None
    if isinstance(wanted, Mapping):
        return wanted
    try:
        return msgspec.json.schema(wanted)
    except (TypeError, RuntimeError) as error:
        reason = f"there is no JSON Schema for {wanted!r} ({error}); give one as a dict, or ask without a schema"
        raise ValueNotStorable(path, reason) from None


def check_answer(question: Question, value: Any, redaction: Redaction | None = None) -> bytes:
    """The captured answer; redacted when it was found to fit, by the question's name too.

    :raises AnswerRefused: it does not fit the question's schema.
    :raises ValueNotStorable: it cannot be recorded.
    """
    body = capture(value, f"answer to {question.name!r}")
    if question.schema is not None:
        import fastjsonschema  # only where somebody asked for a certain answer

        try:
            _validator(capture(question.schema))(value)
        except fastjsonschema.JsonSchemaValueException as error:
            raise AnswerRefused(question.id, error.message.replace("data", "it", 1)) from None
        except (ArithmeticError, RecursionError, TypeError, ValueError) as error:  # a multiple of 0, a `$ref` to itself
            raise AnswerRefused(question.id, f"its schema cannot be applied to it ({error})") from None
    return body if redaction is None else redaction.body(body, question.name)


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> Any:
    import fastjsonschema

    try:
        # Nothing is filled in, and nothing is fetched from where a `$ref` points.
        return fastjsonschema.compile(restore(schema), handlers=_FetchesNothing(), use_default=False)
    except TinyLLMError:
        raise
    except Exception as error:  # what it raises of a schema that is none may be anything
        raise ValueNotStorable("schema", f"is no JSON Schema: {str(error) or type(error).__name__}") from None


class _FetchesNothing(dict[str, Any]):
    """By scheme, what fetches that to which a `$ref` points. What is not in it, `file:` too, the library would."""

    def __contains__(self, scheme: object) -> bool:
        return True

    def __getitem__(self, scheme: str) -> Any:
        return _refuse_to_fetch


def _refuse_to_fetch(uri: str) -> Any:
    raise ValueNotStorable("schema", f"refers to {uri}, and nothing is fetched for it; write that part out")
