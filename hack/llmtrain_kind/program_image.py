"""An image of one static program, for pods that are not part of llmtrain."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from llmtrain_images.docker_engine import DockerEngine
from llmtrain_kind.image_archive import ContainerImage, write_archive, write_layer


def program_image(engine: DockerEngine, program: Path) -> str:
    """Return the name of an image that runs a program; load it if the engine does not have it."""
    with program.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    name = f"llmtrain-kind/{program.name}:{digest}"
    if not engine.has_image(name):
        with tempfile.TemporaryDirectory() as folder:
            layer = write_layer(Path(folder) / "layer.tar", {program.name: program})
            image = ContainerImage(name, (layer,), (f"/{program.name}",))
            archive = write_archive(Path(folder) / "image.tar", [image])
            engine.docker("load", "--input", str(archive))
    return name
