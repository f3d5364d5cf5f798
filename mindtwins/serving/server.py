"""A web application on a port, from the first line to the last answer."""

from __future__ import annotations

import errno
import socket
from concurrent.futures import Future
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mindtwins.errors import UserError, end_interrupted

# Connections that wait to be accepted.
BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of this machine: who comes now is answered later.

    Args:
        port: 0 for any that is free.

    Raises:
        UserError: the port is in use or not allowed, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host {host!r} is no address: give one with --host") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use: stop what listens there, or give another --port"
            ) from error
        raise UserError(f"cannot listen at port {port} of {host}: {error.strerror}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port, *_ = listener.getsockname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


class _Server(uvicorn.Server):
    """As uvicorn's, but a second interrupt ends the process as that of any other command."""

    _first_signal: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._first_signal is not None:
            end_interrupted(self._first_signal)
        self._first_signal = sig
        super().handle_exit(sig, frame)


def serve(app: FastAPI, listener: socket.socket, started: Future[None], ready: str) -> None:
    """Answer requests until an interrupt; those that are accepted by then are answered.

    Args:
        started: done when the model is ready, or with what kept it from that.
        ready: printed then.

    Raises:
        KeyboardInterrupt: the interrupt, as soon as all is answered.
        Exception: that of `started`.
    """
    server = _Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="on")
    )

    def tell_or_stop(started: Future[None]) -> None:
        if started.exception() is None:
            print(ready, flush=True)
        else:
            server.should_exit = True

    started.add_done_callback(tell_or_stop)
    server.run(sockets=[listener])
    if started.done():
        started.result()
