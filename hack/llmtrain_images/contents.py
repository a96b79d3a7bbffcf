"""What is in an image: its parts with sizes, and a software bill of materials (CycloneDX)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_images.docker_engine import DockerEngine

_SCRIPT = Path(__file__).parent / "inventory.py"
_NAMESPACE = uuid.UUID("6f1c9a3e-6a55-5d0e-9a5c-2f3d1b0f7c11")
LARGEST = 8


@dataclass(frozen=True, slots=True)
class Package:
    """One package of an image. `architecture` is that of a Debian package, otherwise empty."""

    name: str
    version: str
    bytes: int
    license: str = ""
    architecture: str = ""

    def purl(self) -> str:
        """Return the package URL."""
        version = self.version.replace("+", "%2B").replace(":", "%3A")
        if self.architecture:
            return f"pkg:deb/debian/{self.name}@{version}?arch={self.architecture}"
        return f"pkg:pypi/{self.name}@{version}"


@dataclass(frozen=True, slots=True)
class Contents:
    """The packages of an image, and the bytes of its files."""

    python: tuple[Package, ...]
    debian: tuple[Package, ...]
    bytes: int
    environment_bytes: int


def read_contents(engine: DockerEngine, image: str) -> Contents:
    """Run the image without a network and list what it has."""
    options = ["--rm", "--network", "none", "--read-only", "--user", "0:0"]
    script = ["python", "-", "-I"]
    done = engine.docker(
        "run", "-i", *options, "--entrypoint", "", image, *script, text=_SCRIPT.read_text()
    )
    found = json.loads(done.stdout)
    return Contents(
        python=tuple(Package(**entry) for entry in found["python"]),
        debian=tuple(Package(**entry) for entry in found["debian"]),
        bytes=found["bytes"],
        environment_bytes=found["environment_bytes"],
    )


def bill_of_materials(image: str, contents: Contents) -> dict[str, Any]:
    """Return a CycloneDX document. It depends on nothing but the contents."""
    name, _, version = image.rpartition(":")
    components = [_component(package) for package in (*contents.python, *contents.debian)]
    serial = uuid.uuid5(_NAMESPACE, image + json.dumps(components, sort_keys=True))
    subject = {"type": "container", "bom-ref": image, "name": name, "version": version}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
    }


def describe_parts(contents: Contents) -> Iterator[tuple[str, int]]:
    """Yield the parts of an image with their bytes, from the whole to the largest packages."""
    yield "all files", contents.bytes
    yield "base", contents.bytes - contents.environment_bytes
    yield "Python packages", contents.environment_bytes
    largest = sorted(contents.python, key=lambda package: -package.bytes)
    for package in largest[:LARGEST]:
        yield f"  {package.name} {package.version}", package.bytes


def _component(package: Package) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl(),
        "name": package.name,
        "version": package.version,
        "purl": package.purl(),
    }
    if package.license:
        found["licenses"] = [{"license": {"name": package.license}}]
    return found
