"""Generate text with a model on the CPU, to see what it has learned. This is not for serving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.paths import TOKENIZER, Folder
from llmtrain_trainer.data.tokenizer import end_token, open_tokenizer
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.weights.huggingface import is_huggingface, weights_of_huggingface
from llmtrain_trainer.weights.limited_tokenizer import decode_limited, encode_limited
from llmtrain_trainer.weights.reading import ReadWeights, open_weights


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: float = 1.0
    """Divides the logits. 0 takes the most likely token."""
    top_k: int = 0
    """Choose among this many most likely tokens. 0: among all."""
    seed: int = 0


def load_model(folder: Folder, base: Folder | None = None) -> tuple[Decoder, Tokenizer]:
    """Read a checkpoint, or an exported folder, with its tokenizer, in float32.

    Adapters are merged into `base`, by default the base that they record.
    """
    if is_huggingface(folder):
        if not isinstance(folder, Path):
            raise InputError("ModelUnreadable", f"{folder} is in a store", remedy="copy it here")
        architecture, read = weights_of_huggingface(folder)
        return build(architecture, read), _tokenizer(folder)
    with open_weights(folder, base) as opened:
        return build(opened.architecture, opened.read), _tokenizer(opened.folder)


def build(architecture: Architecture, read: ReadWeights) -> Decoder:
    """Return a decoder with the weights that `read` returns, one at a time."""
    with torch.device("meta"):
        model = Decoder(architecture)
    model.to_empty(device="cpu")
    model.tie()
    model.set_token_positions(torch.arange(architecture.sequence_length))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read([name])[name])
    return model


@torch.no_grad()
def generate(
    model: Decoder, prompt: list[int], count: int, options: SamplingOptions
) -> Iterator[int]:
    """Yield up to `count` tokens after a prompt that is not empty.

    The model gets as many of the last tokens as it was trained on.
    """
    generator = torch.Generator().manual_seed(options.seed)
    seen = list(prompt)
    for _ in range(count):
        tokens = torch.tensor([seen[-model.shape.sequence_length :]])
        seen.append(_draw(model(tokens)[0, -1].float(), options, generator))
        yield seen[-1]


def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    text: str,
    count: int,
    options: SamplingOptions,
    name: str = TOKENIZER,
) -> str:
    """Return what a model generates after a text, up to the end of the document.

    `name` is that of the tokenizer in errors.
    """
    end = end_token(tokenizer)
    prompt = encode_limited(tokenizer, text, name) or [end]
    written: list[int] = []
    for token in generate(model, prompt, count, options):
        if token == end:
            break
        written.append(token)
    return decode_limited(tokenizer, written, name)


def _draw(logits: Tensor, options: SamplingOptions, generator: torch.Generator) -> int:
    """Choose a token by its logit (vocab,)."""
    if options.temperature == 0:
        return int(logits.argmax())
    if 0 < options.top_k < logits.numel():
        least = logits.topk(options.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    chances = torch.softmax(logits / options.temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator))


def _tokenizer(folder: Folder) -> Tokenizer:
    try:
        return open_tokenizer(folder / TOKENIZER)
    except InputError as error:
        remedy = "put the tokenizer.json of the model there"
        raise InputError("ModelUnreadable", error.message, remedy=remedy) from error
