"""Archives of images are equal for equal input, and have the layers that they name."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from llmtrain_kind.image_archive import ContainerImage, write_archive, write_layer

pytestmark = pytest.mark.unit


def archive(folder: Path) -> Path:
    folder.mkdir()
    (folder / "program").write_bytes(b"\x7fELF")
    layer = write_layer(folder / "layer.tar", {"usr/bin/program": folder / "program"})
    images = [
        ContainerImage("one:1", (layer,), ("/usr/bin/program",), {"PATH": "/usr/bin"}),
        ContainerImage("two:1", (layer,)),
    ]
    return write_archive(folder / "images.tar", images)


def test_equal_images_give_equal_archives(tmp_path: Path) -> None:
    first, second = archive(tmp_path / "a"), archive(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_an_archive_has_each_layer_once(tmp_path: Path) -> None:
    with tarfile.open(archive(tmp_path / "a")) as found:
        names = found.getnames()
        assert len(names) == len(set(names)) == 4  # one layer, two configurations, the manifest
        manifest = json.load(found.extractfile("manifest.json") or pytest.fail("no manifest"))
        assert [entry["RepoTags"] for entry in manifest] == [["one:1"], ["two:1"]]
        config = json.load(found.extractfile(manifest[0]["Config"]) or pytest.fail("no config"))
        (layer,) = manifest[0]["Layers"]
        content = (found.extractfile(layer) or pytest.fail("no layer")).read()
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(content).hexdigest()}"]
        assert config["config"] == {"Entrypoint": ["/usr/bin/program"], "Env": ["PATH=/usr/bin"]}


def test_a_layer_has_the_folders_of_its_files(tmp_path: Path) -> None:
    archive(tmp_path / "a")
    with tarfile.open(tmp_path / "a" / "layer.tar") as layer:
        found = {(member.name, member.isdir(), member.mode, member.uid) for member in layer}
    assert found == {
        ("usr", True, 0o755, 0),
        ("usr/bin", True, 0o755, 0),
        ("usr/bin/program", False, 0o755, 0),
    }
