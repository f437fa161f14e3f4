"""similar(): what agents write is found by the words they would use, and what is not there is not."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.read import sidecar
from recollect.recall import text
from recollect.recall.terms import words
from tests.support import python

SCHEMA = rc.Schema(
    {
        "note": rc.Text(optional=True),
        "info": rc.Json(optional=True),
        "observation": rc.Tensor("float32", (2,)),
        "uid": rc.Tensor("int64"),
    },
    episode={"task": rc.Text(), "tags": rc.Json()},
)
PROBES = [
    ("http_client.py", "Traceback in src/net/http_client.py, line 42"),
    ("src/net/http_client.py", "see src/net/http_client.py for the retry loop"),
    ("ConnectionResetError", "raised ConnectionResetError: [Errno 104] Connection reset by peer"),
    ("connection reset", "raised ConnectionResetError while reading"),
    ("E1234", "build failed with E1234 in module parser"),
    ("ERR_CONN_RESET", "chrome says ERR_CONN_RESET again"),
    ("getUserName", "def getUserName(self): return self.user"),
    ("user name", "def getUserName(self): return self.user"),
    ("2024-03-01T10:22:07", "2024-03-01T10:22:07 worker-3 WARN queue is full"),
    ("worker-3", "2024-03-01T10:22:07 worker-3 WARN queue is full"),
    ("10.0.0.17:8080", "dial tcp 10.0.0.17:8080: i/o timeout"),
    ("numpy.linalg.norm", "used numpy.linalg.norm(x, axis=1)"),
    ("v1.2.3", "upgraded the gateway to v1.2.3 yesterday"),
    ("検索", "日本語のテキストを検索する"),
    ("數據庫", "我們的數據庫壞了"),
    ("한국어", "이것은 한국어 문장입니다"),
    ("naive", "a naïve approach failed badly"),
    ("payment gateway refused", "the payment gateway refused the card"),
]
UNRELATED = [
    "banana bread recipe",
    "gardening tulips in spring",
    "quarterly revenue of the shipping division",
    "ZX-81 manual",
    "犬と猫",
    "of the and is",
    "",
    "...",
]
VOCABULARY = [f"{a}{b}" for a in ("al", "be", "co", "du", "en") for b in ("ter", "min", "ra", "lo", "vex", "nt", "po")]


def _fill(writer: rc.Writer, rows: int, first: int = 0) -> None:
    rng = random.Random(rows)
    with writer.episode() as episode:
        for uid in range(first, first + rows):
            note = " ".join(rng.choice(VOCABULARY) for _ in range(10)) + f" line{uid}"
            episode.append(note=note, observation=np.zeros(2, np.float32), uid=uid)


@pytest.fixture(params=[0, 60, 4000])
def workspace(request: pytest.FixtureRequest) -> Any:
    """Nothing, a little, or a lot beside the row that is looked for."""
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer(durability="process") as writer:
            if request.param:
                _fill(writer, request.param)
        yield ws


def _index(ws: rc.Workspace) -> text.TextIndex:
    return ws._text_index()


def test_code_paths_ids_logs_and_cjk_are_found(workspace: rc.Workspace) -> None:
    ws = workspace
    with ws.writer(durability="process") as writer, writer.episode() as episode:
        for k, (query, note) in enumerate(PROBES):
            id = episode.append(note=note, observation=np.zeros(2, np.float32), uid=10_000 + k)
            hits = ws.similar(query)
            assert id in hits.ids, query
            assert len(hits.scores) == len(hits) and list(hits.scores) == sorted(hits.scores, reverse=True)
        for query in UNRELATED:
            assert not len(ws.similar(query)), query


def test_one_row_alone_is_found_and_only_when_meant() -> None:
    for k, (query, note) in enumerate(PROBES):
        with rc.create_workspace(f"w{k}", SCHEMA) as ws, ws.writer(durability="process").episode() as episode:
            id = episode.append(note=note, observation=np.zeros(2, np.float32), uid=0)
            assert ws.similar(query).ids == [id], query
            for other in UNRELATED:
                assert not len(ws.similar(other)), other


def test_half_a_query_is_not_enough(workspace: rc.Workspace) -> None:
    """One word of many that happens to be there is no match; an identifier that is there whole is one."""
    with workspace.writer(durability="process").episode() as episode:
        id = episode.append(note="the gateway said E1234", observation=np.zeros(2, np.float32), uid=9)
    assert not len(workspace.similar("how to paint a garden gateway in summer colours"))
    assert workspace.similar("why E1234").ids == [id]
    assert not len(workspace.similar("1234 apples"))


def test_words_in_json_and_in_facts_are_found() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        step: dict[str, Any] = {"observation": np.zeros(2, np.float32)}
        with writer.episode(id="first", task="repair the turbine") as episode:
            ids = [episode.append(**step, uid=k, info={"deep": [{"why": "bearing overheated"}, 7]}) for k in range(3)]
        with writer.episode(id="second", tags=["lubricant"]) as other:
            last = other.append(**step, uid=3, terminated=True)
        assert set(ws.similar("bearing overheated").ids) == set(ids)
        assert ws.similar("turbine").ids == [ids[-1]]
        assert ws.similar("lubricant").ids == [last]
        assert not len(ws.similar("first"))
        ws.annotate("second", lesson="always cool the flywheel before touching it")
        assert ws.similar("cool flywheel").ids == [last]
        ws.annotate(ids[1], note="marked by an inspector")
        hits = ws.similar("inspector")
        assert hits.ids == [ids[1]] and hits[0]["note"] == "marked by an inspector"
        assert hits[0].episode_id == "first"


def test_a_row_is_found_by_the_next_query_of_any_process() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, rc.open_workspace("w") as other, ws.writer().episode() as episode:
        for k in range(40):
            id = episode.append(note=f"token{k}x arrived", observation=np.zeros(2, np.float32), uid=k)
            reader = (ws, other)[k % 2]
            assert reader.similar(f"token{k}x").ids == [id]


def test_k_bounds_the_hits_and_a_step_comes_once() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode() as episode:
        for k in range(30):
            row: dict[str, Any] = {"note": "purple elephant", "info": ["purple elephant"], "uid": k}
            id = episode.append(observation=np.zeros(2, np.float32), **row)
        ws.annotate(id, note="purple elephant again")
        for k in (1, 5, 100):
            hits = ws.similar("purple elephant", k)
            assert len(hits) == min(k, 30) == len(set(hits.ids))


@pytest.mark.parametrize("query", [np.zeros(3), [0.1, 0.2], None, 5, b"bytes"])
def test_what_is_no_text_is_refused_with_what_is_supported(query: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, pytest.raises(errors.ArgumentError, match="takes text"):
        ws.similar(query)


def test_bad_counts_and_empty_workspaces() -> None:
    with rc.create_workspace("none") as ws:
        assert not len(ws.similar("anything"))
    with rc.create_workspace("w", SCHEMA) as ws:
        assert not len(ws.similar("anything"))
        for k in (0, -1, 1.5):
            with pytest.raises(errors.ArgumentError, match="at least 1"):
                ws.similar("anything", k)  # type: ignore[arg-type]


def _damage(kind: str, path: Path) -> None:
    data = path.read_bytes()
    if kind == "deleted":
        path.unlink()
    elif kind == "half":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "noise":
        path.write_bytes(data[:4096] + random.Random(1).randbytes(len(data) - 4096))
    elif kind == "text":
        path.write_bytes(b"no database\n" * 1000)
    else:
        statement = {
            "another format": "UPDATE identity SET value = '0' WHERE place = 0",
            "another boot": "UPDATE identity SET value = '0' WHERE place = 1",
            "too far": "UPDATE writers SET rows = rows + 1000",
            "no documents": "DROP TABLE documents",
            "places of text": "UPDATE documents SET seq = 'x'",
        }[kind]
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()


@pytest.mark.parametrize(
    "kind",
    ["deleted", "half", "noise", "text", "another format", "another boot", "too far", "no documents", "places of text"],
)
@pytest.mark.parametrize("opened", ["before", "after"])
def test_whatever_happens_to_the_file_the_next_query_finds_all(kind: str, opened: str) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        _fill(writer, 300)
        assert ws.similar("line123")[0]["uid"] == 123
        path = _index(ws).file.path
        if opened == "after":
            _index(ws).file.close()
        _damage(kind, path)
        reader = ws if opened == "before" else rc.open_workspace("w")
        _fill(writer, 5, first=1000)
        for uid in (0, 123, 299, 1003):
            assert [s["uid"] for s in reader.similar(f"line{uid}")] == [uid]
        assert _index(reader).catch_up(reader.cut())
        assert _index(reader).compare(reader.cut()) is None
        reader.close()


SEARCHER = """
import sys
import recollect as rc
from recollect.recall import text
text.BATCH = 50
ws = rc.open_workspace("w")
print([s["uid"] for s in ws.similar(sys.argv[1])])
"""


def test_processes_that_search_together_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        _fill(writer, 900)
        children = [python(SEARCHER, f"line{uid}") for uid in (3, 450, 899)]
        assert [child.communicate(timeout=60)[0] for child in children] == ["[3]\n", "[450]\n", "[899]\n"]
        assert _index(ws).catch_up(ws.cut())
        assert _index(ws).compare(ws.cut()) is None


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("held", ["lock", "exclusive"])
def test_a_stopped_process_hides_nothing(indexed: bool, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PATIENCE_S", 0.05)
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        _fill(writer, 200)
        if indexed:
            ws.similar("anything at all")
        code = f"""
