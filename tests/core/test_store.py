"""Store paths, trace ids and references to traces."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.core.store import check_trace_id, find_trace, new_trace_id, open_storage, opened_storage, storage_path
from tinyllm.errors import AmbiguousTrace, ConfigError, StoreMissing, TraceNotFound
from tinyllm.storage.contract import Admit, Admitted, Counts, Delta, Marks
from tinyllm.storage.memory import InMemoryCheckpointStorage

pytestmark = pytest.mark.anyio


def admission(trace_id: str) -> Admit:
    first = Delta(trace=0, epoch=0, number=0, step=0, status="running", marks=Marks(), counts=Counts())
    return Admit(
        trace_id=trace_id,
        graph_id="survey",
        graph_version="1.0.0",
        fingerprint="f",
        definition=json.dumps({}).encode(),
        graph_path=None,
        task_digest="d",
        owner=None,
        first=first,
    )


@pytest.fixture
async def storage() -> AsyncIterator[InMemoryCheckpointStorage]:
    store = InMemoryCheckpointStorage()
    await store.initialize()
    for trace_id in ("demo", "demo-2", "survey-7k3mq", "survey-8xyza", "other"):
        (outcome,) = await store.commit([admission(trace_id)])
        assert isinstance(outcome, Admitted)
    yield store
    await store.close()


# -- the path --------------------------------------------------------------------------------------------------


def test_path_is_the_option_then_the_environment_then_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("TINYLLM_STORAGE", raising=False)
    assert storage_path() == Path("/somewhere/.tinyllm/data")
    monkeypatch.setenv("TINYLLM_STORAGE", "~/mine")
    assert storage_path() == Path("/somewhere/mine")
    assert storage_path("given") == Path("given")
    monkeypatch.setenv("TINYLLM_STORAGE", "")
    assert storage_path() == Path("/somewhere/.tinyllm/data")


async def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="no store at"):
        open_storage(tmp_path / "typo", must_exist=True)
    assert not (tmp_path / "typo").exists()


async def test_opened_storage_is_ready_and_is_found_again(tmp_path: Path) -> None:
    async with opened_storage(tmp_path / "store") as store:
        assert await store.traces() == []
    async with opened_storage(tmp_path / "store", must_exist=True) as store:
        assert await store.traces() == []


# -- references ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "found"),
    [("demo", "demo"), ("demo-", "demo-2"), ("survey-7", "survey-7k3mq"), ("o", "other"), ("@last", "other")],
)
async def test_reference_is_an_id_a_unique_prefix_or_last(
    storage: InMemoryCheckpointStorage, reference: str, found: str
) -> None:
    assert (await find_trace(storage, reference)).trace_id == found


async def test_prefix_of_several_names_them(storage: InMemoryCheckpointStorage) -> None:
    with pytest.raises(AmbiguousTrace) as caught:
        await find_trace(storage, "survey")
    assert sorted(caught.value.matches) == ["survey-7k3mq", "survey-8xyza"]


async def test_many_matches_are_cut(storage: InMemoryCheckpointStorage) -> None:
    await storage.commit([admission(f"many-{number}") for number in range(9)])
    with pytest.raises(AmbiguousTrace) as caught:
        await find_trace(storage, "many")
    assert len(caught.value.matches) == 6
    assert caught.value.matches[-1] == "..."


@pytest.mark.parametrize(("reference", "near"), [("survey-7k3np", "survey-7k3mq"), ("dmeo", "demo")])
async def test_unknown_trace_names_near_ones_and_the_store(
    storage: InMemoryCheckpointStorage, reference: str, near: str
) -> None:
    with pytest.raises(TraceNotFound) as caught:
        await find_trace(storage, reference)
    assert near in caught.value.near
    assert storage.name in str(caught.value)


@pytest.mark.parametrize("reference", ["", "zzz", "%", "_", "DEMO-"])
async def test_what_is_no_prefix_is_not_found(storage: InMemoryCheckpointStorage, reference: str) -> None:
    with pytest.raises(TraceNotFound):
        await find_trace(storage, reference)


async def test_last_of_an_empty_store_is_not_found() -> None:
    store = InMemoryCheckpointStorage()
    await store.initialize()
    with pytest.raises(TraceNotFound, match="@last"):
        await find_trace(store, "@last")
    await store.close()


# -- ids -------------------------------------------------------------------------------------------------------


@given(st.text(max_size=300))
def test_new_ids_are_valid_and_begin_with_the_graph(graph_id: str) -> None:
    trace_id = new_trace_id(graph_id)
    assert check_trace_id(trace_id) == trace_id
    assert re.fullmatch(r".+-[2-9a-hj-km-np-z]{5}", trace_id)


def test_new_ids_differ_and_keep_the_graph_id() -> None:
    ids = {new_trace_id("survey.all") for _ in range(200)}
    assert len(ids) == 200
    assert all(trace_id.startswith("survey.all-") for trace_id in ids)


@pytest.mark.parametrize("text", ["a", "A9", "survey-7k3mq", "a.b_c-d", "x" * 128])
def test_valid_ids(text: str) -> None:
    assert check_trace_id(text) == text


@pytest.mark.parametrize("text", ["", "-a", ".a", "@last", "a b", "a/b", "a\n", "é", "x" * 129])
def test_invalid_ids_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="trace_id"):
        check_trace_id(text)
