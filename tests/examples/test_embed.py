"""The programs that embed an executor: each is run as its user runs it, killed, stopped, and run again."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from examples.embed import web_app
from tinyllm import DatabaseLocked, GraphBuilder, SQLiteCheckpointStorage

ROOT = Path(__file__).parents[2]
EMBED = ROOT / "examples" / "embed"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program of `examples/embed`, in a process of its own that does not outlive the test."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TINYLLM_STORAGE": str(tmp_path / "store")}

    def start(*words: str | Path) -> subprocess.Popen[str]:
        program, *arguments = words
        command = [sys.executable, EMBED / program, *arguments]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, and a pipe that keeps whoever reads it waiting until the test writes to it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("once upon\n\na time")
    (folder / "b").write_text("there was")
    os.mkfifo(folder / "z")
    return folder


def wait_for(stream: Any, pattern: str) -> None:
    assert any(re.search(pattern, line) for line in stream), f"it ended, and never said {pattern!r}"


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = process.communicate()
    return process.returncode, out, err


# -- asyncio ---------------------------------------------------------------------------------------------------


def manifest(folder: Path, **contents: str) -> str:
    return "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {folder / name}\n" for name, text in contents.items())


def test_the_asyncio_program_killed_goes_on_and_then_returns_what_is_recorded(start: Start, folder: Path) -> None:
    command = ("asyncio_program.py", "t", folder)
    killed = start(*command)
    wait_for(killed.stderr, ": 3 steps are recorded")  # the list, and two files
    killed.kill()
    killed.wait()
    wanted = manifest(folder, a="once upon\n\na time", b="there was", z="the end")
    for name in "ab":
        (folder / name).unlink()  # whoever reads them again fails

    again = start(*command)
    (folder / "z").write_text("the end")

    assert ended(again)[:2] == (0, wanted)
    assert ended(start(*command))[:2] == (0, wanted)  # nobody writes to the pipe: it would wait for ever


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_asyncio_program_stopped_lets_what_runs_finish(start: Start, folder: Path, number: int) -> None:
    command = ("asyncio_program.py", "t", folder)
    stopped = start(*command)
    wait_for(stopped.stderr, ": 3 steps are recorded")
    stopped.send_signal(number)
    wait_for(stopped.stderr, "stopping")
    (folder / "z").write_text("the end")

    code, out, err = ended(stopped)

    assert (code, out) == (130, "")
    assert "t: stopped at step 4; the same line goes on" in err
    assert ended(start(*command))[0] == 0


def test_the_asyncio_program_tries_once_more_what_failed(start: Start, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "target")
    command = ("asyncio_program.py", "t", tmp_path / "folder")

    code, out, err = ended(start(*command))
    assert (code, out) == (1, "")
    assert err.count("trying again") == 1
    assert "error: trace 't' failed in node 'digest' after step 1: FileNotFoundError" in err

    (tmp_path / "target").write_text("it is there now")
    assert ended(start(*command))[:2] == (0, manifest(tmp_path / "folder", link="it is there now"))


# -- trio ------------------------------------------------------------------------------------------------------


def test_the_trio_program_killed_counts_no_file_twice(start: Start, folder: Path) -> None:
    command = ("trio_program.py", folder / "a", folder / "b", folder / "z")
    killed = start(*command)
    assert killed.stdout is not None
    counted = {killed.stdout.readline(), killed.stdout.readline()}
    killed.kill()
    killed.wait()
    assert counted == {f"4 {folder / 'a'}\n", f"2 {folder / 'b'}\n"}
    for name in "ab":
        (folder / name).unlink()

    again = start(*command)
    (folder / "z").write_text("the end")
    code, out, _ = ended(again)
    assert (code, set(out.splitlines(keepends=True))) == (0, {*counted, f"2 {folder / 'z'}\n"})

    code, out, _ = ended(start(*command))
    assert (code, set(out.splitlines(keepends=True))) == (0, {*counted, f"2 {folder / 'z'}\n"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_trio_program_stopped_lets_what_runs_finish(start: Start, folder: Path, number: int) -> None:
    command = ("trio_program.py", folder / "a", folder / "z")
    stopped = start(*command)
    wait_for(stopped.stdout, "^4 ")
    stopped.send_signal(number)
    wait_for(stopped.stderr, "stopping")
    (folder / "z").write_text("the end")

    assert ended(stopped)[:2] == (130, "")
    (folder / "z").unlink()  # it was read, and that is recorded
    code, out, _ = ended(start(*command))
    assert (code, set(out.splitlines())) == (0, {f"4 {folder / 'a'}", f"2 {folder / 'z'}"})


def test_the_trio_program_goes_on_when_one_file_fails(start: Start, folder: Path) -> None:
    command = ("trio_program.py", folder / "gone", folder / "a")

    code, out, err = ended(start(*command))
    assert (code, out) == (1, f"4 {folder / 'a'}\n")
    assert "failed in node 'paragraphs'" in err

    (folder / "gone").write_text("here it is")
    code, out, _ = ended(start(*command))
    assert (code, set(out.splitlines())) == (0, {f"4 {folder / 'a'}", f"3 {folder / 'gone'}"})


@pytest.mark.parametrize("program", ["asyncio_program.py", "trio_program.py"])
def test_a_program_without_arguments_says_how_to_run_it(start: Start, program: str) -> None:
    code, _, err = ended(start(program))
    assert code == 1
    assert f"python examples/embed/{program} " in err


# -- the web ---------------------------------------------------------------------------------------------------


class Model:
    """Answers in capitals, but `slow` only once `open` is set; `broken` breaks it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reached = anyio.Event()
        self.open = anyio.Event()

    async def __call__(self, paragraph: str) -> str:
        self.asked.append(paragraph)
        if paragraph == "slow":
            self.reached.set()
            await self.open.wait()
        if paragraph == "broken":
            raise RuntimeError("the model is out of order")
        return paragraph.upper()


