"""A document in a sequence with others gives what it gives alone."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.job import Architecture
from llmtrain_core.api.model import RopeScaling

pytestmark = pytest.mark.torch

SHAPES: dict[str, dict[str, Any]] = {
    "rotary, grouped": {"kv_heads": 2},
    "rotary, scaled": {"rope_scaling": RopeScaling(factor=8, original_sequence_length=6)},
    "learned": {"positions": "learned", "norm": "layer", "activation": "gelu", "biases": "all"},
    "experts": {"experts": 3, "experts_per_token": 2, "load_balancing_weight": 0.0},
}
ROWS = [[0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 3, -1, -1], [0] * 13]
"""Numbers of documents: one has a single token, and one fills a sequence."""


def decoder(**shape: Any) -> Any:
    import torch

    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.model.init import draw

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        made = Decoder(
            Architecture(
                layers=2,
                hidden_size=16,
                heads=4,
                ffn_size=24,
                vocab_size=32,
                sequence_length=13,
                **shape,
            )
        )
    finally:
        torch.set_default_dtype(before)
    for name, parameter in made.named_parameters():
        parameter.data = 8 * draw(name, parameter.shape, 0, 2).double()
    return made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_outputs_and_gradients_are_those_of_each_document_alone(shape: dict[str, Any]) -> None:
    import torch

    model, documents = decoder(**shape), torch.tensor(ROWS)
    tokens = torch.randint(0, 32, documents.shape, generator=torch.Generator().manual_seed(0))
    found = model(tokens, documents)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    weight = weight.masked_fill((documents < 0).unsqueeze(-1), 0)
    gradients = torch.autograd.grad((found * weight).sum(), list(model.parameters()))
    whole = model(tokens)

    alone = torch.zeros_like(found)
    for row, numbers in enumerate(ROWS):
        for number in sorted(set(numbers) - {-1}):
            places = [place for place, each in enumerate(numbers) if each == number]
            start, end = places[0], places[-1] + 1
            alone[row, start:end] = model(tokens[row : row + 1, start:end])[0]
    expected = torch.autograd.grad((alone * weight).sum(), list(model.parameters()))

    real = documents >= 0
    torch.testing.assert_close(found[real], alone[real], rtol=1e-12, atol=1e-12)
    for some, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(some, other, rtol=1e-12, atol=1e-12)
    assert found.isfinite().all()
    # a model that attends to the whole sequence differs, or this would prove nothing
    assert float((whole[0, 3:11] - alone[0, 3:11]).detach().abs().max()) > 1e-2
    torch.testing.assert_close(whole[1], alone[1], rtol=1e-12, atol=1e-12)


def plain_varlen(
    query: Any,
    key: Any,
    value: Any,
    query_ends: Any,
    key_ends: Any,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Any:
    """Compute what torch's kernel of variable length documents, run by run."""
    import torch

    assert window_size == (-1, 0) and query_ends.dtype == key_ends.dtype == torch.int32
    assert enable_gqa == (query.size(1) != key.size(1))
    key, value = (each.repeat_interleave(query.size(1) // key.size(1), 1) for each in (key, value))
    out = []
    assert query_ends[-1] == len(query) and key_ends[-1] == len(key) == len(value)
    for run in range(len(query_ends) - 1):
        q = query[query_ends[run] : query_ends[run + 1]].transpose(0, 1)
        k, v = (each[key_ends[run] : key_ends[run + 1]].transpose(0, 1) for each in (key, value))
        assert 0 < q.size(1) <= max_q and q.size(1) <= k.size(1) <= max_k
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(k.size(1) - q.size(1) + 1)
        out.append((scores.masked_fill(later, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_runs_of_documents_are_what_a_mask_is(
    key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For whole sequences, and for a stretch of them, whose documents may begin earlier."""
    import torch

    from llmtrain_trainer.model import documents
    from llmtrain_trainer.parallel.document_kernel import ragged_difference

    monkeypatch.setattr(documents, "varlen_attn", plain_varlen)
    device = torch.device("cpu")
    assert ragged_difference(4, key_heads, 8, device, torch.float64) <= 1e-12


def test_runs_of_rows_of_different_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows end their documents at different places, and head and tail of a sequence are split."""
    import torch

    from llmtrain_trainer.model import documents
    from llmtrain_trainer.parallel.context import query_stretches

    monkeypatch.setattr(documents, "varlen_attn", plain_varlen)
    numbers = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 2], [0] * 8, [0, 1, 2, 3, 4, -1, -1, -1]])
    q, k, v = torch.randn(3, 3, 2, 8, 4, dtype=torch.float64)
    for rank in range(2):
        for stretch in (range(8), *query_stretches(8, rank, 2)):
            own = q[:, :, stretch.start : stretch.stop]
            keys, values = k[:, :, : stretch.stop], v[:, :, : stretch.stop]
            builder = documents.MaskBuilder((stretch,), torch.float64)
            (mask,) = builder(numbers)
            expected = documents.masked_attention(own, keys, values, mask)
            runs = documents.ragged_mask(numbers, stretch)
            found = documents.masked_attention(own, keys, values, runs)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_a_cpu_has_no_kernel_of_variable_length() -> None:
    import torch

    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.parallel.document_kernel import has_ragged_kernel
    from tests.support.trainer.jobs import job_spec

    run = from_spec("test", job_spec(precision="bfloat16"))
    assert not has_ragged_kernel(run, torch.device("cpu"))


def test_documents_end_with_the_token_that_ends_them() -> None:
    import torch

    from llmtrain_trainer.model.documents import (
        attention_span,
        document_numbers,
        document_positions,
    )

    tokens = torch.tensor([[3, 9, 4, 4, 9, 9, 1], [9, 1, 2, 3, 4, 5, 9]])
    numbers = document_numbers(tokens, 9)
    assert numbers.tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]
    assert document_positions(numbers).tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert attention_span(numbers) == (4 + 9 + 1 + 1 + 1 + 36) / 14
    padded = torch.tensor([[0, 0, 0, -1, -1]])
    assert attention_span(padded) == 3
