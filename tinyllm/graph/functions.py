"""Finding the functions that a graph calls, in the files that it names.

A file is loaded by its path, under a module name that nothing else has, so that graphs in different folders do not
disturb each other. A file in a package (its folder has an `__init__.py`) is imported as what it is, so that the program
around it sees the same classes. `import helpers` finds `helpers.py` beside the file, as in a script, but `sys.path` is
as before when the file has been loaded.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import attrs

from tinyllm.errors import GraphError
from tinyllm.graph.definition import Lifespan
from tinyllm.graph.findings import Finding, Path, did_you_mean, near
from tinyllm.graph.node import LIFESPAN, MARK, NodeFunction


@attrs.frozen(kw_only=True)
class Library:
    """The functions that a graph may call."""

    functions: Mapping[str, NodeFunction] = attrs.field(factory=dict)
    refused: Mapping[str, str] = attrs.field(factory=dict)
    """Functions that are there but are no node functions: why not, by name."""
    complete: bool = True
    """Whether every file could be loaded. If not (which is a finding), a function may be missing for that alone."""
    remedy: str = ""
    """What to do about a function that is not here."""
    lifespan: Lifespan | None = None


def collect(names: Sequence[str], folder: str) -> tuple[Library, list[Finding]]:
    """Load the files `names`, which are relative to `folder` and inside it, and gather their node functions and their
    lifespan function."""
    findings: list[Finding] = []
    found: dict[str, tuple[str, NodeFunction]] = {}
    refused: dict[str, str] = {}
    lifespans: list[_LifespanIn] = []
    seen: set[str] = set()
    complete = True
    for index, name in enumerate(names):
        at: Path = ("functions", index)
        try:
            path = _inside(folder, name)
            if path in seen:
                raise GraphError(f"`{name}` is listed twice")
            seen.add(path)
            module = _load(path)
        except GraphError as error:
            findings.append(Finding(at, str(error)))
            complete = False
            continue
        for attribute, value in vars(module).items():
            if not callable(value) or inspect.isclass(value):
                continue
            here = getattr(value, "__module__", None) == module.__name__
            if getattr(value, LIFESPAN, None) is True:
                lifespans.append(_LifespanIn(at, name, value, here))
                refused[attribute] = "is a lifespan function, and no node function"
            elif not isinstance(getattr(value, MARK, None), dict):
                if here:
                    refused[attribute] = f"is not decorated with `@node` ({_place(value)})"
            elif not here:
                refused[attribute] = f"is imported into {name}; list the file that defines it in `functions`"
            else:
                try:
                    function = NodeFunction.of(value)
                except Exception as error:  # annotations are the user's expressions, and raise what they like
                    refused[attribute] = f"cannot be a node ({_place(value)}): {error}"
                    continue
                other, same = found.setdefault(function.name, (name, function))
                if same.call is not value:
                    both = f"both {other} and {name}" if other != name else f"{name} twice"
                    rename = 'rename one, or give it another name: `@node(name="...")`'
                    findings.append(Finding(at, f"function `{function.name}` is in {both}; {rename}"))
    lifespan, wrong = _the_lifespan(lifespans)
    findings += wrong
    library = Library(
        functions={name: function for name, (_, function) in found.items()},
        refused=refused,
        complete=complete,
        remedy=f"define it in {' or '.join(names)}, decorated with `@node`"
        if names
        else "name the file that defines it: `functions: [nodes.py]`",
        lifespan=lifespan,
    )
    return library, findings


@attrs.frozen
class _LifespanIn:
    """A lifespan function as a file has it; `here`: defined there, not imported."""

    at: Path
    file: str
    function: Any
    here: bool


def _the_lifespan(found: Sequence[_LifespanIn]) -> tuple[Lifespan | None, list[Finding]]:
    """The one that is defined in these files. Imported ones do not count: the files they are from may be listed too."""
    defined = list({id(each.function): each for each in found if each.here}.values())
    if len(defined) > 1:
        first, second, *_ = defined
        both = " and ".join(f"`{each.function.__name__}` ({_place(each.function)})" for each in (first, second))
        return None, [
            Finding(second.at, f"{both} are both lifespan functions, and a graph has one; let one use the other")
        ]
    if found and not defined:
        imported = found[0]
        name = imported.function.__name__
        message = f"lifespan function `{name}` is imported into {imported.file}; list the file that defines it"
        return None, [Finding(imported.at, message)]
    return (defined[0].function if defined else None), []


def locate(function: NodeFunction) -> tuple[str, str]:
    """The file and qualified name by which a worker process loads `function`.

    :raises GraphError: if there are none: a lambda, a nested function, one typed into a shell or notebook.
    """
    call: Any = function.call
    qualname = getattr(call, "__qualname__", "")
    module = sys.modules.get(getattr(call, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    if module is None or path is None or module.__name__ == "__main__":
        where = "the script that is being run" if path else "a shell or notebook"
        raise GraphError(
            f"a worker process cannot load `{function.name}` from {where}; "
            "move it into a Python file of its own, and import it from there"
        )
    if "<" in qualname or _resolve(module, qualname) is not call:
        raise GraphError(
            f"a worker process cannot load `{function.name}` from {path}; "
            "make it a function with a name of its own at the top level of that file"
        )
    return os.path.abspath(path), qualname


@cache  # a worker calls it for every activation, and must not mix two versions of a file
def load(path: str, qualname: str) -> Callable[..., Any]:
    """The function that `locate` named.

    :raises GraphError: if the file cannot be loaded, or no longer has that function.
    """
    function = _resolve(_load(path), qualname)
    if not callable(function):
        raise GraphError(f"{path} has no function `{qualname}` any more; put it back, or change the graph")
    return function  # type: ignore[no-any-return]


def _resolve(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _inside(folder: str, name: str) -> str:
    """The real path of a functions file.

    :raises GraphError: if it is not a Python file inside `folder`.
    """
    if "\0" in name:
        raise GraphError(f"{name!r} is no file name")
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath([root, path]) != root:
        raise GraphError(f"`{name}` is outside of the graph's folder, {root}; move it (or the graph) there")
    if not os.path.exists(path):
        beside = [entry for entry in os.listdir(root) if entry.endswith(".py")]
        raise GraphError(f"there is no file `{name}` in {root}{did_you_mean(near(name, beside))}")
    if not os.path.isfile(path) or not path.endswith(".py"):
        raise GraphError(f"`{name}` is not a Python file; name one that ends in .py")
    return path


# -- loading ---------------------------------------------------------------------------------------------------

_loaded: dict[str, tuple[bytes, ModuleType]] = {}
"""By path: the digest of the source it was loaded from, and the module."""


def _load(path: str) -> ModuleType:
    """The module of a file; the same one again unless the file has changed.

    :raises GraphError: in one line, if it cannot be read or raises while it is imported.
    """
    try:
        with open(path, "rb") as file:
            source = file.read()
        if (package := _package(path)) is not None:
            root, name = package
            with _importable(root, os.path.dirname(path)):
                return importlib.import_module(name)
        digest = blake2b(source).digest()
        known = _loaded.get(path)
        if known is None or known[0] != digest:
            known = _loaded[path] = (digest, _execute(path, source))
        return known[1]
    except GraphError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module raises is a fault of the file
        raise GraphError(f"{os.path.basename(path)} cannot be imported: {_reason(error, path)}") from error


def _execute(path: str, source: bytes) -> ModuleType:
    folder, base = os.path.split(path)
    parent = f"_tinyllm_{blake2b(folder.encode(), digest_size=6).hexdigest()}"
    name = f"{parent}.{base.removesuffix('.py').replace('.', '_')}"
    # Compiled here, not by the import system: its cache would take an edit within the same second for no change.
    code = compile(source, path, "exec", dont_inherit=True)
    _refuse_clashes(path, source)
    if parent not in sys.modules:  # the package that `from . import helpers` looks in
        sys.modules[parent] = ModuleType(parent)
        sys.modules[parent].__path__ = [folder]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        with _importable(folder):
            exec(code, vars(module))
    except BaseException:
        del sys.modules[name]
        if previous is not None:
            sys.modules[name] = previous
        raise
    return module


def _package(path: str) -> tuple[str, str] | None:
    """For a file in a package: the folder that holds the outermost package, and the module's dotted name."""
    folder, base = os.path.split(path)
    parts = [base.removesuffix(".py")]
    while os.path.exists(os.path.join(folder, "__init__.py")):
        folder, base = os.path.split(folder)
        parts.insert(0, base)
    if len(parts) == 1 or not all(part.isidentifier() for part in parts):
        return None
    outermost = sys.modules.get(parts[0])
    places = [os.path.realpath(place) for place in getattr(outermost, "__path__", ())]
    if outermost is not None and os.path.join(os.path.realpath(folder), parts[0]) not in places:
        return None  # another package has that name here
    return folder, ".".join(parts)


