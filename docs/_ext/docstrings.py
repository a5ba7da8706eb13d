"""Reads the docstrings and the help of tinyllm: plain text, with names and code in single backticks.

A backticked name that the reference has becomes a link to it; all else in backticks is code.
"""

from __future__ import annotations

import builtins
import re
from typing import Any

import click
from docutils import nodes, utils
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole

LENIENT = "tinyllm-lenient"


class _Code(XRefRole):
    """The default role. `~`, `!` and `<...>` have no meaning in it, since they may be part of the code."""

    def create_xref_node(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.refdomain, self.reftype = "py", "obj"
        self.title = self.target = utils.unescape(self.text)
        return super().create_xref_node()

    def process_link(
        self,
        env: BuildEnvironment,
        refnode: nodes.Element,
        has_explicit_title: bool,  # noqa: ARG002 (sphinx's signature)
        title: str,
        target: str,
    ) -> tuple[str, str]:
        refnode["py:module"] = env.ref_context.get("py:module")
        refnode["py:class"] = env.ref_context.get("py:class")
        refnode[LENIENT] = True
        return title, target.removesuffix("()")


def _missing(_app: Sphinx, _env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Names without a place in the reference stay text, where that is no fault: code, and types that are not ours."""
    name = node["reftarget"]
    ours = name.startswith("tinyllm.") or (node["reftype"] == "exc" and not hasattr(builtins, name))
    return content if node.get(LENIENT) or (node.get("refdomain") == "py" and not ours) else None


def _tidy(*described: Any) -> tuple[str, str] | None:
    """`NOTHING` is how attrs shows a default that is made anew each time; a protocol is not called."""
    signature, returns = described[-2:]
    if signature == "(*args, **kwargs)":
        return "", ""
    return (signature.replace("=NOTHING", "=..."), returns) if signature else None


def _options(_app: Sphinx, _context: click.Context, lines: list[str]) -> None:
    """In help, an option stands as it is typed; outside of backticks, it would be read as a dash."""
    pattern = re.compile(r"^ *\.\. .*$|`[^`]*`|(?<!\S)(?P<option>--[a-z-]+)", re.MULTILINE)
    text = pattern.sub(lambda match: f"``{match[0]}``" if match["option"] else match[0], "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("code-or-name", _Code(innernodeclass=nodes.literal))
    app.config.default_role = "code-or-name"
    app.connect("missing-reference", _missing)
    app.connect("autodoc-process-signature", _tidy)
    for part in ("description", "options", "epilog"):
        app.connect(f"sphinx-click-process-{part}", _options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
