"""The address a server listens on: taken early, so that a port in use is told before a model is loaded.

Torch-free. Knows nothing of HTTP.
"""

from __future__ import annotations

import errno
import os
import socket

from crestline.types import BadInput


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; who connects waits until it is served. port: 0 takes a free one.

    Raises BadInput if the name is unknown, or the address is taken or not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise BadInput(f"--host {host}: no such address; try 127.0.0.1") from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            line = f"--port {port} is in use on {host}; choose another, or 0 for a free one"
        elif error.errno == errno.EADDRNOTAVAIL:
            line = f"--host {host} is no address of this machine; try 127.0.0.1"
        else:
            line = f"--port {port}: {os.strerror(error.errno or 0).lower()}; choose another"
        raise BadInput(line) from None
    return listening


def url(listening: socket.socket) -> str:
    """Where to reach it: http://host:port."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listening: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    host = str(listening.getsockname()[0])
    return host.startswith("127.") or host == "::1"
