"""What to say of a port that cannot be listened on."""

from __future__ import annotations

import errno

from llmtrain_core.api.env import POD_IP
from llmtrain_trainer.errors import InputError, TrainerError


def cannot_listen(error: OSError, address: str, port: int, variable: str) -> TrainerError:
    """Return the error for a failed bind; `variable` of the environment holds the port."""
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
