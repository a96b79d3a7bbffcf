"""The data step of a job: from its sources to packed shards, once per folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmtrain_trainer.config import DataConfig
from llmtrain_trainer.data import prepared
from llmtrain_trainer.data.left_out import LONGEST, sentences, tails
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.sources import locate
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import HELD_OUT, TRAIN, PreparedData
from llmtrain_trainer.errors import InputError

__all__ = ["HELD_OUT", "TRAIN", "PreparedData", "prepare"]


def prepare(
    config: DataConfig,
    sequence: int,
    work_dir: Path,
    find_base_tokenizer: Callable[[DataConfig], Path | None] = lambda _: None,
    write_line: Callable[[str], None] = lambda _: None,
) -> PreparedData:
    """Prepare the data, or open it if it is prepared. Raises InputError for an unusable source.

    `find_base_tokenizer` returns the tokenizer of `config.init_from`. It is called only if there is
    something to prepare. `write_line` gets what the data was prepared with, and what was left out.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    field = config.sources[0].field
    folder = _prepared_source(config)
    if folder is None:
        plan = plan_preparation(config, base_tokenizer=find_base_tokenizer(config))
        root = work_dir / "data"
        root.mkdir(parents=True, exist_ok=True)
        folder = root / plan.key
        with _locked(root / f"{plan.key}.lock"):
            run_share(Workspace(plan, folder))
    manifest = prepared.read_manifest(folder)
    write_line(f"data: prepared with {prepared.prepared_with(manifest)}"[:LONGEST])
    for sentence in (*sentences(manifest), *tails(manifest, sequence)):
        write_line(f"data: {sentence}")
    data = prepared.load(folder, config.vocab_size, sequence, field)
    if data.examples != (config.chat is not None):
        raise InputError(
            "InvalidSpec",
            f"{folder} was prepared for {'sft' if data.examples else 'pretrain'}",
            field="spec.data.objective",
            remedy="set the objective it was prepared for, or prepare it again",
        )
    if data.template is not None:
        write_line(f"data: the chat template is that of {data.template}"[:LONGEST])
    return data


def _prepared_source(config: DataConfig) -> Path | None:
    """Return the folder of a prepared source, which must be the only source; otherwise None."""
    for source in config.sources:
        if source.format not in ("auto", "chat", "tokens"):
            continue
        folder = locate(source)
        if not prepared.is_prepared(folder) and source.format != "tokens":
            continue
        if len(config.sources) > 1:
            raise InputError(
                "InvalidSpec",
                f"source {source.name!r} is prepared data, which has its own mix of sources",
                field=source.field,
                remedy="make it the only source, or prepare all sources together",
            )
        return folder
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel releases even if this process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
