"""Render a chat template in a child process that the kernel limits.

Jinja's sandbox keeps a template from everything but its variables. It does not keep it from
running forever or from doubling a text until the memory is full. So the child has little CPU time
for each text and little memory, and its parent reports what happened. `python -m` runs the child.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CPU_SECONDS = 5
"""Time for one text. Published templates take less than a millisecond."""

MEMORY_BYTES = 512 << 20

MAX_STARTS = 3
"""Child processes of one template. One text that ends a child does not end those after it."""

MAX_TEXT = 1 << 20
"""Characters of a text, besides twice those of the messages."""

DATE = datetime(2025, 1, 1)
"""What `strftime_now` shows: the same examples are prepared on every day and in every process."""


class TemplateFailureError(Exception):
    """A template that cannot be rendered."""


class TemplateRenderer:
    """The child process of one template. After a text that ended it there is another one."""

    def __init__(self, source: str) -> None:
        """Start the child. Raises TemplateFailureError if the template is not valid."""
        self._source, self._starts, self._owner = source, 0, os.getpid()
        self._start()

    def __del__(self) -> None:
        """End the child: `Popen` would keep its pipes, so that it waits for this process to end."""
        # a forked process has a copy of this object, and not the child
        if self._owner == os.getpid() and hasattr(self, "_child"):
            self.close()

    def _start(self) -> None:
        self._starts += 1
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        try:
            self._ask({"source": self._source})
        except TemplateFailureError:
            self.close()
            raise

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text of a template. Raises TemplateFailureError."""
        if self._child.poll() is not None and self._starts < MAX_STARTS:
            self.close()
            self._start()
        return self._ask({"variables": variables})

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):  # the child is gone, so what was not written is lost
                    pipe.close()
        self._child.wait()

    def _ask(self, request: Mapping[str, Any]) -> str:
        assert self._child.stdin is not None and self._child.stdout is not None
        answer = ""
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            pass  # it has ended
        if not answer:
            raise TemplateFailureError(_reason(self._child.wait()))
        found = json.loads(answer)
        if "error" in found:
            raise TemplateFailureError(found["error"])
        return str(found["text"])


def _reason(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"the template does not end: it used {CPU_SECONDS} seconds of CPU time"
    return f"the template fails: its process ended with {code}"


def _answer(request: Mapping[str, Any], template: Any) -> tuple[dict[str, str], Any]:
    """Return the answer to a request, and the template."""
    what = "cannot be read" if "source" in request else "fails"
    try:
        if "source" in request:
            return {"text": ""}, _compile(request["source"])
        variables = request["variables"]
        random.seed(0)  # the filter `random` shows the same in every process
        text = template.render(**variables)
        # a message that calls a tool may have no content
        limit = MAX_TEXT + 2 * sum(len(each.get("content") or "") for each in variables["messages"])
        if len(text) > limit:
            raise ValueError(f"its text has more than {limit} characters")
        text.encode()  # raises for halves of surrogate pairs, which no encoding has
        return {"text": text}, template
    except MemoryError:
        problem = f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"
    except Exception as error:  # a template raises any kind
        problem = str(error)[:400] or type(error).__name__
    shown = problem.encode(errors="replace").decode()
    return {"error": f"the template {what}: {shown}"}, template


class _Generation(Extension):
    """The block `generation`, which marks what a model writes. Its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - as its base class declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the statements of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """A namespace without attributes that lead to Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot store {name!r}")
        super().__setitem__(name, value)


def _compile(source: str) -> Any:
    """Compile a template with the extensions that `transformers` has in its environment."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = DATE.strftime
    environment.globals["namespace"] = _Namespace
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as a chat template expects it: Jinja's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _limit_cpu() -> None:
    """Let the kernel end this process after some more seconds of CPU time."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = int(time.process_time()) + 1 + CPU_SECONDS
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def main() -> None:
    """Answer requests, one per line, until the parent is gone."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group
    template: Any = None
    for line in sys.stdin:
        _limit_cpu()
        answer, template = _answer(json.loads(line), template)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