import sqlite3, time
import recollect as rc
file = rc.open_workspace("w")._text_index().file
lock = file._lock()
connection = sqlite3.connect(file.path, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE") if {held == "exclusive"} else None
print("held", flush=True)
time.sleep(600)
"""
        child = python(code)
        try:
            assert child.stdout is not None and child.stdout.readline() == "held\n"
            os.kill(child.pid, signal.SIGSTOP)
            _fill(writer, 20, first=500)
            for uid in (7, 199, 510):
                assert [s["uid"] for s in ws.similar(f"line{uid}")] == [uid]
        finally:
            os.kill(child.pid, signal.SIGCONT)
            child.kill()
            child.communicate()
        monkeypatch.setattr(sidecar, "PAUSE_S", 0.0)
        fresh = rc.open_workspace("w")
        assert [s["uid"] for s in fresh.similar("line510")] == [510]
        assert _index(fresh).catch_up(fresh.cut())


def test_terms() -> None:
    (word,) = words("src/net/HttpClient.py:")
    assert word.whole == "src/net/httpclient.py" and word.is_identifier
    assert set(word.parts) == {"src", "net", "httpclient", "http", "client", "py"}
    assert [w.whole for w in words("日本語 abc")] == ["日本", "本語", "abc"]
    assert [w.terms for w in words("Naïve?!")] == [("naive",)]
    assert words("-- ... __") == []
    assert all(len(t) <= 128 for w in words("x" * 5000) for t in w.terms)
