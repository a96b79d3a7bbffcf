"""Build the images of the repository's Dockerfile, without an image registry and a network."""

from __future__ import annotations

import sysconfig
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmtrain_core.images import OPERATOR, TRAINER
from llmtrain_devcluster.go_build.tools import Progress, print_progress
from llmtrain_images.base import SOURCE_DATE_EPOCH, RootFilesystem, base_image
from llmtrain_images.debian import install_missing
from llmtrain_images.docker_engine import DockerEngine
from llmtrain_images.stubs import COMPILER, write_cuda_libraries
from llmtrain_images.wheels import LOCKS, REPOSITORY, download, without_cuda

SUITE = "bookworm"
RUNTIME = RootFilesystem(
    SUITE,
    packages=("ca-certificates", "libstdc++6", "python3"),
    purged=(
        "adduser",
        "apt",
        "debconf",
        "debian-archive-keyring",
        "e2fsprogs",
        "gpgv",
        "libapt-pkg6.0",
        "libext2fs2",
        "libfile-find-rule-perl",
        "libnumber-compare-perl",
        "libperl5.36",
        "libss2",
        "libtext-glob-perl",
        "logsave",
        "perl",
        "perl-base",
        "perl-modules-5.36",
        "usrmerge",
    ),
    removed=(
        "/usr/lib/*/gconv",
        "/usr/lib/python3.11/pydoc_data",
        "/var/cache/debconf",
        "/var/lib/dpkg/info",
    ),
)
BUILD = RootFilesystem(SUITE, packages=("python3-venv",))
VARIANTS = ("cpu", "cuda")
BUILD_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class ImageBuild:
    """The arguments of one build."""

    target: str
    name: str
    contexts: Mapping[str, Path]
    """Folders in place of stages."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    source: Path = REPOSITORY
    """Folder with the Dockerfile and all files that it copies."""


def build_operator(
    engine: DockerEngine,
    progress: Progress = print_progress,
    fresh: bool = False,
    *,
    source: Path = REPOSITORY,
    name: str = OPERATOR,
) -> str:
    """Build an operator's image and return its name. `fresh` uses no earlier layers."""
    wheels = download([_lock("operator")], progress)
    spec = ImageBuild("operator", name, {"operator-wheels": wheels}, source=source)
    return _build(engine, spec, progress, fresh)


def build_trainer(
    engine: DockerEngine, progress: Progress = print_progress, variant: str = "cpu"
) -> str:
    """Build the trainer's image and return its name."""
    lock = _lock("trainer")
    if variant == "cuda":
        wheels = download([lock, _lock("corpus")], progress)
        spec = ImageBuild("trainer", TRAINER, {"trainer-wheels": wheels}, {"VARIANT": "cuda"})
        return _build(engine, spec, progress, fresh=False)
    lock = without_cuda(lock)
    wheels = download([lock, _lock("corpus")], progress)
    install_missing(*COMPILER, progress)
    with tempfile.TemporaryDirectory() as name:
        libraries = Path(name)
        write_cuda_libraries(Path(sysconfig.get_path("purelib")), libraries)
        (libraries / "requirements.txt").write_text(lock)
        contexts = {"trainer-wheels": wheels, "cpu-libraries": libraries}
        spec = ImageBuild("trainer", TRAINER, contexts, {"VARIANT": "cpu"})
        return _build(engine, spec, progress, fresh=False)


def save(engine: DockerEngine, image: str, target: Path) -> int:
    """Write an image as a tar file of gzipped layers for `docker load`; return its bytes."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        plain = Path(folder) / "image.tar"
        engine.docker("save", "--output", str(plain), image)
        with plain.open("rb") as source, target.open("wb") as output:
            packer = zlib.compressobj(6, zlib.DEFLATED, 31)
            while block := source.read(1 << 20):
                output.write(packer.compress(block))
            output.write(packer.flush())
    return target.stat().st_size


def _build(engine: DockerEngine, spec: ImageBuild, progress: Progress, fresh: bool) -> str:
    arguments = {
        "BASE": base_image(engine, RUNTIME, progress),
        "BUILD_BASE": base_image(engine, BUILD, progress),
        "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH),
        "PIP_NO_INDEX": "1",
        **spec.arguments,
    }
    contexts = {"tool-wheels": download([_lock("build")], progress), **spec.contexts}
    progress(f"building {spec.name}")
    engine.docker(
        "build",
        *("--target", spec.target, "--tag", spec.name, "--network", "none"),
        *(["--no-cache"] if fresh else []),
        *(word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")),
        *(word for key, path in contexts.items() for word in ("--build-context", f"{key}={path}")),
        str(spec.source),
        timeout=BUILD_SECONDS,
    )
    return spec.name


def _lock(name: str) -> str:
    return (LOCKS / f"{name}.txt").read_text()
