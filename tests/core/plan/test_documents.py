"""The plan of attention inside documents: what keeps them apart takes memory, and a mask time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.plan.cpu.cost_model import rank_work
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory.training_memory import document_bytes, memory
from llmtrain_core.plan.model.model_shape import SHAPES, shape_of
from llmtrain_core.plan.time.predict import predict
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job, check
from tests.support.trainer.jobs import ARCHITECTURE, job_spec

H100 = CATALOGUE["H100"]
BASE = TrainingSetup(SHAPES["llama3-8b"], Layout(data=8), 16, micro_batch=2)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("data", "divided"),
    [
        ({}, False),
        ({"attention": "packed"}, False),
        ({"attention": "document"}, True),
        ({"objective": "sft"}, True),
        ({"objective": "sft", "packing": True}, True),
        ({"objective": "sft", "packing": False}, False),
    ],
    ids=str,
)
def test_a_job_says_whether_attention_stays_inside_documents(
    data: dict[str, Any], divided: bool
) -> None:
    from llmtrain_trainer.job_spec import from_spec

    spec = job_spec()
    spec["data"] |= data
    job = check("job", spec)
    assert isinstance(job, Job)
    assert TrainingSetup.of(job).divides_documents is divided
    assert from_spec("job", spec).divides_documents is divided


@pytest.mark.unit
def test_a_kernel_for_documents_costs_the_tables_of_their_positions() -> None:
    """In bfloat16, time is that of sequences that are one document."""
    divided = replace(BASE, divides_documents=True)
    (before, after) = (predict(setup, H100, 10**9) for setup in (BASE, divided))
    assert after.time == before.time
    assert document_bytes(divided) == 2 * 8192 * 2 * 128 * 4
    grown = after.memory.parts["activations"] - before.memory.parts["activations"]
    assert 0 <= grown <= document_bytes(divided)
    assert any("one document" in note for note in after.assumptions)
    assert not any("one document" in note for note in before.assumptions)
    learned = TrainingSetup(SHAPES["gpt2-124m"], Layout(), 8, divides_documents=True)
    assert document_bytes(learned) == 0


@pytest.mark.unit
def test_a_mask_of_all_pairs_costs_time_and_memory() -> None:
    plain = replace(BASE, precision="float32")
    masked = replace(plain, divides_documents=True)
    (before, after) = (predict(setup, H100, 10**9) for setup in (plain, masked))
    assert after.time.seconds > before.time.seconds
    pairs = 2 * 8192 * 8192 * 4
    assert memory(masked).parts["activations"] - memory(plain).parts["activations"] >= pairs
    shape = shape_of(SHAPES["tiny"])
    small = TrainingSetup(shape, Layout(), 8, precision="float32")
    work = [rank_work(replace(small, divides_documents=each), 0) for each in (False, True)]
    assert work[1].pop("attention") == 2 * work[0].pop("attention")
    assert work[0] == work[1]


@pytest.mark.torch
@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_bytes_are_those_of_the_tables_and_masks_of_the_model(
    context: int, positions: str
) -> None:
    """The mean over context ranks; head and tail of the sequence have different numbers of keys."""
    import torch

    from llmtrain_core.api.job import Architecture
    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.model.documents import MaskBuilder
    from llmtrain_trainer.parallel.context import query_stretches, token_positions

    shape = Architecture.from_wire({**ARCHITECTURE, "kvHeads": 4, "positions": positions})
    documents = (torch.arange(16) // 5).expand(2, 16)
    found = []
    for rank in range(context):
        model = Decoder(shape)
        model.set_token_positions(token_positions(16, rank, context))
        if context > 1:
            stretches = query_stretches(16, rank, context)
            model.document_masks = MaskBuilder(stretches, torch.float32)
        rotation, masks, _ = model.inside(documents)
        tables = [] if rotation is None else [rotation.cos, rotation.sin]
        found.append(sum(each.nbytes for each in (*tables, *masks)))
    setup = TrainingSetup(
        shape_of(shape),
        Layout(context=context),
        4,
        2,
        precision="float32",
        divides_documents=True,
    )
    assert len(set(found)) == 1
    assert document_bytes(setup) == found[0]
