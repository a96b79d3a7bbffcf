"""The key by which the launchers of an attempt know each other."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from llmtrain_core.api.env import GANG_KEY_NAME
from llmtrain_trainer.errors import InputError

KEY_BYTES = 32


def read_gang_key(folder: Path, attempt: int) -> bytes | None:
    """Return the key of an attempt, derived from the key of the job beside its job file.

    None if there is no file: an operator of an older release wrote the job file. Raises InputError
    if the file is not a key.
    """
    path = folder / GANG_KEY_NAME
    try:
        with path.open("rb") as file:
            text = file.read(2 * KEY_BYTES + 2)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _invalid(path, error.strerror or "cannot be read") from error
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""  # the error must not show any of the text
    if len(key) != KEY_BYTES:
        raise _invalid(path, f"it is not {2 * KEY_BYTES} hexadecimal digits")
    return hmac.digest(key, f"llmtrain attempt {attempt}".encode(), hashlib.sha256)


def _invalid(path: Path, problem: str) -> InputError:
    return InputError(
        "InvalidEnvironment",
        f"the key of the gang in {path}: {problem}",
        remedy="delete the ConfigMap of the job before its next attempt: the operator writes it",
    )
