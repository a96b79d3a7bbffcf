"""Generate text with a model on the CPU, to see what it has learned. This is not for serving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.paths import TOKENIZER, Folder
from llmtrain_trainer.data.chat_template import template_of
from llmtrain_trainer.data.conversation_tokens import ConversationTokenizer
from llmtrain_trainer.data.conversations import Messages
from llmtrain_trainer.data.model_files import stop_tokens
from llmtrain_trainer.data.tokenizer import end_token, open_tokenizer
from llmtrain_trainer.data.tokenizer_settings import (
    TEMPLATE,
    TokenizerSettings,
    first_tokens,
    read_settings,
)
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.weights.huggingface import is_huggingface, weights_of_huggingface
from llmtrain_trainer.weights.limited_tokenizer import decode_limited, encode_limited, run_limited
from llmtrain_trainer.weights.reading import ReadWeights, open_weights


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: float = 1.0
    """Divides the logits. 0 takes the most likely token."""
    top_k: int = 0
    """Choose among this many most likely tokens. 0: among all."""
    seed: int = 0


def load_model(folder: Folder, base: Folder | None = None) -> tuple[Decoder, LoadedTokenizer]:
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

    Keys and values of earlier tokens are kept. Beyond the length that the model was trained on, it
    gets as many of the last tokens, whose positions change, so all of them are computed again.
    """
    generator = torch.Generator().manual_seed(options.seed)
    longest, seen = model.shape.sequence_length, list(prompt)
    caches = [KeyValueCache() for _ in model.blocks()]
    for block, cache in zip(model.blocks(), caches, strict=True):
        block.attention.core_attention = cache
    for _ in range(count):
        if caches[0].length == 0 or len(seen) > longest:
            for cache in caches:
                cache.clear()
            new = seen[-longest:]
        else:
            new = seen[-1:]
        done = caches[0].length
        model.set_token_positions(torch.arange(done, done + len(new)))
        logits = model(torch.tensor([new]))
        seen.append(_draw(logits[0, -1].float(), options, generator))
        yield seen[-1]


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer with its settings."""

    tokenizer: Tokenizer
    settings: TokenizerSettings
    name: str = TOKENIZER
    """Its file, for errors."""

    def stop_tokens(self) -> set[int]:
        """Return the ids at which generation ends."""
        return set(stop_tokens(self.tokenizer, template_of(self.settings), self.settings))


def sample(
    model: Decoder, loaded: LoadedTokenizer, text: str, count: int, options: SamplingOptions
) -> str:
    """Return what a model generates after a text, up to the end of the document."""
    first = first_tokens(loaded.tokenizer, loaded.settings)
    prompt = first + encode_limited(loaded.tokenizer, text, loaded.name)
    end = end_token(loaded.tokenizer, loaded.settings.eos)
    return _write(model, loaded, prompt or [end], count, options)


def chat(
    model: Decoder,
    loaded: LoadedTokenizer,
    messages: Messages,
    count: int,
    options: SamplingOptions,
) -> str:
    """Return the response of a model to a conversation, up to its end.

    Raises InputError if the model has no chat template.
    """
    template = template_of(loaded.settings)
    if template is None:
        raise InputError(
            "ModelUnreadable",
            f"{loaded.name}: there is no chat template beside it",
            remedy=f"put {TEMPLATE} of the model there, or sample without --chat",
        )
    end = loaded.tokenizer.id_to_token(end_token(loaded.tokenizer, loaded.settings.eos))
    segments = template.segments(messages, str(end), prompt=True)

    def encode() -> list[int]:
        return [token for token, _, _ in ConversationTokenizer(loaded.tokenizer).encode(segments)]

    length = sum(len(segment.text) for segment in segments)
    prompt = run_limited(encode, length, loaded.name)
    return _write(model, loaded, [int(each) for each in prompt], count, options)


def _write(
    model: Decoder, loaded: LoadedTokenizer, prompt: list[int], count: int, options: SamplingOptions
) -> str:
    stops = loaded.stop_tokens()
    written: list[int] = []
    for token in generate(model, prompt, count, options):
        if token in stops:
            break
        written.append(token)
    return decode_limited(loaded.tokenizer, written, loaded.name)


class KeyValueCache(nn.Module):
    """Causal attention that keeps the keys and values of earlier calls."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        """Tokens that are kept."""
        self._kept: tuple[Tensor, Tensor] | None = None

    def clear(self) -> None:
        """Forget all tokens."""
        self.length, self._kept = 0, None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map (batch, heads, new, width): a whole prompt at first, later one token at a time."""
        if self._kept is not None:
            k, v = (torch.cat(pair, dim=-2) for pair in zip(self._kept, (k, v), strict=True))
        self._kept, self.length = (k, v), k.size(-2)
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=q.size(-2) > 1, enable_gqa=q.size(1) != k.size(1)
        )


def _draw(logits: Tensor, options: SamplingOptions, generator: torch.Generator) -> int:
    """Choose a token by its logit (vocab,)."""
    if options.temperature == 0:
        return int(logits.argmax())
    if 0 < options.top_k < logits.numel():
        least = logits.topk(options.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    chances = torch.softmax(logits / options.temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator))


def _tokenizer(folder: Folder) -> LoadedTokenizer:
    path = folder / TOKENIZER
    try:
        return LoadedTokenizer(open_tokenizer(path), read_settings(path), str(path))
    except InputError as error:
        remedy = "put the tokenizer.json of the model there, with the files that belong to it"
        raise InputError("ModelUnreadable", error.message, remedy=remedy) from error
