"""`llmtrain data`: prepare text for training, and verify prepared data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from llmtrain_cli.errors import CliError
from llmtrain_cli.io.files import read_job
from llmtrain_cli.io.output import Output, OutputOption, render, show
from llmtrain_cli.io.trainer_errors import trainer_errors
from llmtrain_core.api.data import Data, DataSource
from llmtrain_core.validation.check import problems_of

if TYPE_CHECKING:
    from llmtrain_trainer.config import DataConfig
    from llmtrain_trainer.data.preparation.run import PreparationProgress

app = typer.Typer(
    help="Text to token shards: prepare, verify.", no_args_is_help=True, add_completion=False
)

_NUMBERS = ("weight", "similarity", "maxUnusableRows")

INDEX, COUNT = "JOB_COMPLETION_INDEX", "LLMTRAIN_DATA_PROCESSES"


@app.command()
def prepare(
    to: Annotated[Path, typer.Option("--to", help="folder for the shards and their manifest")],
    file: Annotated[str | None, typer.Option("-f", "--file", help="the job's manifest")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="NAME=URI[,KEY=VALUE]..., with the fields of a source; instead of a job"),
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="without a job: vocabulary size")] = 32768,
    tokenizer: Annotated[
        str | None, typer.Option(help="without a job: URI of a tokenizer.json")
    ] = None,
    held_out: Annotated[float, typer.Option(help="without a job: held-out fraction")] = 0.05,
    seed: Annotated[int, typer.Option(help="without a job: seed of the held-out split")] = 0,
    processes: Annotated[int, typer.Option(envvar=COUNT, min=1, help="processes in total")] = 1,
    index: Annotated[
        int | None,
        typer.Option(envvar=INDEX, min=0, help="process only this share (Indexed Job)"),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Read, clean, deduplicate, tokenise and pack text. An interrupted run can be resumed."""
    if (file is None) == (not source):
        raise CliError("give either a job (-f) or sources (--source)")
    if index is not None and index >= processes:
        raise CliError(f"--index {index}: must be less than --processes {processes}")
    with trainer_errors("data"):
        from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
        from llmtrain_trainer.data.preparation.run_local import run_processes
        from llmtrain_trainer.data.preparation.workspace import Workspace
        from llmtrain_trainer.data.prepared import read_manifest

        config = _config_from_job(file) if file else None
        if config is None:
            config = _config_from_options(source or [], vocab_size, tokenizer, held_out, seed)
        work = Workspace(plan_preparation(config, base_tokenizer=_base_tokenizer(config)), to)
        with _progress(output) as report:
            run_processes(work, processes, report, index)
        manifest = read_manifest(to)
    show(manifest, _text(to, manifest), output)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="folder of prepared data")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Read every shard and compare it with the manifest."""
    with trainer_errors("data"):
        from llmtrain_trainer.data.prepared import prepared_with, read_manifest
        from llmtrain_trainer.data.prepared import verify as compare

        count = compare(folder)
        made = prepared_with(read_manifest(folder))
    facts = {"folder": str(folder), "shards": count, "preparedWith": made}
    show(facts, f"{folder}: {count} shards are intact; prepared with {made}", output)


def _base_tokenizer(config: DataConfig) -> Path | None:
    if config.init_from is None:
        return None
    from llmtrain_trainer.checkpoint.init_from import base_tokenizer

    return base_tokenizer(config)


def _config_from_job(path: str) -> DataConfig:
    from llmtrain_trainer.job_spec import from_spec

    job = read_job(path)
    return from_spec(job.name, job.spec.to_wire()).data


def _config_from_options(
    sources: list[str], vocab_size: int, tokenizer: str | None, held_out: float, seed: int
) -> DataConfig:
    from llmtrain_trainer.config import DataConfig, Source

    wire: dict[str, Any] = {
        "sources": [_parse(text) for text in sources],
        "heldOutFraction": held_out,
    }
    if tokenizer:
        wire["tokenizer"] = {"uri": tokenizer}
    try:
        data = Data.from_wire(wire)
    except ValidationError as error:
        found = "\n".join(f"  {problem}" for problem in problems_of(error))
        raise CliError(f"the sources are not valid:\n{found}") from error
    return DataConfig(
        tuple(Source.of(each, f"--source {each.name}") for each in data.sources),
        held_out,
        vocab_size,
        seed,
        tokenizer,
    )


def _parse(text: str) -> dict[str, Any]:
    """Parse NAME=URI,KEY=VALUE,... into a source in the form of a manifest."""
    name, equals, rest = text.partition("=")
    uri, *options = rest.split(",")
    if not (name and equals and uri):
        raise CliError(f"--source {text}: write NAME=URI")
    source: dict[str, Any] = {"name": name, "uri": uri}
    fields = {str(field.alias) for field in DataSource.model_fields.values()} - {"name", "uri"}
    for option in options:
        key, _, value = option.partition("=")
        if key not in fields or not value:
            known = ", ".join(f"{each}=" for each in sorted(fields))
            raise CliError(f"--source {text}: {option!r} is not one of {known}")
        try:
            source[key] = _value(key, value)
        except ValueError as error:
            raise CliError(f"--source {text}: {key} {value!r} is not a number") from error
    return source


def _value(key: str, text: str) -> Any:
    if key in _NUMBERS:
        return float(text)
    return text.split("+") if key == "languages" else text


@contextmanager
def _progress(output: Output) -> Iterator[Callable[[PreparationProgress], None]]:
    """Draw a progress bar per stage, unless there is no terminal or the output is JSON."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    shown = console.is_terminal and output is Output.TEXT
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not shown) as bars:
        tasks: dict[str, Any] = {}

        def report(progress: PreparationProgress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total)
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total)

        yield report


def _text(folder: Path, manifest: Mapping[str, Any]) -> str:
    from rich.table import Table

    from llmtrain_trainer.data.left_out import sentences

    table = Table(box=None)
    for name in ("source", "weight", "read", "dropped", "equal", "near", "train", "held out"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for source in manifest["sources"]:
        documents, tokens = source["documents"], source["tokens"]
        table.add_row(
            source["name"],
            f"{source['weight']:g}",
            str(documents["read"]),
            str(sum(documents["dropped"].values())),
            str(documents["exactDuplicate"]),
            str(documents["nearDuplicate"]),
            str(documents["train"]),
            str(documents["heldOut"]),
        )
        table.add_row("  tokens", *[""] * 5, str(tokens["train"]), str(tokens["held-out"]))
    size = manifest["tokenizer"]["vocabSize"]
    notes = "".join(f"\n{sentence}" for sentence in sentences(manifest))
    return f"{render(table)}\n{notes}\nvocabulary of {size} tokens; written to {folder}"
