"""The operator's image: small, the same at each build, and runnable by any user."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmtrain_core.images import VERSION
from llmtrain_images.build import build_operator
from llmtrain_images.contents import Contents, read_contents
from llmtrain_images.debian import mirror
from llmtrain_images.docker_engine import DockerEngine

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1800)]

MOST_BYTES = 80_000_000
SEALED = ("--rm", "--read-only", "--network", "none", "--user", "12345:0")
PYTHON = ("--entrypoint", "python")
UNCOMPILED = """
import json, os, sys
import llmtrain_operator.__main__
sources = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
imported = [name for name, file in sources.items() if file.endswith(".py") and name != "__main__"]
cached = {name: getattr(sys.modules[name], "__cached__", None) for name in imported}
print(json.dumps([name for name, path in cached.items() if path and not os.path.exists(path)]))
"""


@pytest.fixture(scope="module")
def image(docker_engine: DockerEngine) -> str:
    return build_operator(docker_engine)


@pytest.fixture(scope="module")
def contents(docker_engine: DockerEngine, image: str) -> Contents:
    return read_contents(docker_engine, image)


def layers(engine: DockerEngine, image: str) -> list[str]:
    found = engine.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)
    return json.loads(found.stdout)


def test_it_starts_as_any_user_with_a_read_only_file_system(
    docker_engine: DockerEngine, image: str
) -> None:
    run = docker_engine.docker("run", *SEALED, image, "--help")
    assert "--lease-namespace" in run.stdout
    script = "import importlib.metadata as m, os; print(m.version('llmtrain'), os.getuid())"
    run = docker_engine.docker("run", *SEALED, *PYTHON, image, "-c", script)
    assert run.stdout.split() == [VERSION, "12345"]


def test_it_is_not_root_unless_asked(docker_engine: DockerEngine, image: str) -> None:
    user = docker_engine.docker("image", "inspect", "--format", "{{.Config.User}}", image)
    assert user.stdout.strip() == "65532:65532"


def test_what_it_imports_is_compiled(docker_engine: DockerEngine, image: str) -> None:
    run = docker_engine.docker("run", *SEALED, *PYTHON, image, "-c", UNCOMPILED)
    uncompiled = json.loads(run.stdout)
    assert [name for name in uncompiled if ".client.models." not in name] == []


def test_it_has_no_torch_and_no_perl(contents: Contents) -> None:
    names = {package.name for package in (*contents.python, *contents.debian)}
    assert {"llmtrain", "kopf", "kubernetes", "libc6"} <= names
    assert not {"torch", "numpy", "pip", "apt"} & names
    assert not [name for name in names if "perl" in name]


def test_it_does_not_name_the_mirror_that_it_was_made_from(
    docker_engine: DockerEngine, image: str
) -> None:
    host = urlsplit(mirror()).hostname
    search = ("--entrypoint", "grep", image, "-rlF", host, "/etc", "/var", "/opt/llmtrain/bin")
    found = docker_engine.docker("run", *SEALED, *search, check=False)
    assert found.stdout.splitlines() == []


def test_it_is_small(docker_engine: DockerEngine, image: str, tmp_path: Path) -> None:
    docker_engine.docker("save", "--output", str(tmp_path / "image.tar"), image)
    with tarfile.open(tmp_path / "image.tar") as archive:
        manifest = json.load(archive.extractfile("manifest.json"))
        packed = [
            len(gzip.compress(archive.extractfile(layer).read(), 6))
            for layer in manifest[0]["Layers"]
        ]
    assert sum(packed) <= MOST_BYTES


def test_two_builds_have_equal_layers(docker_engine: DockerEngine, image: str) -> None:
    first = layers(docker_engine, image)
    assert len(first) == 3
    assert layers(docker_engine, build_operator(docker_engine, fresh=True)) == first
