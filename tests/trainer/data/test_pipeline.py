"""From three real sources to shards: nothing twice, nothing lost, always the same bytes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.preparation import manifest_plan as planning
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.run_local import run_processes
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import load, read_manifest, shards, verify
from llmtrain_trainer.data.shards import TokenStream
from llmtrain_trainer.errors import InputError

SHARD = 20_000
"""Tokens per shard: a few dozen shards."""

MakeConfig = Callable[..., DataConfig]


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "UNIT_BYTES", 200_000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, config: MakeConfig) -> Path:
    """Prepared in one go by one process."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "UNIT_BYTES", 200_000)
        run_share(Workspace(plan_preparation(config(), SHARD), folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; nothing but the result may be left."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents(folder: Path, kept: bool = False) -> int:
    names = ("train", "heldOut") if kept else ("read",)
    counts = [source["documents"] for source in read_manifest(folder)["sources"]]
    return sum(count[name] for count in counts for name in names)


def test_counts_add_up(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert [source["name"] for source in manifest["sources"]] == [
        "licences",
        "programs",
        "speeches",
    ]
    for source in manifest["sources"]:
        count = source["documents"]
        fates = sum(count[fate] for fate in ("train", "heldOut", "exactDuplicate", "nearDuplicate"))
        assert count["read"] == fates + sum(count["dropped"].values()) > 0
        for part in ("train", "held-out"):
            stream = TokenStream(whole / source["name"], part, 1024)
            mine = [each for each in source["shards"] if f"/{part}-" in each["file"]]
            assert len(stream) == source["tokens"][part] == sum(each["tokens"] for each in mine) > 0
            ends = int((stream.read(0, len(stream)) == 0).sum())
            assert ends == count["train" if part == "train" else "heldOut"]
    assert verify(whole) == len(list(shards(manifest))) > 10
    licences = manifest["sources"][0]["documents"]
    assert licences["exactDuplicate"] > 0 and licences["nearDuplicate"] > 0


def test_a_second_run_writes_the_same_bytes(
    whole: Path, config: MakeConfig, tmp_path: Path
) -> None:
    before = contents(whole)
    run_share(Workspace(plan_preparation(config(), SHARD), tmp_path))
    assert contents(tmp_path) == before
    run_share(Workspace(plan_preparation(config(), SHARD), whole))
    assert contents(whole) == before


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_any_number_of_processes_writes_the_same_bytes(
    whole: Path, config: MakeConfig, tmp_path: Path, processes: int
) -> None:
    run_processes(Workspace(plan_preparation(config(), SHARD), tmp_path), processes)
    assert contents(tmp_path) == contents(whole)


def dies_after(renames: int, work: Workspace) -> bool:
    """Do a plan in a child that the kernel takes away at its n-th complete file."""
    child = os.fork()
    if child == 0:
        rename, left = Path.rename, [renames]

        def counted(self: Path, target: Path) -> Path:
            if not left[0]:
                os._exit(9)
            left[0] -= 1
            return rename(self, target)

        Path.rename = counted  # type: ignore[method-assign,assignment]
        try:
            run_share(work)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_interrupted_at_every_file_it_ends_with_the_same_bytes(
    whole: Path, config: MakeConfig, tmp_path: Path
) -> None:
    work = Workspace(plan_preparation(config(), SHARD), tmp_path)
    deaths = 0
    chance = random.Random(0)
    while dies_after(chance.choice((3, 4, 5, 9)), work):
        deaths += 1
        assert not work.manifest.exists()
        assert deaths < 200
    assert deaths > 10
    assert contents(tmp_path) == contents(whole)


def planted(folder: Path, speeches: list[Path]) -> Source:
    """Near copies of ten speeches: five with other white space, five with single words changed."""
    chance = random.Random(1)
    lines = []
    for number, path in enumerate(speeches[:10]):
        text = path.read_text()
        if number < 5:
            text = text.replace("\n", "\r\n").replace(" ", "  ") + "\n\n\n"
        else:
            words = text.split(" ")
            for place in chance.sample(range(len(words)), len(words) // 200 + 1):
                words[place] = "planted"
            text = " ".join(words)
        lines.append(json.dumps({"text": text}))
    path = folder / "planted.jsonl"
    path.write_text("\n".join(lines))
    return Source("a-planted", f"file://{path}", "s3")


def test_planted_duplicates_are_all_found(
    whole: Path, config: MakeConfig, speeches: list[Path], tmp_path: Path
) -> None:
    source = planted(tmp_path, speeches)
    folder = tmp_path / "out"
    run_share(Workspace(plan_preparation(config(source), SHARD), folder))
    assert documents(folder) == documents(whole) + 10
    assert documents(folder, kept=True) == documents(whole, kept=True)
    found: dict[str, Any] = {"exactDuplicate": 0, "nearDuplicate": 0}
    for data, sign in ((folder, 1), (whole, -1)):
        for each in read_manifest(data)["sources"]:
            for name in found:
                found[name] += sign * each["documents"][name]
    assert found == {"exactDuplicate": 0, "nearDuplicate": 10}


def test_the_order_of_sources_and_the_names_of_files_change_no_fate(
    config: MakeConfig, speeches: list[Path], tmp_path: Path
) -> None:
    def lines_kept(order: list[Path]) -> set[bytes]:
        source = tmp_path / f"in-{order[0].stem}"
        source.mkdir()
        for number, path in enumerate([*order, *order[:3]]):
            (source / f"{number:03d}.txt").write_bytes(path.read_bytes())
        folder = tmp_path / f"out-{order[0].stem}"
        data = DataConfig((Source("s", f"file://{source}", "s"),), 0.2, 600, 1)
        run_share(Workspace(plan_preparation(data), folder))
        ids = TokenStream(folder / "s", "held-out", 600)
        tokens = ids.read(0, len(ids))
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        parts = np.split(tokens, np.flatnonzero(tokens == 0) + 1)
        return {tokenizer.decode(part.tolist()).encode() for part in parts if len(part)}

    some = speeches[:12]
    assert lines_kept(some) == lines_kept(some[::-1])


def test_a_changed_source_does_not_mix_with_what_was_begun(
    config: MakeConfig, speeches: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in speeches[:6]:
        (source / path.name).write_bytes(path.read_bytes())
    data = DataConfig((Source("s", f"file://{source}", "s"),), 0.2, 600, 1)
    work = Workspace(plan_preparation(data), tmp_path / "out")
    assert dies_after(2, work)
    (source / "more.txt").write_text("one more document")
    with pytest.raises(InputError, match="other sources or settings") as caught:
        run_share(Workspace(plan_preparation(data), tmp_path / "out"))
    assert caught.value.remedy


def test_prepared_data_is_a_source_of_a_job(whole: Path, tmp_path: Path) -> None:
    from llmtrain_trainer.data.prepare import prepare

    source = Source("all", f"file://{whole}", "spec.data.sources[0].uri")
    data = prepare(DataConfig((source,), 0.1, 1024, 0), 64, tmp_path)
    assert data == load(whole, 1024, 64, "f")
    assert dict(data.sources) == {"licences": 0.5, "programs": 1.0, "speeches": 3.0}
    with pytest.raises(InputError, match="1024 tokens and the model's vocabulary is 512") as small:
        prepare(DataConfig((source,), 0.1, 512, 0), 64, tmp_path)
    assert small.value.field == "spec.model.architecture.vocabSize"
    with pytest.raises(InputError, match="own mix"):
        prepare(DataConfig((source, source), 0.1, 1024, 0), 64, tmp_path)
