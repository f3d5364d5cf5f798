"""What the ranks and their supervisor send each other: framed messages over TCP.

Both sides work the port out from the job's name. A message is two lengths (uint32, big endian), a
JSON object with its "kind", and raw bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

_LENGTHS = struct.Struct(">II")
_LONGEST_HEADER = 1 << 20  # more than that is not one of ours
_CANDIDATES = 8

# Below 32768, where Linux starts to hand out ports by itself.
_FIRST_PORT, _PORTS = 20000, 10000


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: what it is.
        fields: its JSON values.
        payload: its raw bytes.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""


class Channel:
    """Messages over a connected socket; one thread may receive while others send.

    The socket notices by itself, within half a minute, when the machine at the other end is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Linux's names; elsewhere the system's own, longer times hold.
        for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        # A forked dataset worker that outlived its rank would keep the connection open, and the
        # rank's death would go unnoticed.
        os.register_at_fork(after_in_child=self._close_in_child)

    def send(self, kind: str, payload: bytes = b"", **fields: Any) -> bool:
        """Send a message; False if nobody is there to receive it."""
        header = json.dumps({"kind": kind, **fields}).encode()
        try:
            with self._sending:
                self._socket.sendall(_LENGTHS.pack(len(header), len(payload)) + header + payload)
        except OSError:
            return False
        return True

    def receive(self) -> Message | None:
        """The next message; None when the other end is gone, or is no rank or supervisor."""
        try:
            header_length, payload_length = _LENGTHS.unpack(self._read(_LENGTHS.size))
            if header_length > _LONGEST_HEADER:
                return None
            fields = json.loads(self._read(header_length))
            if not isinstance(fields, dict) or "kind" not in fields:
                return None
            return Message(fields.pop("kind"), fields, self._read(payload_length))
        except (OSError, ValueError):
            return None

    def set_timeout(self, seconds: float | None) -> None:
        """Let sending and receiving fail after so many seconds; None waits for ever."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """End the connection; a thread that is receiving returns."""
        with contextlib.suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._socket.recv(min(length, 1 << 20))
            if not part:
                raise OSError("closed")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _close_in_child(self) -> None:
        # Not shutdown: that would end the parent's connection too.
        self._socket.close()


def candidate_ports(job: str) -> list[int]:
    """The ports that a job's supervisor tries to listen on, and its ranks to reach, in order.

    Args:
        job: the job's name, the same on every rank and no other job's.
    """
    number = int.from_bytes(hashlib.sha256(job.encode()).digest()[:8], "big")
    return [_FIRST_PORT + (number + k * _PORTS // _CANDIDATES) % _PORTS for k in range(_CANDIDATES)]
