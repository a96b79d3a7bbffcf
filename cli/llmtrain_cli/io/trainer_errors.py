"""Errors of the trainer, and of a missing trainer, as errors of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmtrain_cli.errors import EXIT_FAILURE, CliError


@contextmanager
def trainer_errors(extra: str) -> Iterator[None]:
    """Convert the trainer's errors to CliError; `extra` is the extra to install with pip."""
    try:
        from llmtrain_trainer.errors import InputError
    except ImportError as error:
        raise CliError(
            f"this needs the trainer: pip install llmtrain[{extra}]", EXIT_FAILURE
        ) from error
    try:
        yield
    except InputError as error:
        place = f"{error.field}: " if error.field else ""
        remedy = f"; {error.remedy}" if error.remedy else ""
        raise CliError(f"{place}{error.message}{remedy}") from error
    except ModuleNotFoundError as error:
        raise CliError(f"{error}: pip install llmtrain[{extra}]", EXIT_FAILURE) from error
