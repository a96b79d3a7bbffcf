"""Use a stranger's tokenizer in a child process: its regular expressions may never end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from llmtrain_trainer.data.tokenizer import cpu_limit, endless_tokenizer
from llmtrain_trainer.errors import InputError


def encode_limited(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    """Return the ids of a text. Raises InputError, with the tokenizer's `name`, if it fails."""

    def encode() -> list[int]:
        return [int(each) for each in tokenizer.encode(text, add_special_tokens=False).ids]

    return list(run_limited(encode, len(text), name))


def decode_limited(tokenizer: Tokenizer, ids: list[int], name: str) -> str:
    """Return the text of ids. Raises InputError, with the tokenizer's `name`, if it fails."""
    return str(run_limited(lambda: tokenizer.decode(ids), 8 * len(ids), name))


def run_limited(work: Callable[[], Any], characters: int, name: str) -> Any:
    """Return the result of `work`, a JSON value, from a forked child with limited CPU time.

    Raises InputError, with the tokenizer's `name`, if it fails.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(work, characters, send)
    os.close(send)
    with os.fdopen(receive, "rb") as answers:
        answer = answers.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGVTALRM:
        raise endless_tokenizer(name)
    found = json.loads(answer) if status == 0 else {"error": f"its process ended with {status}"}
    if "error" in found:
        raise InputError(
            "ModelUnreadable",
            f"{name}: the tokenizer fails: {found['error']}",
            remedy="put the tokenizer.json of the model there",
        )
    return found["value"]


def _answer(work: Callable[[], Any], characters: int, send: int) -> None:
    """Run in the child, which has none of the parent's threads: leave without cleaning up."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the library prints what its panics are
        with cpu_limit(characters):
            try:
                answer = {"value": work()}
            except BaseException as error:  # a panic of the library is no Exception
                answer = {"error": str(error)[:300]}
        with os.fdopen(send, "wb") as answers:
            answers.write(json.dumps(answer).encode())
        code = 0
    finally:
        os._exit(code)