class Site:
    """A client of the app, in the same event loop."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def post(self, **order: Any) -> httpx.Response:
        return await self.client.post("/traces", json=order)

    async def get(self, trace_id: str) -> dict[str, Any]:
        response = await self.client.get(f"/traces/{trace_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def get_when(self, trace_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        with anyio.fail_after(20):
            while not holds(state := await self.get(trace_id)):
                await anyio.lowlevel.checkpoint()
        return state

    async def outcome(self, trace_id: str) -> dict[str, Any]:
        return await self.get_when(trace_id, lambda state: state["status"] in ("completed", "failed"))


@asynccontextmanager
async def site(path: Path, model: Model) -> AsyncIterator[Site]:
    """The app, from its start to its shutdown."""
    app = web_app.create_app(SQLiteCheckpointStorage(path), model)
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        yield Site(http)


async def stored(path: Path, trace_id: str) -> tuple[str, int]:
    """Status and step, as the store has them."""
    storage = SQLiteCheckpointStorage(path)
    await storage.initialize()
    record = await storage.trace(trace_id)
    await storage.close()
    assert record is not None
    return record.status, record.step


@pytest.mark.anyio
async def test_a_post_begins_a_trace_and_a_get_tells_what_became_of_it(tmp_path: Path) -> None:
    model = Model()
    async with site(tmp_path, model) as web:
        response = await web.post(text="a\n\nslow\n\nb")
        trace_id = response.json()["trace_id"]
        assert (response.status_code, response.headers["location"]) == (202, f"/traces/{trace_id}")
        running = await web.get_when(trace_id, lambda state: state["step"] == 3)
        assert running == {"trace_id": trace_id, "status": "running", "step": 3}
        model.open.set()

        assert await web.outcome(trace_id) == {
            "trace_id": trace_id,
            "status": "completed",
            "step": 5,
            "result": {"summary": "A SLOW B", "paragraphs": 3},
        }


@pytest.mark.anyio
async def test_the_same_request_may_be_sent_again_at_any_time(tmp_path: Path) -> None:
    model, codes = Model(), list[int]()
    async with site(tmp_path, model) as web:

        async def post(text: str) -> None:
            codes.append((await web.post(text=text, id="mine")).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(post, "slow")
        await model.reached.wait()
        await post("slow")
        await post("another")
        model.open.set()
        await web.outcome("mine")
        await post("slow")
        await post("another")

    assert codes == [202, 202, 202, 202, 409, 202, 409]
    assert model.asked == ["slow"]


@pytest.mark.anyio
async def test_of_several_texts_sent_at_the_same_time_under_one_id_one_is_accepted(tmp_path: Path) -> None:
    codes = list[int]()
    async with site(tmp_path, Model()) as web:

        async def post(text: str) -> None:
            codes.append((await web.post(text=text, id="mine")).status_code)

        async with anyio.create_task_group() as tasks:
            for text in ("this", "that", "these"):
                tasks.start_soon(post, text)

    assert sorted(codes) == [202, 409, 409]


@pytest.mark.anyio
async def test_a_trace_that_failed_tells_its_error_and_is_not_tried_again_by_itself(tmp_path: Path) -> None:
    model = Model()
    for _ in range(2):
        async with site(tmp_path, model) as web:
            assert (await web.post(text="broken", id="mine")).status_code == 202
            assert await web.outcome("mine") == {
                "trace_id": "mine",
                "status": "failed",
                "step": 1,
                "error": {"type": "RuntimeError", "message": "the model is out of order", "node_id": "summarize"},
            }
    assert model.asked == ["broken"]


@pytest.mark.anyio
async def test_a_shutdown_interrupts_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_app, "GRACE_SECONDS", 0)
    async with site(tmp_path, Model()) as web:
        await web.post(text="a\n\nslow\n\nb", id="mine")
        await web.get_when("mine", lambda state: state["step"] == 3)
    assert await stored(tmp_path, "mine") == ("interrupted", 3)

    model = Model()
    model.open.set()
    async with site(tmp_path, model) as web:
        outcome = await web.outcome("mine")

    assert outcome["result"] == {"summary": "A SLOW B", "paragraphs": 3}
    assert model.asked == ["slow"], "what was recorded ran again"


@pytest.mark.anyio
async def test_a_shutdown_gives_what_runs_the_time_to_end(tmp_path: Path) -> None:
    model = Model()

    async def answer() -> None:
        model.open.set()

    async with anyio.create_task_group() as tasks, site(tmp_path, model) as web:
        await web.post(text="slow", id="mine")
        await model.reached.wait()
        tasks.start_soon(answer)  # begins when this task first waits: in the shutdown

    assert await stored(tmp_path, "mine") == ("interrupted", 2)


KILLED = """
import os, signal, sys
import anyio, httpx
from examples.embed import web_app
from tinyllm import SQLiteCheckpointStorage

