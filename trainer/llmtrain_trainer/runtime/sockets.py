"""Listen on the pod's own address, and describe why that fails."""

from __future__ import annotations

import errno
import socket

from llmtrain_core.api.env import MASTER_PORT, POD_IP
from llmtrain_trainer.errors import InputError, TrainerError


def cannot_listen(error: OSError, address: str, port: int, variable: str) -> TrainerError:
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


def listen(address: str, port: int = 0) -> socket.socket:
    """Listen for the rendezvous of the ranks; port 0 selects any free port.

    torch would bind to the wildcard address, which takes the port from all other pods on the host's
    network. So the socket is created here and passed to torch.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise cannot_listen(error, address, port, MASTER_PORT) from error
    return listener
