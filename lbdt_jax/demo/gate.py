"""What stands between the network and Gradio: it lets the requests pass that the page makes, and nothing else.

Gradio serves some eighty routes, some of which fetch any address or bypass the queue. The gate is a list of what is
served, so that a route which a new version of Gradio adds is closed. It receives uploads and sends files itself, and
rewrites the events that it passes on: a clip is one that was uploaded here, and everything else is a text or a number.
Requests by other names than those of this machine, or from other sites' pages, are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import mimetypes
import re
import socket
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import quote, urlencode

import gradio as gr
from anyio import to_thread
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from input_pipeline.errors import UserError
from lbdt_jax.demo.checks import Limits
from lbdt_jax.demo.storage import Storage
from lbdt_jax.demo.work import EXPIRED_CLIP

MAX_EVENT_BYTES = 2**18  # the body of an event, which names its clip
MAX_UPLOADS_AT_ONCE = 8
BODY_SECONDS = 20  # at most between two parts of a body ...
UPLOAD_SECONDS = 600  # ... and for all of them

_API = "/gradio_api"
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The page and its parts; the connections that tell Gradio which visitors are there, and visitors what happens.
_PASSED = re.compile(
    r"/|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/(?!.*\.\.)[\w./-]+"
    rf"|{_API}/heartbeat/{_SESSION.pattern}|{_API}/queue/data"
)
_PASSED_HEADERS = {b"host", b"accept", b"accept-encoding", b"if-none-match", b"if-modified-since"}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_SHOWN = ("image/jpeg", "image/png", "image/webp", "video/mp4")  # all other files are downloads

# Gradio's scripts and styles are partly inline, and its HTML components are templates that the browser evaluates.
# The browser loads nothing from elsewhere, and no other page may frame this one.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Gate:
    """An ASGI application in front of Gradio's.

    Args:
      app: serves `page`.
      page: has the events that visitors may trigger.
      storage: keeps uploads, and what visitors are shown.
      limits: what a visitor may upload.
      host: the address that the page is served at, as the user gave it.
    """

    def __init__(self, app: ASGIApp, page: gr.Blocks, storage: Storage, limits: Limits, host: str) -> None:
        self._app, self._page, self._storage, self._limits, self._host = app, page, storage, limits, host
        self._uploads = 0  # at this moment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websocket is needed
        request = Request(scope, receive)
        try:
            check_origin(request, self._host)
            app = await self._route(request)
        except UserError as error:
            app = PlainTextResponse(str(error), 503, {"Retry-After": "60"})
        except HTTPException as error:
            app = PlainTextResponse(error.detail, error.status_code)
        except ClientDisconnect:
            return
        await app(scope, receive, _with_headers(send, _FILE_POLICY if isinstance(app, FileResponse) else _PAGE_POLICY))

    async def _route(self, request: Request) -> ASGIApp:
        """What answers a request."""
        path, method = request.scope["path"], request.method
        if method == "POST" and path == f"{_API}/upload":
            return await self._upload(request)
        if method == "POST" and path == f"{_API}/queue/join":
            return self._pass(await self._event(request))
        if method in ("GET", "HEAD") and path.startswith(f"{_API}/file="):
            return self._file(path.partition("=")[2])
        if (method == "GET" or (method == "HEAD" and path == "/")) and _PASSED.fullmatch(path):
            return self._pass()
        raise HTTPException(404, "Not found")

    def _pass(self, body: bytes = b"") -> ASGIApp:
        """Gradio, with nothing of the request but its path and session, harmless headers, and a body of ours."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            session = Request(scope).query_params.get("session_hash", "")
            query = urlencode({"session_hash": session}) if _SESSION.fullmatch(session) else ""
            headers = [(name, value) for name, value in scope["headers"] if name in _PASSED_HEADERS]
            if body:
                headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            kept = ("type", "asgi", "http_version", "scheme", "server", "client", "method", "path")
            passed = {key: scope[key] for key in kept} | {"root_path": "", "state": dict(scope.get("state", {}))}
            passed |= {"raw_path": quote(scope["path"]).encode(), "query_string": query.encode(), "headers": headers}
            pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive_passed() -> Message:
                if pending:
                    return pending.pop()
                while (message := await receive())["type"] != "http.disconnect":
                    pass
                return message

            await self._app(passed, receive_passed, send)

        return app

    async def _upload(self, request: Request) -> Response:
        """Stores one clip; the answer is its path, as Gradio's is."""
        too_large = f"A clip may have {self._limits.megabytes:g} MB. This one exceeds the maximum allowed size."
        max_body = self._limits.bytes + 2**16  # with the name and the lines around the clip
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:16]) > max_body or len(declared) > 16:
            raise HTTPException(413, too_large)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(415, "Expected multipart/form-data")
        if self._uploads >= MAX_UPLOADS_AT_ONCE:
            raise HTTPException(503, "Too many clips are uploaded at once. Please try again in a minute.")
        self._uploads += 1
        try:
            await to_thread.run_sync(self._storage.check_room)
            stream = read_body(request, max_body, UPLOAD_SECONDS, too_large)
            # Starlette keeps what it receives in temporary files without a name, which end with the request.
            form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=0).parse()
            try:
                clips = [item for item in form.getlist("files") if isinstance(item, UploadFile)]
                if not clips:
                    raise HTTPException(400, "There is no clip")
                if (clips[0].size or 0) > self._limits.bytes:
                    raise HTTPException(413, too_large)
                path = await to_thread.run_sync(self._storage.add_upload, clips[0].file, clips[0].filename or "")
            finally:
                await form.close()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from error
        except OSError as error:
            raise HTTPException(503, f"The clip can't be stored: {error.strerror}") from error
        finally:
            self._uploads -= 1
        return JSONResponse([str(path)])

    def _file(self, path: str) -> Response:
        """A file that the page shows."""
        found = self._storage.find(path)
        if found is None or found.parent.parent == self._storage.uploads:
            raise HTTPException(403, "File not allowed")
        media_type = mimetypes.guess_type(found.name)[0]
        shown = media_type in _SHOWN
        return FileResponse(
            found,
            media_type=media_type if shown else "application/octet-stream",
            filename=found.name,
            content_disposition_type="inline" if shown else "attachment",
        )

    async def _event(self, request: Request) -> bytes:
        """The body of an event on the page, such as a click on a button, rewritten."""
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise HTTPException(415, "Expected application/json")
        parts = [part async for part in read_body(request, MAX_EVENT_BYTES, BODY_SECONDS, "The request is too long")]
        try:
            return json.dumps(self._rewrite(json.loads(b"".join(parts)))).encode()
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # JSON's errors are ValueErrors
            raise HTTPException(400, "The request is malformed") from error

    def _rewrite(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event with nothing but what its handler takes; raises ValueError, KeyError or TypeError if malformed."""
        index, session = event["fn_index"], event["session_hash"]
        if type(index) is not int or not _SESSION.fullmatch(session):
            raise ValueError(event)
        handler = self._page.fns[index]
        data = [self._value(component, value) for component, value in zip(handler.inputs, event["data"], strict=True)]
        trigger = event.get("trigger_id")
        rewritten = {"fn_index": index, "session_hash": session, "data": data, "event_data": None}
        rewritten["trigger_id"] = trigger if trigger in {target for target, _ in handler.targets} else None
        if any(name == "select" for _, name in handler.targets):
            rewritten["event_data"] = {"index": _number(event["event_data"]["index"]), "value": None}
        return rewritten

    def _value(self, component: Any, value: Any) -> Any:
        """One input of an event: a clip's path if it is a clip's, otherwise a text or a number."""
        if isinstance(component, gr.State):  # Gradio keeps states itself
            return None
        if value is None:  # Gradio fails at empty text and number fields
            return "" if isinstance(component, gr.Textbox) else getattr(component, "minimum", None)
        if isinstance(component, gr.File):
            clip = self._storage.find(value["path"])
            if clip is None:
                raise HTTPException(400, EXPIRED_CLIP)
            return {"path": str(clip), "orig_name": clip.name, "meta": {"_type": "gradio.FileData"}}
        if isinstance(value, str) and not isinstance(component, gr.Slider):
            value.encode()  # half a surrogate pair raises a ValueError
            return value
        return _number(value)


def _number(value: Any) -> float | int:
    if type(value) not in (int, float) or not abs(value) <= 1e9:  # nor NaN
        raise ValueError(value)
    number: float | int = value
    return number


def check_origin(request: Request, served: str) -> None:
    """Refuses requests by another machine's name, and those that another site's page makes.

    A name that is not this machine's is one that an attacker's name server has directed here ("DNS rebinding"). An
    address can't be.

    Args:
      request: from a browser, or a program.
      served: the address that the page is served at, as the user gave it.

    Raises:
      HTTPException: with status 403.
    """
    hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
    host = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if host is None or not is_own_name(host[1], served):
        raise HTTPException(403, "This page is not served under that name; --host=NAME chooses one.")
    own = [f"{scheme}://{hosts[0]}".lower() for scheme in ("http", "https")]
    site = request.headers.get("sec-fetch-site", "none")
    followed_link = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    if any(origin.lower() not in own for origin in origins) or (
        site not in ("none", "same-origin") and not (followed_link and request.scope["path"] == "/")
    ):
        raise HTTPException(403, "Requests from other sites are not allowed.")


def is_own_name(name: str, served: str) -> bool:
    """Whether this machine may be called by a name or address, when it serves the page at another."""
    name, own = name.strip("[]").lower(), {"localhost", served.lower()}
    if is_loopback(served):
        return name in own or is_loopback(name)
    hostname = socket.gethostname().lower()
    return name in own | {hostname, f"{hostname}.local"} or _address(name) is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches an address."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text)
    return None


async def read_body(request: Request, max_bytes: int, seconds: float, too_large: str) -> AsyncGenerator[bytes, None]:
    """Yields the parts of a request's body; raises HTTPException if it is too large or comes too slowly."""
    received, loop = 0, asyncio.get_running_loop()
    end = loop.time() + seconds
    stream = request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(stream), min(BODY_SECONDS, end - loop.time()))
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise HTTPException(408, "The request comes too slowly") from error
        received += len(part)
        if received > max_bytes:
            raise HTTPException(413, too_large)
        yield part


def _with_headers(send: Send, policy: str) -> Send:
    """Adds the headers that keep a browser from framing the page, guessing types and loading from elsewhere."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            for name, value in {**_HEADERS, "content-security-policy": policy}.items():
                headers[name] = value
        await send(message)

    return send_with_headers
