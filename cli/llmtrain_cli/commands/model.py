"""`llmtrain export`, `import` and `sample`: convert and sample trained models."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from llmtrain_cli.io.output import Output, OutputOption, show
from llmtrain_cli.io.trainer_errors import trainer_errors

if TYPE_CHECKING:
    from llmtrain_trainer.checkpoint.paths import Folder


BaseOption = Annotated[
    str | None,
    typer.Option(help="base checkpoint of adapters; default: the one that they record"),
]


class Dtype(StrEnum):
    """Type of exported weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="folder or URI of a job's checkpoints, or of one checkpoint")
    ],
    to: Annotated[str, typer.Option("--to", help="folder or URI for the model")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="a tokenizer.json; default: that of the checkpoint")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="type of the weights")] = Dtype.FLOAT32,
    base: BaseOption = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="write adapters alone, in the format of PEFT")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Export a checkpoint as a Hugging Face model: config.json, tokenizer and safetensors."""
    if adapters and (tokenizer or base):
        raise typer.BadParameter("--adapters needs neither --tokenizer nor --base")
    with trainer_errors("trainer"):
        from llmtrain_trainer.weights.export import export_checkpoint
        from llmtrain_trainer.weights.peft import export_adapters

        metadata = (
            export_adapters(_folder(checkpoint), _folder(to))
            if adapters
            else export_checkpoint(
                _folder(checkpoint),
                _folder(to),
                tokenizer,
                dtype.value,
                base=_folder(base) if base else None,
            )
        )
    text = f"step {metadata.step} of {checkpoint} written to {to}"
    show({"step": metadata.step, "folder": to}, text, output)


def import_model(
    folder: Annotated[Path, typer.Argument(help="folder with config.json and safetensors")],
    to: Annotated[str, typer.Option("--to", help="folder or URI for the checkpoint")],
    base: Annotated[
        Path | None, typer.Option(help="folder of the model, if the folder holds PEFT adapters")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import a Hugging Face model as a checkpoint; print the model section of a job for it."""
    with trainer_errors("trainer"):
        from llmtrain_trainer.weights.load import import_checkpoint

        written, architecture = import_checkpoint(folder, _folder(to), base)
    uri = written.resolve().as_uri() if isinstance(written, Path) else str(written)
    section = {"model": {"architecture": architecture.to_wire(), "initFrom": uri}}
    show(section, yaml.safe_dump(section, sort_keys=False).rstrip(), output)


def sample(
    model: Annotated[str, typer.Argument(help="checkpoint or exported folder")],
    prompt: Annotated[str, typer.Option(help="text to continue")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="maximum number of new tokens")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: always the most likely token")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="sample from the K most likely tokens; 0: from all")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the sampling")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="the prompt is a message, in the model's chat template")
    ] = False,
    system: Annotated[str, typer.Option(help="system message of a chat")] = "",
    base: BaseOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Generate text with a model on the CPU of this computer."""
    with trainer_errors("trainer"):
        from llmtrain_trainer.weights import sample as sampling

        loaded, tokenizer = sampling.load_model(_folder(model), _folder(base) if base else None)
        how = sampling.SamplingOptions(temperature, top_k, seed)
        if chat:
            turns = [("system", system)] if system else []
            turns.append(("user", prompt))
            text = sampling.chat(loaded, tokenizer, turns, tokens, how)
        else:
            text = sampling.sample(loaded, tokenizer, prompt, tokens, how)
    show({"prompt": prompt, "text": text}, text if chat else prompt + text, output)


def _folder(text: str) -> Folder:
    from llmtrain_trainer.checkpoint.paths import folder_from_uri

    return folder_from_uri(text, text) if ":" in text else Path(text)
