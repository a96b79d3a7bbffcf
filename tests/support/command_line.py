"""Run `llmtrain` in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from llmtrain_cli.main import app


def llmtrain(*arguments: object) -> str:
    """Run a command that must succeed; return its output, or raise its error."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
