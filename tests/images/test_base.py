"""The base of an image is named by its content."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llmtrain_images import base
from llmtrain_images.base import RootFilesystem, base_image
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

DIGEST = "0" * 63 + "1"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


class Engine:
    """An engine that has no images, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def has_image(self, name: str) -> bool:
        return False

    def docker(self, *arguments: str) -> Any:
        self.asked.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, f"sha256:{DIGEST}\n", "")


def test_the_tag_of_a_base_is_the_hash_of_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base, "root_filesystem", lambda *_: tmp_path / "system.tar")
    engine: Any = Engine()
    system = RootFilesystem("bookworm")
    name = base_image(engine, system)
    assert name == f"{base.REPOSITORY}:{DIGEST}"
    assert engine.asked[-1] == ("tag", f"{base.REPOSITORY}:{system.digest()}", name)


def test_every_base_of_the_dockerfile_is_an_argument_or_an_earlier_stage() -> None:
    bases = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(bases) == len(re.findall("^FROM ", DOCKERFILE, re.MULTILINE))
    stages = {stage for _, stage in bases}
    arguments = {"${BASE}", "${BUILD_BASE}", "trainer-packages-${VARIANT}"}
    assert {name for name, _ in bases} <= stages | arguments | {"scratch"}
    # Without a default, a build that names no base fails.
    assert re.search(r"^ARG BASE$", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        (f"python@sha256:{DIGEST}", True),
        (f"example.com:5000/python:3.11@sha256:{DIGEST}", True),
        (f"{base.REPOSITORY}:{DIGEST}", True),
        ("python:3.11-slim-bookworm", False),
        ("python", False),
        ("", False),
    ],
)
def test_the_dockerfile_refuses_a_base_without_a_digest(name: str, accepted: bool) -> None:
    check = re.search(r'RUN (case "\$\{BASE\}".*?esac)$', DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert check
    script = check[1].replace("\\\n", "")
    done = subprocess.run(
        ["sh", "-c", script], env={"BASE": name}, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is accepted
    assert accepted or "by digest" in done.stderr
