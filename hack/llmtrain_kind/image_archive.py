"""Container images as an archive that `docker load` and `ctr images import` read.

An image is a list of layers, each a tar file, and the command that it runs. Equal input gives equal
archives: files carry no time and belong to root.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """One image of an archive."""

    name: str
    layers: tuple[Path, ...]
    """Uncompressed tar files, the lowest layer first."""
    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def write_layer(target: Path, files: Mapping[str, Path]) -> Path:
    """Write a layer with programs, by their path in the image."""
    with tarfile.open(target, "w") as layer:
        for folder in sorted({parent for name in files for parent in Path(name).parents}):
            if folder.name:
                layer.addfile(_entry(str(folder), tarfile.DIRTYPE))
        for name, source in sorted(files.items()):
            entry = _entry(name, tarfile.REGTYPE)
            entry.size = source.stat().st_size
            with source.open("rb") as content:
                layer.addfile(entry, content)
    return target


def write_archive(target: Path, images: Iterable[ContainerImage]) -> Path:
    """Write images to an archive; a layer that they share is written once."""
    manifest = []
    written: dict[Path, str] = {}
    with tarfile.open(target, "w") as archive:
        for image in images:
            for layer in image.layers:
                if layer not in written:
                    written[layer] = _digest(layer)
                    _add(archive, f"{written[layer]}.tar", layer)
            config = json.dumps(_config(image, [written[layer] for layer in image.layers])).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add_bytes(archive, name, config)
            layers = [f"{written[layer]}.tar" for layer in image.layers]
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": layers})
        _add_bytes(archive, "manifest.json", json.dumps(manifest).encode())
    return target


def _config(image: ContainerImage, digests: list[str]) -> dict[str, object]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Env": [f"{name}={value}" for name, value in image.env.items()],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created": EPOCH} for _ in digests],
    }


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _add(archive: tarfile.TarFile, name: str, source: Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = source.stat().st_size
    with source.open("rb") as content:
        archive.addfile(entry, content)


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _entry(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = 0o755
    return entry
