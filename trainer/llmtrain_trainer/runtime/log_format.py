"""The format of what a pod logs: names of files and texts of data are a part of it."""

from __future__ import annotations

import logging
import sys

from llmtrain_core.api.untrusted import printable, printable_entry


class PodLogFormatter(logging.Formatter):
    """Replaces control characters, and indents all lines of an entry but the first."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry, with its traceback."""
        return printable_entry(super().format(record))


def format_warnings() -> None:
    """Use the format for the warnings of a process that does not configure its logs."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PodLogFormatter("%(message)s"))


def write_line(text: str) -> None:
    """Write one line to the log of the pod."""
    print(printable(text), file=sys.stderr, flush=True)
