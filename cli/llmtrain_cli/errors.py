"""The error that the command line prints, and its exit codes."""

from __future__ import annotations

EXIT_FAILURE = 1
"""The input is valid, but the result is negative: it does not fit, the cluster is down."""
EXIT_INPUT = 2
"""The input is wrong: a file, a field, an option."""


class CliError(Exception):
    """A message that names the problem and the remedy."""

    def __init__(self, message: str, exit_code: int = EXIT_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code
