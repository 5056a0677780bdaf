"""What the demo page serves and refuses (lbdt_jax/demo/gate.py, storage.py and server.py), as a hostile client sees it.

Instead of Gradio's application, most tests use one that notes what reaches it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import gradio as gr
import httpx
import pytest
from demo_files import LIMITS

from input_pipeline.errors import UserError
from lbdt_jax.demo import __main__ as command
from lbdt_jax.demo import gate, page, server, storage
from lbdt_jax.demo.gate import Gate
from lbdt_jax.demo.storage import Storage

SESSION = "a1b2c3"
PAGE = "http://127.0.0.1:7860"
UPLOAD, JOIN, FILE = "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/file="
SEGMENT, SLIDE = 1, 2  # the indices of events, without examples


class Visit:
    """A gate in front of an application that notes requests, and a client of it."""

    def __init__(self, blocks: gr.Blocks, root: Path) -> None:
        self.storage = Storage(root, LIMITS)
        self.reached: list[tuple[dict[str, Any], Any]] = []
        self.gate = Gate(self.note, blocks, self.storage, LIMITS, "127.0.0.1")

    async def note(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        body = (await receive())["body"]
        self.reached.append((scope, json.loads(body) if body else None))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"access-control-allow-origin", b"*")]})
        await send({"type": "http.response.body", "body": b"passed"})

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def request() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.gate), base_url=PAGE) as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(request())

    def upload(self, content: bytes = b"clip", name: str = "a.mp4", **arguments: Any) -> httpx.Response:
        return self.request("POST", UPLOAD, files={"files": (name, content)}, **arguments)

    def ask(self, clip: Any, text: Any = "the dog", **more: Any) -> httpx.Response:
        event = {"fn_index": SEGMENT, "session_hash": SESSION, "data": [clip, text, None], **more}
        return self.request("POST", JOIN, content=json.dumps(event), headers={"content-type": "application/json"})

    def files(self) -> list[Path]:
        return [path for path in self.storage.root.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> gr.Blocks:
    model: Any = SimpleNamespace(checkpoint=SimpleNamespace(config=SimpleNamespace(dataset="")))
    kept = Storage(tmp_path_factory.mktemp("root"), LIMITS)

    async def build() -> gr.Blocks:  # without a running event loop, Gradio opens some and leaves them open
        return page.build(model, kept, LIMITS, [], threading.Event())

    return asyncio.run(build())


@pytest.fixture
def visit(blocks: gr.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Visit:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "root" / "temporary"))
    return Visit(blocks, tmp_path / "root")


def test_of_all_routes_of_gradio_the_page_needs_eight(visit: Visit, blocks: gr.Blocks) -> None:
    def paths(routes: Any) -> Iterator[str]:
        for route in routes:
            yield getattr(route, "path", "")
            # The name of a router in a router changed with the version of FastAPI.
            yield from paths(getattr(getattr(route, "original_router", route), "routes", None) or [])

    values = {
        "path:path": "x.js",
        "session_hash": SESSION,
        "api_name": "segment",
        "path_or_url:path": "http://127.0.0.1/",
    }

    async def make_app() -> Any:
        return page.make_app(blocks, LIMITS)

    routes = set(paths(asyncio.run(make_app()).routes))
    assert len(routes) > 60
    passed = set()
    for route in sorted(routes):
        filled = route
        for name, value in values.items():
            filled = filled.replace("{" + name + "}", value)
        filled = "/" + filled.replace("{", "").replace("}", "").lstrip("/")
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
            visit.reached.clear()
            response = visit.request(method, filled, headers={"content-type": "application/json"}, content=b"{}")
            if visit.reached:
                passed.add((method, filled))
                assert visit.reached[0][0]["query_string"] == b"" and visit.reached[0][1] is None
            elif filled in (UPLOAD, JOIN):
                assert response.status_code in (400, 404, 415)
            else:
                assert response.status_code == (403 if "file=" in filled and method in ("GET", "HEAD") else 404), filled
    assert {path for _, path in passed} == {
        "/",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/assets/x.js",
        "/static/x.js",
        f"/gradio_api/heartbeat/{SESSION}",
        "/gradio_api/queue/data",
    }
    assert {method for method, path in passed} == {"GET", "HEAD"} and ("HEAD", "/theme.css") not in passed


def test_events_are_rewritten(visit: Visit) -> None:
    clip = visit.upload().json()[0]
    sent = {"path": clip, "url": "http://10.0.0.1/", "orig_name": "../x", "is_stream": True, "meta": {"_type": "x"}}
    more = {"event_data": {"a": 1}, "trigger_id": 10**6, "batched": True, "oauth_token": "x", "simple_format": True}
    headers_sent = {"cookie": "a=b", "x-forwarded-host": "evil.example", "authorization": "x"}
    assert visit.ask(sent, **more).text == "passed"
    scope, event = visit.reached[-1]
    data = [{"path": clip, "orig_name": "a.mp4", "meta": {"_type": "gradio.FileData"}}, "the dog", None]
    expected = {"fn_index": SEGMENT, "session_hash": SESSION, "data": data, "event_data": None, "trigger_id": None}
    assert event == expected
    for index, data, expected_data in [(SEGMENT, [None, None, 5], [None, "", None]), (SLIDE, [5, None], [None, 0])]:
        body = json.dumps({"fn_index": index, "session_hash": SESSION, "data": data})
        visit.request("POST", JOIN, content=body, headers={"content-type": "application/json"})
        assert visit.reached[-1][1]["data"] == expected_data  # Gradio fails at null in a text or number field
    visit.request("GET", "/?deep_link=x&__theme=dark", headers=headers_sent)
    assert {name for name, _ in visit.reached[-1][0]["headers"]} <= {b"host", b"accept", b"accept-encoding"}
    assert visit.reached[-1][0]["query_string"] == b""


@pytest.mark.parametrize(
    "path", ["http://127.0.0.1:1/a.mp4", "/etc/passwd", "{clip}/../../../../x", "", "\0", "a" * 5000]
)
def test_no_clip_comes_from_elsewhere(visit: Visit, path: str) -> None:
    path = path.format(clip=visit.upload().json()[0])
    for clip in ({"path": path, "url": path}, {"url": path}, path, [path], {"path": {"path": path}}, {"path": [path]}):
        assert visit.ask(clip).status_code == 400
    assert visit.request("GET", FILE + quote(path)).status_code == 403
    assert not visit.reached


def test_malformed_events(visit: Visit) -> None:
    good = {"fn_index": SEGMENT, "session_hash": SESSION, "data": [None, "a", None]}
    bodies = ["", "[]", "{", "null", "[" * 10000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff"]
    changes: list[dict[str, Any]] = [{"fn_index": index} for index in (99, True, "1", None, [])]
    changes += [{"session_hash": session} for session in (None, "", "../x", "a" * 65, 5)]
    changes += [{"data": data} for data in ([], [None, "a", None, None], "abc", None, {"a": 1})]
    clips = [5, "a", [], {}]
    texts = [{"path": "/etc/passwd"}, ["a"], "\ud800", float("nan"), 10**400]
    changes += [{"data": [clip, "a", None]} for clip in clips] + [{"data": [None, text, None]} for text in texts]
    changes += [{"fn_index": SLIDE, "data": [None, index]} for index in ("3", "x", True, [1])]
    bodies += [json.dumps(good | change) for change in changes]
    for body in bodies:
        response = visit.request("POST", JOIN, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, body
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"):
        response = visit.request("POST", JOIN, content=json.dumps(good), headers={"content-type": content_type})
        assert response.status_code == 415
    assert visit.ask(None, "a" * gate.MAX_EVENT_BYTES).status_code == 413
    assert not visit.reached and not visit.files()


OTHER_PAGES = [
    {"host": "evil.example"},
    {"host": "localhost.evil.example:7860"},
    {"host": "127.0.0.1:7860@evil.example"},
    {"host": "192.168.1.5:7860"},
    {"host": ""},
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1:3000"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
]


@pytest.mark.parametrize("headers", OTHER_PAGES, ids=str)
def test_requests_of_other_pages_are_refused(visit: Visit, headers: dict[str, str]) -> None:
    for method, path in [("GET", "/"), ("GET", "/theme.css"), ("GET", f"{FILE}/x"), ("POST", JOIN), ("OPTIONS", "/")]:
        assert visit.request(method, path, headers=headers).status_code == 403
    assert visit.upload(headers=headers).status_code == 403
    assert not visit.reached and not visit.files()


def test_requests_of_the_page_itself_are_served(visit: Visit) -> None:
    for host in ("127.0.0.1:7860", "localhost:9999", "LOCALHOST", "[::1]:7860", "127.0.0.2"):
        own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert visit.upload(headers=own).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert visit.request("GET", "/", headers=link).status_code == 200
    assert visit.upload(headers=link).status_code == visit.request("GET", "/theme.css", headers=link).status_code == 403


def test_names_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Machine-1")  # a real one may be localhost
    machine = "machine-1"
    for served, own, others in [
        ("127.0.0.1", ["127.0.0.1", "localhost", "[::1]"], ["0.0.0.0", "10.0.0.1", "a.example", machine]),
        ("0.0.0.0", ["127.0.0.1", "localhost", "10.0.0.1", "[fe80::1]", machine, f"{machine}.local"], ["a.example"]),
        ("a.example", ["a.example", "A.EXAMPLE", "10.0.0.1", "localhost"], ["b.a.example", "example", "a.example."]),
    ]:
        assert all(gate.is_own_name(name, served) for name in own)
        assert not any(gate.is_own_name(name, served) for name in others)


def test_every_answer_has_headers_against_framing_and_sniffing(visit: Visit) -> None:
    shown = visit.storage.sent / ("a" * 64) / "shown.png"
    download = shown.with_name("page.html")
    shown.parent.mkdir()
    shown.write_bytes(b"0123456789")
    download.write_text("<script>alert(1)</script>")
    answers = [visit.request("GET", "/"), visit.request("GET", "/none"), visit.upload(), visit.upload(bytes(200_000))]
    picture = visit.request("GET", f"{FILE}{shown}", headers={"range": "bytes=2-4"})
    assert picture.content == b"234" and picture.headers["content-type"] == "image/png"
    page_answer = visit.request("GET", f"{FILE}{download}")
    assert page_answer.headers["content-disposition"].startswith("attachment")
    assert page_answer.headers["content-type"] == "application/octet-stream"
    for answer in [*answers, picture, page_answer]:
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
    assert "sandbox" in page_answer.headers["content-security-policy"]
    clip = visit.storage.uploads / os.listdir(visit.storage.uploads)[0] / "a.mp4"
    link = shown.with_name("link.png")
    link.symlink_to("/etc/hostname")
    private = [
        clip,
        link,
        shown.parent,
        visit.storage.sent / "x",
        visit.storage.root / "a.mp4",
    ]
    assert visit.storage.find(f"{shown.parent}/../{shown.parent.name}/page.html") is None
    for path in private:
        assert visit.request("GET", f"{FILE}{path}").status_code == 403


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("my clip-1_(2).mp4", "my clip-1_(2).mp4"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\a.mp4", "a.mp4"),
        ("/abs/.hidden", "hidden"),
        ("..", "clip"),
        ("\0\n<b>$%22;", "b22"),
        ("犬の動画.mp4", "犬の動画.mp4"),
        ("犬" * 300 + ".mp4", "犬" * 53 + ".mp4"),
        ("a." + "b" * 300, "a." + "b" * 15),
    ],
)
def test_names_of_uploads_are_no_paths(tmp_path: Path, name: str, kept: str) -> None:
    assert storage.safe_name(name) == kept
    (tmp_path / storage.safe_name(name)).touch()


# Starlette leaves it to Python to close the file of an upload that breaks off.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_uploads_are_limited(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visit.upload(bytes(LIMITS.bytes)).status_code == 200
    assert visit.upload(bytes(LIMITS.bytes + 1)).status_code == 413

    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\n'
        while True:
            yield bytes(50_000)

    async def slow() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\nabc'
        await asyncio.sleep(60)

    async def broken() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\n' + bytes(70_000)

    monkeypatch.setattr(gate, "BODY_SECONDS", 0.1)
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for body, status in ((endless(), 413), (slow(), 408), (broken(), 400)):
        assert visit.request("POST", UPLOAD, content=body, headers=kind).status_code == status
    two = [("files", ("a", b"1")), ("files", ("b", b"2"))]
    for wrong in (
        {"files": two},
        {"files": {"other": b"1"}},
        {"files": two[:1], "data": {"a": "b"}},
        {"content": b"x"},
    ):
        assert visit.request("POST", UPLOAD, **wrong).status_code in (400, 415)
    with monkeypatch.context() as busy:
        busy.setattr(gate, "MAX_UPLOADS_AT_ONCE", 0)
        assert visit.upload().status_code == 503
    assert len(visit.files()) == 1  # of all these, the first

    # All together, in bytes and in number; what is a minute old makes room.
    monkeypatch.setattr(storage, "MAX_FILES_OF_LIMIT", 3)
    assert [visit.upload(bytes(LIMITS.bytes)).status_code for _ in range(3)] == [200, 200, 503]
    for folder in visit.storage.uploads.iterdir():
        os.utime(folder, (time.time() - 61,) * 2)
    monkeypatch.setattr(storage, "MAX_UPLOADS", 2)
    assert [visit.upload().status_code for _ in range(3)] == [200, 200, 503]
    assert len(visit.files()) == 2


def test_old_files_are_deleted(tmp_path: Path) -> None:
    kept = Storage(tmp_path / "link", LIMITS)
    made = {
        name: kept.root / name for name in ("sent/part", "sent/old", "sent/new", "results/old", "results/unfinished")
    }
    for name, folder in made.items():
        if name == "sent/old":
            kept.keep_all()
        folder.mkdir()
        (folder / ("result.zip" if name == "results/old" else "a")).touch()
        if name != "sent/new":
            os.utime(folder, (1.0, 1.0))
    kept.tidy()
    assert {name for name, folder in made.items() if folder.exists()} == {"sent/part", "sent/new", "results/unfinished"}


@pytest.mark.parametrize(
    "arguments",
    [
        "--host=",
        "--host=http://a",
        "--host=a b",
        "--host=a/b",
        "--port=0",
        "--port=70000",
        "--port=-1",
        "--port=x",
        "--port=",
    ],
)
def test_bad_addresses_are_refused_at_once(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.arguments().parse_args([arguments])
    assert f"argument {arguments.partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "192.0.2.1", "::g"])
def test_addresses_of_other_machines_are_refused(host: str) -> None:
    with pytest.raises((UserError, SystemExit)):
        server.listen(command.arguments().parse_args([f"--host={host}"]).host, 1)


@pytest.mark.parametrize(
    ("host", "opened"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost"), ("::", "localhost"), ("::1", "[::1]"), ("a", "a")],
)
def test_what_to_open(host: str, opened: str) -> None:
    assert server.address(host, 7860) == f"http://{opened}:7860/"


def test_connections_that_ask_nothing_are_closed(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a real port: heads that come too slowly, and too large ones; all connections end with the server."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    started = b"GET / HTTP/1.1\r\nhost: localhost\r\n"

    async def run() -> list[bytes]:
        listener = server.listen("127.0.0.1", 0)  # the server closes it
        port, running = listener.getsockname()[1], server.make_server(visit.gate, threading.Event())
        task = asyncio.create_task(running.serve(sockets=[listener]))

        async def talk(*parts: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.1)
            try:
                return await asyncio.wait_for(reader.read(), 5)
            except ConnectionError:
                return b"closed"
            finally:
                writer.close()

        answers = await asyncio.gather(
            talk(),
            talk(started, b"a", b"a", b"a"),
            talk(started + b"a: " + bytes(100_000)),
            talk(started + b"connection: close\r\n\r\n"),
        )
        running.should_exit = True
        await asyncio.wait_for(task, 5)
        return answers

    silent, slow, large, good = asyncio.run(run())
    assert {silent, slow} <= {b"", b"closed"} and b"400" in large + b"400" and b"passed" in good