@contextmanager
def _importable(*folders: str) -> Iterator[None]:
    """Look for modules in `folders`: first while the block lasts, and ever after where nothing else has them.

    The second is for a function that imports when it is called.
    """
    sys.path[:0] = folders
    _beside.folders = [*folders, *(folder for folder in _beside.folders if folder not in folders)]
    if _beside not in sys.meta_path:
        sys.meta_path.append(_beside)
    importlib.invalidate_caches()  # a file written a moment ago must be seen
    try:
        yield
    finally:
        for folder in folders:  # what the imported file itself put into sys.path stays
            if folder in sys.path:
                sys.path.remove(folder)


class _Beside(MetaPathFinder):
    """Finds modules beside functions files."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol's
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, self.folders) if path is None else None


_beside = _Beside()


def _refuse_clashes(path: str, source: bytes) -> None:
    """Python keeps one module per name: what `import helpers` would give must not be that of another folder."""
    folder = os.path.dirname(path)
    for statement in ast.walk(ast.parse(source)):
        match statement:
            case ast.Import(names=names):
                wanted = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                wanted = [module]
            case _:
                continue
        for name in {dotted.partition(".")[0] for dotted in wanted}:
            here = (os.path.join(folder, f"{name}.py"), os.path.join(folder, name, "__init__.py"))
            other = getattr(sys.modules.get(name), "__file__", None)
            if other and any(map(os.path.isfile, here)) and os.path.realpath(other) not in map(os.path.realpath, here):
                raise GraphError(
                    f"{os.path.basename(path)}:{statement.lineno} imports `{name}`, but another `{name}` is already "
                    f"loaded from {other}; write `from . import {name}`, or rename the one beside the graph"
                )


# -- messages --------------------------------------------------------------------------------------------------


def _place(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code else type(function).__name__


def _reason(error: BaseException, path: str | None = None) -> str:
    """An exception in one line, with the place in the user's files where it came from."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        text = error.msg
        file, line = error.filename, error.lineno
    else:
        folder = os.path.join(os.path.dirname(path), "") if path else None
        frames = [f for f in traceback.extract_tb(error.__traceback__) if folder and f.filename.startswith(folder)]
        file, line = (frames[-1].filename, frames[-1].lineno) if frames else (None, None)
    at = f" ({os.path.basename(file)}:{line})" if file else ""
    return f"{type(error).__name__}: {text}{at}" if text else f"{type(error).__name__}{at}"
