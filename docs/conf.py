"""How `make docs` builds the pages: from what is in this clone, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from tinyllm import __version__

project = "tinyllm"
version = release = __version__
html_title = f"tinyllm {__version__}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "docstrings", "graph_keys"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext"]
nitpicky = True  # a name that leads nowhere is a fault; `docstrings` says of which names that holds
nitpick_ignore_regex = [
    ("py:class", r"tinyllm\..+\.[A-Z]"),  # a type variable
    ("py:class", r"tinyllm\.graph\.node\.NodeFunction"),  # what a graph makes of a function; of no use outside
    ("py:class", r"tinyllm\.storage\.records\.StoredState"),  # a dict, as soon as it is looked at
]

myst_heading_anchors = 3
smartquotes_action = "D"  # dashes only: quotes are mostly those of code

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autoclass_content = "both"  # what `__init__` says comes after what the class says
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
