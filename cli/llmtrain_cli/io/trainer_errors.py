"""The trainer's code in the command line: its errors, and its absence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmtrain_cli.errors import EXIT_NO, CliError


@contextmanager
def explained(extra: str) -> Iterator[None]:
    """Turn the trainer's errors into those of the command line; `extra` is what pip installs."""
    try:
        from llmtrain_trainer.errors import InputError
    except ImportError as error:
        raise CliError(f"this needs the trainer: pip install llmtrain[{extra}]", EXIT_NO) from error
    try:
        yield
    except InputError as error:
        place = f"{error.field}: " if error.field else ""
        remedy = f"; {error.remedy}" if error.remedy else ""
        raise CliError(f"{place}{error.message}{remedy}") from error
    except ModuleNotFoundError as error:
        raise CliError(f"{error}: pip install llmtrain[{extra}]", EXIT_NO) from error
