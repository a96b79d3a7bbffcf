"""Listen on the pod's own address, and describe why that fails."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Callable

from llmtrain_core.api.env import MASTER_PORT, POD_IP
from llmtrain_trainer.errors import InputError, TrainerError

MAX_OPEN_FILES = 65_536
"""More than connections of a stranger from one address can use up."""


def raise_file_limit() -> None:
    """Raise the limit of open files of this process and its children as far as it is permitted.

    The sockets of gloo and NCCL accept whoever connects. With the usual limit of 1,024, idle
    connections would keep a rank from opening files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cannot_listen(error: OSError, address: str, port: int, variable: str) -> TrainerError:
    """Return the error for a failed bind; `variable` is the environment variable of the port."""
    if error.errno == errno.EADDRINUSE:
        return TrainerError(
            "PortInUse",
            f"port {port} of {address} is taken by another process",
            remedy=f"end the process that listens there, or set {variable} to a free port",
        )
    return InputError(
        "InvalidEnvironment",
        f"cannot listen on {address}:{port}: {error.strerror}",
        remedy=f"set {POD_IP} to an address of this machine and {variable} to a port it may use",
    )


def listen(
    address: str,
    port: int = 0,
    variable: str = MASTER_PORT,
    prepare: Callable[[socket.socket], None] = lambda _listener: None,
) -> socket.socket:
    """Listen on one address; port 0 selects any free port. `prepare` gets the socket before that.

    torch would bind its store to the wildcard address, which takes the port from all other pods on
    the host's network. So that socket is created here, too, and passed to torch.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        prepare(listener)
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise _cannot_listen(error, address, port, variable) from error
    return listener
