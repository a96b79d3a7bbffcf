"""A mixture of experts: who is asked, what evens their use out, and how their weights move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.job import Architecture
from llmtrain_core.plan.memory.training_memory import state_bytes
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job, check

pytestmark = pytest.mark.torch

MOE = {"experts": 4, "expertsPerToken": 2, "loadBalancingWeight": 0.05}
SHAPE = Architecture(
    layers=1,
    hidden_size=16,
    heads=2,
    ffn_size=24,
    vocab_size=32,
    sequence_length=8,
    experts=5,
    experts_per_token=2,
)


@pytest.fixture
def mixture() -> Any:
    import torch

    from llmtrain_trainer.model.experts import MixtureOfExperts

    torch.manual_seed(0)
    made = MixtureOfExperts(SHAPE).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_every_token_gets_the_weighed_answers_of_its_likeliest_experts(mixture: Any) -> None:
    import torch
    import torch.nn.functional as F

    x = torch.randn(3, 8, 16, dtype=torch.float64)
    found = mixture(x)
    experts = mixture.experts
    for token, answer in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        logits = mixture.router.weight @ token
        best = logits.argsort(descending=True)[:2]
        expected = sum(
            weight * (experts.down[e] @ (F.silu(experts.gate[e] @ token) * (experts.up[e] @ token)))
            for weight, e in zip(logits[best].softmax(0), best, strict=True)
        )
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-13)


def test_an_expert_that_nobody_asked_has_gradients_of_zero(mixture: Any) -> None:
    """FSDP adds up what every rank has; a rank without would leave the others waiting."""
    import torch

    x = torch.randn(1, 1, 16, dtype=torch.float64)
    mixture(x).sum().backward()
    asked = {int(e) for e in mixture.router(x).experts.flatten()}
    norms = [float(g.norm()) for g in mixture.experts.up.grad]
    assert len(asked) == 2
    assert {e for e, norm in enumerate(norms) if norm > 0} == asked


@pytest.mark.parametrize("counts", [[5, 0, 7, 8], [0, 0, 20, 0], [0, 0, 0, 0]])
def test_one_kernel_computes_what_each_expert_by_itself_does(counts: list[int]) -> None:
    """In bfloat16, outputs and gradients alike; also of experts without rows, and without any."""
    import torch
    import torch.nn.functional as F

    from llmtrain_trainer.model.experts import grouped_linear

    torch.manual_seed(3)
    rows = torch.randn(sum(counts), 32, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(4, 48, 32, dtype=torch.bfloat16, requires_grad=True)
    found = grouped_linear(rows, counts, weights)(rows, weights)
    parts = zip(rows.split(counts), weights.unbind(), strict=True)
    expected = torch.cat([F.linear(part, each) for part, each in parts])
    assert "GroupedMm" in type(found.grad_fn).__name__
    torch.testing.assert_close(found, expected)
    ahead = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, (rows, weights), ahead),
        torch.autograd.grad(expected, (rows, weights), ahead),
    )


def test_even_use_has_the_least_loss_and_one_expert_for_all_the_most() -> None:
    import torch

    from llmtrain_trainer.model.experts import LoadBalancingLoss, Routes

    even = torch.eye(4).repeat(2, 1).unsqueeze(0)
    chosen = even.argmax(dim=-1, keepdim=True)
    weights = torch.ones_like(chosen)
    assert float(LoadBalancingLoss()(Routes(chosen, weights, even))) == pytest.approx(1.0)
    same = torch.zeros_like(chosen)
    always = torch.zeros_like(even)
    always[..., 0] = 1
    assert float(LoadBalancingLoss()(Routes(same, weights, always))) == pytest.approx(4.0)


def test_every_example_has_a_loss_of_its_own_and_padding_has_none() -> None:
    """A batch has the loss of its examples, each by itself and without padding."""
    import torch

    from llmtrain_trainer.model.experts import Examples, LoadBalancingLoss, Routes

    torch.manual_seed(1)
    logits = torch.randn(2, 8, 5, dtype=torch.float64)

    def routes(logits: Any) -> Routes:
        probabilities = logits.softmax(-1)
        chosen = probabilities.topk(2, dim=-1).indices
        return Routes(chosen, torch.ones_like(chosen), probabilities)

    numbers = torch.tensor([[0, 0, 0, -1, -1, -1, -1, -1], [0, 0, 1, 1, 1, 1, 1, 2]])
    loss = LoadBalancingLoss()
    parts = (logits[:1, :3], logits[1:, :2], logits[1:, 2:7], logits[1:, 7:])
    alone = sum(loss(routes(part)) for part in parts)
    examples = Examples.of(numbers, torch.arange(8))
    torch.testing.assert_close(loss(routes(logits), examples), alone, rtol=0, atol=1e-13)
    assert abs(float(loss(routes(logits)) - alone)) > 1e-3


def test_the_loss_of_an_inner_layer_reaches_its_router_through_the_output(mixture: Any) -> None:
    """The gradients are those of the sum of both losses, and the output is as it was without."""
    import torch

    x = torch.randn(2, 8, 16, dtype=torch.float64)
    out = mixture(x)
    out.square().sum().backward()
    attached = mixture.router.weight.grad.clone()
    balance, mixture.load_balancing_loss = mixture.load_balancing_loss, None
    mixture.router.weight.grad = None
    plain = mixture(x)
    assert torch.equal(out, plain)
    plain.square().sum().backward()
    alone = mixture.router.weight.grad.clone()
    (own,) = torch.autograd.grad(balance(mixture.router(x)), mixture.router.weight)
    assert float(own.norm()) > 1e-3
    torch.testing.assert_close(attached, alone + own, rtol=0, atol=1e-13)


def test_the_loss_evens_the_use_of_experts_out(mixture: Any) -> None:
    import torch

    with torch.no_grad():
        mixture.router.weight[0] += 0.5
    x = torch.randn(4, 8, 16, dtype=torch.float64) + 0.5

    def busiest() -> float:
        chosen = mixture.router(x).experts.flatten().bincount(minlength=5)
        return float(chosen.max() / chosen.sum())

    before = busiest()
    for _ in range(100):
        mixture.router.weight.grad = None
        mixture.load_balancing_loss(mixture.router(x)).backward()
        with torch.no_grad():
            mixture.router.weight -= 0.02 * mixture.router.weight.grad
    assert before > 0.4
    assert busiest() < 0.3


def _stored(trainer: Any) -> int:
    """Return the bytes of the weights that this rank keeps."""
    return sum(p.to_local().nbytes for p in trainer.model.parameters())


def _planned(spec: dict[str, Any]) -> int:
    job = check("test", spec)
    assert isinstance(job, Job)
    setup = TrainingSetup.of(job)
    return state_bytes(setup, setup.stages[0])["weights"]


def test_a_checkpoint_goes_on_with_another_expert_degree(
    tmp_path: Path, shards: Any, run_trainers: Callable[..., Any], job_spec: Callable[..., Any]
) -> None:
    """Two ranks with two experts each; four with two or one; a half of every expert on each.

    In each layout rank 0 holds what the plan says.
    """
    checkpoint = {"uri": f"file://{tmp_path}", "everySteps": 3, "keep": 4}
    training = {"globalBatchSize": 8, "microBatchSize": 1}

    def spec(**layout: int) -> dict[str, Any]:
        return job_spec(  # type: ignore[no-any-return]
            **layout, checkpoint=checkpoint, architecture=MOE, training=training
        )

    def save(trainer: Any) -> tuple[int, list[float]]:
        for _ in range(3):
            trainer.take_step()
        trainer.save()
        return _stored(trainer), [trainer.take_step().loss for _ in range(3)]

    def go_on(trainer: Any) -> tuple[int, list[float]]:
        trainer.resume()
        assert trainer.step == 3
        return _stored(trainer), [trainer.take_step().loss for _ in range(3)]

    first = spec(data=2, expert=2)
    stored, expected = run_trainers(first, shards, save)[0]
    assert stored == _planned(first)
    for other in (spec(data=4, expert=2), spec(data=4, expert=4), spec(tensor=2)):
        stored, found = run_trainers(other, shards, go_on)[0]
        assert found == pytest.approx(expected, rel=0, abs=1e-12)
        assert stored == _planned(other)
