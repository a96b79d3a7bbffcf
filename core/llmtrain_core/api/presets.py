"""Published architectures by name. Sources: the models' own `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmtrain_core.api.job import Architecture


def _llama(layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, length: int,
           theta: float = 500000.0, tied: bool = False) -> Architecture:  # fmt: skip
    return Architecture(
        layers=layers, hidden_size=hidden, heads=heads, kv_heads=kv, ffn_size=ffn, vocab_size=vocab,
        sequence_length=length, rope_theta=theta, tied_embeddings=tied,
    )  # fmt: skip


PRESETS: Mapping[str, Architecture] = MappingProxyType(
    {
        "tiny": _llama(4, 128, 4, 2, 352, 2048, 128, 10000.0),
        "llama-7b": _llama(32, 4096, 32, 32, 11008, 32000, 2048, 10000.0),
        "llama-13b": _llama(40, 5120, 40, 40, 13824, 32000, 2048, 10000.0),
        "llama-33b": _llama(60, 6656, 52, 52, 17920, 32000, 2048, 10000.0),
        "llama-65b": _llama(80, 8192, 64, 64, 22016, 32000, 2048, 10000.0),
        "llama2-7b": _llama(32, 4096, 32, 32, 11008, 32000, 4096, 10000.0),
        "llama2-13b": _llama(40, 5120, 40, 40, 13824, 32000, 4096, 10000.0),
        "llama2-70b": _llama(80, 8192, 64, 8, 28672, 32000, 4096, 10000.0),
        "llama3-8b": _llama(32, 4096, 32, 8, 14336, 128256, 8192),
        "llama3-70b": _llama(80, 8192, 64, 8, 28672, 128256, 8192),
        "llama3.1-8b": _llama(32, 4096, 32, 8, 14336, 128256, 8192),
        "llama3.1-70b": _llama(80, 8192, 64, 8, 28672, 128256, 8192),
        "llama3.1-405b": _llama(126, 16384, 128, 8, 53248, 128256, 8192),
        "llama3.2-1b": _llama(16, 2048, 32, 8, 8192, 128256, 8192, tied=True),
        "llama3.2-3b": _llama(28, 3072, 24, 8, 8192, 128256, 8192, tied=True),
        "mistral-7b": _llama(32, 4096, 32, 8, 14336, 32000, 8192, 10000.0),
        "tinyllama-1.1b": _llama(22, 2048, 32, 4, 5632, 32000, 2048, 10000.0),
    }
)
