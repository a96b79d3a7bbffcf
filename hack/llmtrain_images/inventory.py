"""List what is in an image. This file runs inside of it, with its Python and nothing else."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

STATUS = "/var/lib/dpkg/status"


def main() -> None:
    """Print packages with versions, licences and sizes, and the size of all files, as JSON."""
    found = {
        "python": sorted(map(_describe, distributions()), key=lambda entry: str(entry["name"])),
        "debian": _debian(Path(STATUS)),
        "bytes": sum(_size(path) for path in _files("/")),
        "environment_bytes": sum(_size(path) for path in _files(sys.prefix)),
    }
    print(json.dumps(found))


def _describe(package: Distribution) -> dict[str, object]:
    meta: Any = package.metadata
    stated = meta.get("License-Expression")
    sizes = [_size(str(package.locate_file(file))) for file in package.files or []]
    return {
        "name": re.sub(r"[-_.]+", "-", meta["Name"]).lower(),
        "version": package.version,
        "license": stated or _classified(meta.get_all("Classifier") or []),
        "bytes": sum(sizes),
    }


def _classified(classifiers: list[str]) -> str:
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    return " AND ".join(sorted(names))


def _debian(status: Path) -> list[dict[str, object]]:
    if not status.exists():
        return []
    found: list[dict[str, object]] = []
    for paragraph in status.read_text().split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.M))
        if fields.get("Status", "").endswith(" installed"):
            size = int(fields.get("Installed-Size", 0)) << 10
            entry = {"name": fields["Package"], "version": fields["Version"], "bytes": size}
            found.append({**entry, "architecture": fields["Architecture"]})
    return found


def _files(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        if parent == "/":
            folders[:] = [name for name in folders if name not in ("proc", "sys", "dev")]
        found += [str(Path(parent) / name) for name in names]
    return found


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


if __name__ == "__main__":
    main()
