"""The house: what `tinyllm` exports, where each name lives, what is pinned and what the wheel holds."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tinyllm

ROOT = Path(__file__).parents[1]


def modules() -> list[str]:
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "tinyllm").rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__")


def test_every_room_is_a_package() -> None:
    rooms = {path.parent for path in (ROOT / "tinyllm").rglob("*.py")}
    assert [room for room in rooms if not (room / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", modules())
def test_every_module_imports_alone(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or hasattr(module, "__path__"), f"{name} does not say what it is"


def test_every_public_name_is_there_and_listed_once() -> None:
    assert sorted(set(tinyllm.__all__)) == sorted(tinyllm.__all__)
    missing = [name for name in tinyllm.__all__ if not hasattr(tinyllm, name)]
    assert not missing
    assert set(tinyllm.__all__) <= set(dir(tinyllm))


def test_every_error_that_a_user_meets_is_public() -> None:
    errors = importlib.import_module("tinyllm.errors")
    kinds = [x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, tinyllm.TinyLLMError)]
    assert [kind.__name__ for kind in kinds if getattr(tinyllm, kind.__name__, None) is not kind] == []


PROMISED = [
    "tinyllm.core.builder:load_graph",
    "tinyllm.core.checkpoint:CheckpointConfig",
    "tinyllm.core.checkpoint:CheckpointManager",
    "tinyllm.core.context:ExecutionContext",
    "tinyllm.core.executor:Executor",
    "tinyllm.core.executor:ExecutorConfig",
    "tinyllm.core.graph:Graph",
    "tinyllm.core.message:ErrorInfo",
    "tinyllm.core.message:Message",
    "tinyllm.core.message:MessagePayload",
    "tinyllm.core.message:TaskPayload",
    "tinyllm.core.message:TaskResponse",
    "tinyllm.persistence.interface:CheckpointRecord",
    "tinyllm.persistence.interface:CheckpointStorage",
    "tinyllm.persistence.interface:StorageConfig",
    "tinyllm.persistence.memory_backend:InMemoryCheckpointStorage",
    "tinyllm.persistence.sqlite_backend:SQLiteCheckpointStorage",
]


@pytest.mark.parametrize("place", PROMISED)
def test_promised_paths_lead_to_the_public_object(place: str) -> None:
    module, _, name = place.partition(":")
    assert getattr(importlib.import_module(module), name) is getattr(tinyllm, name)


def test_importing_tinyllm_is_cheap() -> None:
    """Each of these costs a start that most commands do not need to pay."""
    code = "import sys, tinyllm, tinyllm.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"trio", "rich", "sqlite_utils", "sqlite3", "pysqlite3"} & set(loaded) == set()


# -- packaging -------------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line) for line in lines]
    assert all(matches), "constraints.txt holds a name and a version in each line, and nothing else"
    return {match[1]: match[2] for match in matches if match}


def closure(requirement: Requirement, found: dict[str, str]) -> None:
    """Add every installed distribution that `requirement` leads to, by its canonical name."""
    distribution = importlib.metadata.distribution(requirement.name)
    found[canonicalize_name(requirement.name)] = distribution.version
    for text in distribution.requires or ():
        needed = Requirement(text)
        wanted = not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in {"", *requirement.extras})
        if wanted and (needed.extras or canonicalize_name(needed.name) not in found):
            closure(needed, found)


def test_constraints_pin_all_that_is_installed() -> None:
    found: dict[str, str] = {}
    closure(Requirement("tinyllm-runtime[dev]"), found)
    del found["tinyllm-runtime"]
    found.pop("pip", None)  # comes with Python
    assert found == {name: version for name, version in pins().items() if name in found}
    assert sorted(found) == sorted(pins())


def test_the_version_stands_in_one_place_and_in_the_changelog() -> None:
    assert importlib.metadata.version("tinyllm-runtime") == tinyllm.__version__
    assert re.search(rf"^## \[{re.escape(tinyllm.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what the repository holds, unpacked."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target], cwd=ROOT, check=True)
    (built,) = target.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target / "unpacked")
    return target / "unpacked"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    inside = {path.relative_to(wheel).parts[0] for path in wheel.rglob("*") if path.is_file()}
    assert inside == {"tinyllm", f"tinyllm_runtime-{tinyllm.__version__}.dist-info"}
    assert (wheel / "tinyllm" / "py.typed").is_file()
    sources = {path.relative_to(ROOT) for path in (ROOT / "tinyllm").rglob("*.py")}
    assert {path.relative_to(wheel) for path in wheel.rglob("*.py")} == sources


def test_the_wheel_runs_the_survey_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "survey", tmp_path / "survey", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(wheel), "TINYLLM_STORAGE": str(tmp_path / "store")}

    def run(*command: str) -> str:
        finished = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return finished.stdout

    assert run("-c", "import tinyllm; print(tinyllm.__file__)").strip() == str(wheel / "tinyllm" / "__init__.py")
    code = "from tinyllm.cli.main import main; main()"
    assert "7 files by complexity" in run("-c", code, "run", "survey/survey.yaml", "--task", "survey")
    assert (tmp_path / "survey-report" / "report.md").is_file()