async def main():
    app = web_app.create_app(SQLiteCheckpointStorage(sys.argv[1]), lambda _: anyio.sleep_forever())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app")
    async with app.router.lifespan_context(app), client:
        response = await client.post("/traces", json={"text": "a", "id": "mine"})
        assert response.status_code == 202
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.anyio
async def test_what_was_accepted_survives_a_kill_at_that_moment(tmp_path: Path, anyio_backend: str) -> None:
    killed = await anyio.run_process(
        [sys.executable, "-c", KILLED, tmp_path, anyio_backend], cwd=ROOT, check=False, stderr=None
    )
    assert killed.returncode == -signal.SIGKILL

    async with site(tmp_path, Model()) as web:
        assert (await web.outcome("mine"))["result"] == {"summary": "A", "paragraphs": 1}


@pytest.mark.anyio
async def test_a_trace_that_cannot_go_on_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(web_app, "GRACE_SECONDS", 0)
    graph = web_app.GRAPH
    other = GraphBuilder(graph.id).node(web_app.summarize).build()
    for trace_id, version in (("old", other), ("new", graph)):
        model = Model()
        monkeypatch.setattr(web_app, "GRAPH", version)
        async with site(tmp_path, model) as web:
            await web.post(text="slow", id=trace_id)
            await model.reached.wait()
    model = Model()
    model.open.set()

    async with site(tmp_path, model) as web:
        assert (await web.outcome("new"))["status"] == "completed"
        assert (await web.get("old"))["status"] == "interrupted"

    assert "trace old does not go on" in caplog.text
    assert "GraphChanged" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"not json", "malformed"),
        (b'{"text": "\xff"}', ""),
        (b"{}", "missing required field `text`"),
        (b'{"text": 1}', "Expected `str`, got `int`"),
        (b'{"text": "a", "ID": "b"}', "unknown field `ID`"),
        (b'{"text": "a", "id": "../b"}', "begin with a letter or a digit"),
    ],
)
async def test_a_body_that_is_wrong_is_422_and_begins_nothing(tmp_path: Path, body: bytes, why: str) -> None:
    async with site(tmp_path, Model()) as web:
        response = await web.client.post("/traces", content=body)
    assert response.status_code == 422
    assert why in response.json()["error"]


@pytest.mark.anyio
async def test_what_is_not_there_is_404_and_a_wrong_method_405(tmp_path: Path) -> None:
    async with site(tmp_path, Model()) as web:
        answers = [await web.client.get(path) for path in ("/traces/none", "/elsewhere", "/traces")]
    assert [answer.status_code for answer in answers] == [404, 404, 405]
    assert answers[0].json() == {"error": "there is no trace 'none'"}
    assert all(answer.json()["error"] for answer in answers)


@pytest.mark.anyio
async def test_a_store_that_does_not_answer_is_503_and_the_client_learns_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def locked(*_: Any) -> None:
        raise DatabaseLocked(str(tmp_path), 5)

    async with site(tmp_path, Model()) as web:
        monkeypatch.setattr(SQLiteCheckpointStorage, "trace", locked)
        answers = [await web.client.get("/traces/mine"), await web.post(text="a", id="mine")]
        monkeypatch.undo()

    assert [answer.status_code for answer in answers] == [503, 503]
    assert not any(str(tmp_path) in answer.text for answer in answers)
    assert str(tmp_path) in caplog.text


# -- the notebook ----------------------------------------------------------------------------------------------


def shown(cell: str, names: dict[str, Any]) -> Any:
    """What a notebook would show of a cell: the value of its last line, if that is an expression."""
    *body, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        body.append(last)
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.anyio
async def test_the_notebook_runs_in_a_loop_that_runs_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EMBED / "notebook.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    executor, first, total, failed = [
        shown("".join(cell["source"]), names) for cell in notebook["cells"] if cell["cell_type"] == "code"
    ]

    assert repr(executor) == "<Executor of 'squares', storage: traces>"
    assert '"sum": 14' in first._repr_markdown_()
    assert total == 14
    assert repr(failed).startswith("<TaskResponse 'typo' failed, 0 steps: ValueError in 'numbers'")


def test_the_notebook_is_as_its_format_wants_it_and_without_outputs() -> None:
    notebook = json.loads((EMBED / "notebook.ipynb").read_text(encoding="utf-8"))
    assert notebook.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in ids)
    for cell in notebook["cells"]:
        code: dict[str, Any] = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert cell["cell_type"] in ("code", "markdown")
        assert cell == {
            "cell_type": cell["cell_type"],
            "id": cell["id"],
            "metadata": {},
            "source": cell["source"],
            **code,
        }
