"""A container's view of the machine, without any Kubernetes."""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmtrain_devcluster
from llmtrain_devcluster.process_node.sandbox import START_FAILED, Mount, Sandbox

pytestmark = pytest.mark.cluster
PATH = os.pathsep.join((str(Path(sys.prefix) / "bin"), "/usr/bin:/bin"))
NOBODY = 65534
SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGE = Path(llmtrain_devcluster.__file__).parent


def run(
    script: str,
    scratch: Path,
    python: str = sys.executable,
    user: int | None = None,
    modules: Path = PACKAGE.parent,
    **more: object,
) -> subprocess.CompletedProcess[str]:
    sandbox = Sandbox(
        command=["sh", "-c", script],
        env={"PATH": PATH},
        work_dir="/",
        hostname="box",
        scratch=str(scratch),
        **more,
    )
    return subprocess.run(
        [python, "-m", "llmtrain_devcluster.process_node.sandbox", str(os.getpid())],
        input=sandbox.to_json(),
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(modules)},
        user=user,
        check=False,
    )


def test_the_host_is_seen_and_never_written(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = Path("/etc/hostname").read_bytes()
    name = secrets.token_hex(8)
    written = [Path(folder, name) for folder in ("/usr/local", "/tmp", "/dev")]
    done = run(
        f"for f in /etc/hostname {' '.join(map(str, written))}; do echo x >> $f || exit; done"
        " && ls /tmp && echo $$ && hostname",
        scratch,
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{name}\n1\nbox\n", "", 0)
    assert not any(path.exists() for path in written)
    assert Path("/etc/hostname").read_bytes() == before
    assert not any(scratch.iterdir())


def test_mounts(tmp_path: Path) -> None:
    for name in ("scratch", "volume", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "one").write_text("one\n")
    done = run(
        "cat /etc/one; echo w > /volume/w; touch /etc/one || echo ro",
        tmp_path / "scratch",
        mounts=[
            Mount(str(tmp_path / "tmp"), "/tmp"),
            Mount(str(tmp_path / "volume"), "/volume"),
            Mount(str(tmp_path / "one"), "/etc/one", read_only=True),
        ],
    )
    assert done.stdout == "one\nro\n"
    assert (tmp_path / "volume" / "w").read_text() == "w\n"


def test_exit_codes(tmp_path: Path) -> None:
    assert run("exit 7", tmp_path).returncode == 7
    assert run("kill -KILL 1; exit 3", tmp_path).returncode == 3
    failed = run("true", tmp_path / "missing")
    assert failed.returncode == START_FAILED
    assert "cannot prepare the container" in failed.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run without root already")
def test_without_root(tmp_path: Path) -> None:
    version = subprocess.run([SYSTEM_PYTHON, "-c", "import tomllib"], check=False)
    if version.returncode != 0:
        pytest.skip("needs a system Python >= 3.11: another user cannot read this one")
    place = Path(f"/dev/shm/llmtrain-sandbox-{os.getpid()}")
    scratch, modules = place / "scratch", place / "modules"
    scratch.mkdir(parents=True)
    # The clone may lie where only its owner can read.
    shutil.copytree(PACKAGE, modules / PACKAGE.name)
    try:
        os.chown(scratch, NOBODY, NOBODY)
        script = "id -u; echo $$; echo x > /etc/llmtrain-x && cat /etc/llmtrain-x; ls /tmp | wc -l"
        done = run(script, scratch, python=SYSTEM_PYTHON, user=NOBODY, modules=modules)
        assert (done.stdout, done.stderr, done.returncode) == ("0\n1\nx\n0\n", "", 0)
    finally:
        shutil.rmtree(place)
    assert not Path("/etc/llmtrain-x").exists()
