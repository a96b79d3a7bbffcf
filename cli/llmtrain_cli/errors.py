"""The one error the command line shows to people, and its exit codes."""

from __future__ import annotations

EXIT_NO = 1
"""The question was understood and the answer is no: it does not fit, the cluster is down."""
EXIT_INPUT = 2
"""The input is wrong: a file, a field, an option."""


class CliError(Exception):
    """A message that names what is wrong and what to do about it."""

    def __init__(self, message: str, exit_code: int = EXIT_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code
