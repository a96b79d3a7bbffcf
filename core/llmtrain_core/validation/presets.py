"""Published architectures by name, with the values of the models' configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmtrain_core.api.job import Architecture


def _llama(
    layers: int,
    hidden: int,
    heads: int,
    kv: int,
    ffn: int,
    vocab: int,
    length: int,
    theta: float = 500000.0,
    tied: bool = False,
) -> Architecture:
    return Architecture(
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv,
        ffn_size=ffn,
        vocab_size=vocab,
        sequence_length=length,
        rope_theta=theta,
        tied_embeddings=tied,
    )


def _llama1(layers: int, hidden: int, heads: int, ffn: int, epsilon: float = 1e-6) -> Architecture:
    """Return a LLaMA of Touvron et al., arXiv:2302.13971; the largest has another epsilon."""
    base = _llama(layers, hidden, heads, heads, ffn, 32000, 2048, 10000.0)
    return base.model_copy(update={"norm_epsilon": epsilon})


def _gpt(layers: int, hidden: int, heads: int, length: int = 2048) -> Architecture:
    """Return a GPT of Radford et al., 2019, or Brown et al., arXiv:2005.14165, table 2.1.

    Their vocabulary has 50,257 tokens; it is padded to a multiple of 128, as in Megatron-LM,
    because tensor ranks share its rows evenly.
    """
    return Architecture(
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        ffn_size=4 * hidden,
        vocab_size=50304,
        sequence_length=length,
        tied_embeddings=True,
        positions="learned",
        norm="layer",
        activation="gelu",
        biases="all",
    )


def _mixtral(
    layers: int, hidden: int, heads: int, ffn: int, weight: float, length: int
) -> Architecture:
    """Return a Mixtral (arXiv:2401.04088): two of eight experts for every token.

    `weight` is the published one, of one loss over all layers, with shares that sum to two.
    """
    base = _llama(layers, hidden, heads, 8, ffn, 32000, length, 1e6)
    return base.model_copy(
        update={
            "experts": 8,
            "experts_per_token": 2,
            "load_balancing_weight": weight * 2 / layers,
        }
    )


def _qwen3_moe(layers: int, hidden: int, heads: int, ffn: int) -> Architecture:
    """Return a Qwen3 with eight of 128 experts for every token (arXiv:2505.09388)."""
    return _qwen(
        _llama(layers, hidden, heads, 4, ffn, 151936, 32768, 1e6),
        head_dim=128,
        qk_norm=True,
        experts=128,
        experts_per_token=8,
        load_balancing_weight=0.001 * 8 / layers,
    )


def _qwen(base: Architecture, **changes: Any) -> Architecture:
    return base.model_copy(update={"norm_epsilon": 1e-6, **changes})


PRESETS: Mapping[str, Architecture] = MappingProxyType(
    {
        "tiny": _llama(4, 128, 4, 2, 352, 2048, 128, 10000.0),
        "llama-7b": _llama1(32, 4096, 32, 11008),
        "llama-13b": _llama1(40, 5120, 40, 13824),
        "llama-33b": _llama1(60, 6656, 52, 17920),
        "llama-65b": _llama1(80, 8192, 64, 22016, 1e-5),
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
        "mixtral-8x7b": _mixtral(32, 4096, 32, 14336, 0.02, 32768),
        "mixtral-8x22b": _mixtral(56, 6144, 48, 16384, 0.001, 65536),
        "gpt2-124m": _gpt(12, 768, 12, 1024),
        "gpt2-1.5b": _gpt(48, 1600, 25, 1024),
        "gpt3-6.7b": _gpt(32, 4096, 32),
        "gpt3-175b": _gpt(96, 12288, 96),
        "qwen2-0.5b": _qwen(
            _llama(24, 896, 14, 2, 4864, 151936, 32768, 1e6, tied=True), biases="qkv"
        ),
        "qwen2-7b": _qwen(_llama(28, 3584, 28, 4, 18944, 152064, 32768, 1e6), biases="qkv"),
        "qwen2-72b": _qwen(_llama(80, 8192, 64, 8, 29568, 152064, 32768, 1e6), biases="qkv"),
        "qwen3-0.6b": _qwen(
            _llama(28, 1024, 16, 8, 3072, 151936, 32768, 1e6, tied=True),
            head_dim=128,
            qk_norm=True,
        ),
        "qwen3-8b": _qwen(
            _llama(36, 4096, 32, 8, 12288, 151936, 32768, 1e6), head_dim=128, qk_norm=True
        ),
        "qwen3-32b": _qwen(
            _llama(64, 5120, 64, 8, 25600, 151936, 32768, 1e6), head_dim=128, qk_norm=True
        ),
        "qwen3-30b-a3b": _qwen3_moe(48, 2048, 32, 768),
        "qwen3-235b-a22b": _qwen3_moe(94, 4096, 64, 1536),
        "tinyllama-1.1b": _llama(22, 2048, 32, 4, 5632, 32000, 2048, 10000.0),
    }
)
