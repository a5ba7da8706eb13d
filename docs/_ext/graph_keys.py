"""The directive `graph-keys`: a table of the keys that a part of a graph file takes, from the rules that check them.

    ```{graph-keys} EDGE
    from_node: the node that it leaves
    to_node: the node that it leads to
    ```

It names the `Keys` in `tinyllm.graph.schema`, and says in a sentence what each key means; what a key takes is read from
its rule, and its default from the attrs class of the same name. A key without a sentence, a sentence without a key,
and `Keys` that no page shows are faults.
"""

from __future__ import annotations

import json
import re

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from tinyllm.graph import definition, schema
from tinyllm.graph.durations import duration_text
from tinyllm.graph.schema import Keys, Rule

SENTENCE = re.compile(r"^(\w+): (.+(?:\n +.+)*)", re.MULTILINE)


def all_keys() -> dict[str, Keys]:
    """Every `Keys` of the schema that has a key, as the directive names it: `EDGE`, `CONFIG.function`."""
    found = {}
    for name, value in vars(schema).items():
        if isinstance(value, Keys):
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": part for key, part in value.items() if isinstance(part, Keys)}
    return {name: keys for name, keys in found.items() if keys.rules}


def takes(rule: Rule) -> str:
    """What a rule wants, in the words in which it refuses all else: "must be a list, not ..."; empty if it has none."""
    wanted = (re.search(r"must be (.+?), not ", finding.message) for finding in rule(object(), ()))
    return next((match[1] for match in wanted if match), "")


def default(name: str, key: str, rule: Rule) -> str:
    """A key's default as a graph file says it; empty where that is to leave it out: the sentence says what it means."""
    shape = getattr(definition, name.capitalize(), None)
    field = attrs.fields_dict(shape).get(key) if shape else None
    if field is None or not isinstance(field.default, str | int | float):
        return ""
    value = field.default
    if isinstance(value, float):  # a number, or seconds, which a file writes as `5m`: what the rule lets pass
        return f"`{duration_text(value) if any(rule(value, ())) else format(value, 'g')}`"
    return f"`{json.dumps(value)}`"


class GraphKeys(SphinxDirective):
    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        keys = all_keys().get(name)
        if keys is None:
            raise self.error(f"the schema has no keys {name!r}; it has {', '.join(all_keys())}")
        text = "\n".join(self.content)
        sentences = dict(SENTENCE.findall(text))
        if rest := SENTENCE.sub("", text).strip():
            raise self.error(f"{rest!r} is no `key: sentence`; a sentence goes on in indented lines")
        if missing := [key for key in keys.rules if key not in sentences]:
            raise self.error(f"{keys.noun} takes {', '.join(missing)}: say here what that means")
        if unknown := [key for key in sentences if key not in keys.rules]:
            raise self.error(f"{keys.noun} takes no {', '.join(unknown)}: take out what is said of it here")
        self.env.metadata[self.env.docname].setdefault("graph-keys", []).append(name)
        rows = [("key", "takes", "default", "meaning"), ("---",) * 4]
        for key, rule in keys.rules.items():
            given = "required" if key in keys.required else default(name, key, rule)
            rows.append((f"`{key}`", takes(rule), given, " ".join(sentences[key].split())))
        return self.parse_text_to_nodes("\n".join(f"| {' | '.join(row)} |" for row in rows))


def _check(_app: Sphinx, env: BuildEnvironment) -> None:
    shown = {name for page in env.metadata.values() for name in page.get("graph-keys", ())}
    if missing := sorted(all_keys().keys() - shown):
        raise ExtensionError(f"no page has a `graph-keys` block for {', '.join(missing)} of the schema")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("graph-keys", GraphKeys)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
