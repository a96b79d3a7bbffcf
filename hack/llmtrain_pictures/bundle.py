"""Build the page that draws a dashboard, once for each version of its sources and packages.

The lock has hashes and no addresses: npm takes the packages from the registry that it is configured
for. Scripts of packages do not run.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

from llmtrain_devcluster.paths import cache_root
from llmtrain_images.debian import install_missing

SOURCES = Path(__file__).parent / "web"
NPM_SECONDS = 900
SETTINGS = (".npmrc", "package.json", "package-lock.json")
PAGE = ("index.html", "dist")


class BundleError(RuntimeError):
    """The page could not be built; the message has what npm printed."""


def build_page() -> Path:
    """Return the folder with `index.html` and its scripts; build it if the cache has none."""
    base = cache_root() / "pictures"
    base.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in SOURCES.iterdir() if path.is_file())
    page = base / f"page-{_digest(files)}"
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not page.is_dir():
            install_missing(["node", "npm"], ["nodejs", "npm"], print)
            packages = _install(base)
            _bundle(files, packages, page)
    return page


def _install(base: Path) -> Path:
    """Return the folder with the packages of the lock."""
    folder = base / f"packages-{_digest([SOURCES / name for name in SETTINGS])}"
    if not folder.is_dir():
        draft = _empty(base / "packages.draft")
        for name in SETTINGS:
            shutil.copy(SOURCES / name, draft)
        _npm("ci", folder=draft)
        draft.rename(folder)
    return folder


def _bundle(files: list[Path], packages: Path, page: Path) -> None:
    for path in files:
        shutil.copy(path, packages)
    shutil.rmtree(packages / "dist", ignore_errors=True)
    _npm("run", "build", folder=packages)
    draft = _empty(page.with_name("page.draft"))
    for name in PAGE:
        (packages / name).rename(draft / name)
    draft.rename(page)


def _npm(*arguments: str, folder: Path) -> None:
    command = ["npm", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS)
    if done.returncode:
        raise BundleError(
            f"npm {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-4000:]}"
        )


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    print(build_page())
