"""Serves the page at one address until it is stopped, through the gate."""

from __future__ import annotations

import asyncio
import socket
import threading

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from input_pipeline.errors import UserError
from lbdt_jax.demo import page
from lbdt_jax.demo.checks import Limits
from lbdt_jax.demo.gate import Gate, is_loopback
from lbdt_jax.demo.storage import Storage
from lbdt_jax.inference.segmenter import Segmenter

MAX_CONNECTIONS = 200  # of all visitors; each has two to eight
HEAD_SECONDS = 10  # in which the head of a request must have come
MAX_HEAD_BYTES = 2**15
TIDY_SECONDS = 60


def serve(
    segmenter: Segmenter, storage: Storage, limits: Limits, examples: page.Examples, host: str, listener: socket.socket
) -> None:
    """Serves the page until SIGINT or SIGTERM.

    Args:
      segmenter: the model.
      storage: keeps the visitors' files.
      limits: what a visitor may upload and enter.
      examples: as for `page.build`.
      host: the address as the user gave it.
      listener: listens there.
    """
    stopping = threading.Event()
    blocks = page.build(segmenter, storage, limits, examples, stopping)
    app = page.make_app(blocks, limits)
    storage.keep_all()
    port = listener.getsockname()[1]
    print(f"Open {address(host, port)} in a browser; Ctrl-C stops it.", flush=True)
    if not is_loopback(host):
        print(
            f"Other machines are admitted (--host={host}): whoever reaches this one through the network can use the "
            "page, without a password, and nothing is encrypted.",
            flush=True,
        )
    tidying = threading.Thread(target=_tidy_regularly, args=(storage, stopping))
    tidying.start()
    try:
        make_server(Gate(app, blocks, storage, limits, host), stopping).run(sockets=[listener])
    finally:
        stopping.set()
        tidying.join()


def make_server(gate: Gate, stopping: threading.Event) -> uvicorn.Server:
    """A server that sets `stopping` as soon as it is asked to stop."""
    config = uvicorn.Config(
        gate,
        http=_Connection,
        loop="asyncio",  # whose connections Python's audit hooks see
        ws="none",
        lifespan="auto",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    return _Server(config, stopping)


def listen(host: str, port: int) -> socket.socket:
    """Opens the page's port, so that it is known at once whether it is free; visitors wait until `serve` is called.

    Raises:
      UserError: the port can't be opened at that address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, bound = min(found, key=lambda address: address[0] != socket.AF_INET)
        return socket.create_server(bound, family=family, backlog=MAX_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        raise UserError(f"Can't serve the page at --host={host} --port={port}: {error}") from error


def address(host: str, port: int) -> str:
    """What a browser on this machine opens."""
    host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/"


class _Connection(H11Protocol):
    """Ends a connection if the head of a request comes too slowly, and all of them when the server stops."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self.transport.abort()

    def _expect_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _forget_head(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    """Sets an event as soon as it is asked to stop, which ends the running request."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        await super().shutdown(sockets)


def _tidy_regularly(storage: Storage, stopping: threading.Event) -> None:
    while not stopping.wait(TIDY_SECONDS):
        storage.tidy()
