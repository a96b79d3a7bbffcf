"""Container images of the nodes: containerd's folder is filled once, and each node gets a clone.

A clone consists of hard links, so it takes a second and no space, whatever the size of the images.
containerd never changes a file of a layer or of its content store; its databases are copied.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmtrain_devcluster.go_build.tools import Progress, print_progress
from llmtrain_devcluster.paths import cache_root
from llmtrain_images.docker_engine import DockerEngine, EngineError
from llmtrain_kind.image_archive import write_archive
from llmtrain_kind.kubernetes_images import kubernetes_images
from llmtrain_kind.node_image import node_root

EDITION = "2"
"""Increased whenever this module, or that of the archives, makes other images of the same files."""
CONTAINERD = "/var/lib/containerd"
DATABASES = "io.containerd.*/*.db"
CONTENT = "images.json"
"""Names and IDs of the images in a store, in the folder of the store."""
READY_SECONDS = 60.0
IMPORT_SECONDS = 900.0


def image_store(
    engine: DockerEngine,
    node_image: str,
    names: Sequence[str] = (),
    progress: Progress = print_progress,
) -> Path:
    """Return a folder for `clone`, with the images of Kubernetes and these of the engine."""
    base = _kubernetes_store(engine, node_image, progress)
    if not names:
        return base
    images = {name: _image_id(engine, name) for name in names}
    key = json.dumps([base.name, sorted(images.items())])
    target = base.parent / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not target.exists():
        progress(f"importing {', '.join(names)} into the image store")
        start = _newest_like(base)
        with _draft(target) as (draft, workspace):
            clone(start, draft)
            known = _content(draft)
            missing = [name for name, image in images.items() if known.get(name) != image]
            with _containerd(engine, node_image, draft, workspace) as container:
                for name in set(known) - set(images):
                    _ctr(engine, container, "images", "remove", "--sync", name)
                if missing:
                    archive = workspace / "images.tar"
                    engine.docker("save", "--output", str(archive), *missing)
                    _import(engine, container, archive)
            _set_content(draft, base, images)
        _remove_others(base, target)
    return target


def clone(store: Path, target: Path) -> None:
    """Write a copy of a store that shares the files of its images."""
    subprocess.run(["cp", "-al", str(store), str(target)], check=True)
    for changing in (*target.glob(DATABASES), *target.glob(CONTENT)):
        content = changing.read_bytes()
        changing.unlink()
        changing.write_bytes(content)


def _kubernetes_store(engine: DockerEngine, node_image: str, progress: Progress) -> Path:
    key = hashlib.sha256(f"{EDITION} {node_image}".encode()).hexdigest()[:16]
    target = cache_root() / "kind" / "stores" / key
    if not target.exists():
        progress("importing the images of Kubernetes once")
        with _draft(target) as (draft, workspace):
            draft.mkdir()
            images = kubernetes_images(node_root(progress), workspace)
            archive = write_archive(workspace / "images.tar", images)
            with _containerd(engine, node_image, draft, workspace) as container:
                _import(engine, container, archive)
            _set_content(draft, target, {})
        _remove_others(target)
    return target


def _image_id(engine: DockerEngine, name: str) -> str:
    return engine.docker("image", "inspect", "--format", "{{.Id}}", name).stdout.strip()


def _content(store: Path) -> dict[str, str]:
    content: dict[str, str] = json.loads((store / CONTENT).read_text())["images"]
    return content


def _set_content(store: Path, base: Path, images: Mapping[str, str]) -> None:
    text = json.dumps({"base": base.name, "images": dict(images)})
    (store / CONTENT).unlink(missing_ok=True)
    (store / CONTENT).write_text(text)


def _stores_on(base: Path) -> list[Path]:
    """Return finished stores that were made from a base, the newest last."""
    found = [
        path.parent
        for path in base.parent.glob(f"*/{CONTENT}")
        if path.parent != base and json.loads(path.read_text())["base"] == base.name
    ]
    return sorted(found, key=lambda path: (path / CONTENT).stat().st_mtime)


def _newest_like(base: Path) -> Path:
    return next(reversed(_stores_on(base)), base)


def _remove_others(*kept: Path) -> None:
    """Remove older stores. Clones do not depend on them."""
    for content in kept[0].parent.glob(f"*/{CONTENT}"):
        if content.parent not in kept:
            shutil.rmtree(content.parent, ignore_errors=True)


@contextmanager
def _draft(target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder that becomes `target` at the end, and one that is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".draft-") as name:
        draft, workspace = Path(name) / "store", Path(name) / "work"
        workspace.mkdir()
        yield draft, workspace
        draft.rename(target)


@contextmanager
def _containerd(
    engine: DockerEngine, node_image: str, store: Path, workspace: Path
) -> Iterator[str]:
    """Run containerd on a store in a container; yield the name of the container."""
    mounts = ("--volume", f"{store}:{CONTAINERD}", "--volume", f"{workspace}:/work")
    options = ("--detach", "--privileged", "--entrypoint", "/usr/bin/containerd")
    container = engine.docker("run", *options, *mounts, node_image).stdout.strip()
    try:
        deadline = time.monotonic() + READY_SECONDS
        while engine.docker("exec", container, "ctr", "version", check=False).returncode:
            if time.monotonic() > deadline:
                log = engine.docker("logs", "--tail", "20", container)
                raise EngineError(f"containerd did not start:\n{log.stdout}{log.stderr}")
            time.sleep(0.2)
        yield container
        engine.docker("stop", "--time", "30", container)
    finally:
        engine.docker("rm", "--force", "--volumes", container)


def _import(engine: DockerEngine, container: str, archive: Path) -> None:
    """Import images and keep only unpacked layers: pods need no packed ones."""
    _ctr(engine, container, "images", "import", "--digests", f"/work/{archive.name}")
    archive.unlink()
    # This also removes the layers of an image that had the same name before.
    _ctr(engine, container, "content", "prune", "references")


def _ctr(engine: DockerEngine, container: str, *arguments: str) -> None:
    command = ("exec", container, "ctr", "--namespace", "k8s.io", *arguments)
    engine.docker(*command, timeout=IMPORT_SECONDS)
