"""What crosses between copies: sums in fewer bytes, in levels, and by outer updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.trainer.jobs import random_shards
from tests.support.trainer.ranks import Grids

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

RunWorld = Callable[..., list[Any]]
RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]

OUTER = {"innerSteps": 3, "delaySteps": 2}
SYNCS: dict[str, dict[str, Any]] = {
    "exact": {},
    "bf16": {"compression": "bf16"},
    "int8": {"compression": "int8"},
    "diloco": {"mode": "diloco", "diloco": {"innerSteps": 3}},
    "late": {"mode": "diloco", "diloco": OUTER},
    "late int8": {"mode": "diloco", "compression": "int8", "diloco": OUTER},
    "racks": {"copiesPerRack": 2},
    "racks int8": {"copiesPerRack": 2, "compression": "int8"},
}


@pytest.mark.parametrize("values", [4, 252, 256, 260, 1000])
def test_eight_bits_are_wrong_by_half_a_step_at_most(values: int) -> None:
    import torch

    from llmtrain_core.plan.gradient_sync import message_bytes
    from llmtrain_trainer.parallel.replicate.quantization import Int8Codec

    rows = torch.randn(3, values, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[1] *= 1e-9
    rows[2] = 0
    message = Int8Codec().encode(rows)
    assert message.shape == (3, message_bytes("int8", values))
    back = Int8Codec().decode(message, values, rows.dtype)
    for row, found in zip(rows.split(256, 1), back.split(256, 1), strict=True):
        largest = row.abs().amax(1, keepdim=True)
        assert bool(((row - found).abs() <= largest * (0.5 / 127 + 1e-6)).all())
    assert bool((back[2] == 0).all())


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["Int8Codec", "Bfloat16Codec"])
def test_what_is_not_finite_is_seen_at_the_other_end(name: str, bad: float) -> None:
    import torch

    from llmtrain_trainer.parallel.replicate import quantization

    codec = getattr(quantization, name)()
    rows = torch.ones(1, 300)
    rows[0, 7] = bad
    back = codec.decode(codec.encode(rows), 300, rows.dtype)
    assert not bool(back.isfinite().all())
    assert bool(back[:, 256:].isfinite().all())


ROUNDS, LENGTH = 40, 1003


def _sums(rank: int) -> dict[str, Any]:
    """Add vectors up again and again in every way; return errors and bytes on the wire."""
    import torch

    from llmtrain_core.layout import Layout
    from llmtrain_core.plan.gradient_sync import SyncScheme
    from llmtrain_core.plan.network.communication import bus_factor
    from llmtrain_trainer.metrics.collectives import CollectiveMeter
    from llmtrain_trainer.parallel.mesh import Grid
    from llmtrain_trainer.parallel.replicate.choose import choose_all_reduce

    found = {}
    for near in (1, 2):
        grid = Grid.build(Layout(replicate=4), "cpu", SyncScheme(replicas_per_rack=near))
        for compression in ("none", "bf16", "int8"):
            all_reduce = choose_all_reduce(compression, grid.groups)
            random = torch.Generator().manual_seed(5)
            wanted = got = torch.zeros(LENGTH, dtype=torch.float64)
            worst = 0.0
            for _ in range(ROUNDS):
                vectors = torch.randn(4, LENGTH, generator=random, dtype=torch.float64)
                mine = vectors[rank].clone()
                with CollectiveMeter(grid.labels, "cpu") as meter:
                    all_reduce.start("v", mine)()
                worst = max(worst, float((mine - vectors.sum(0)).abs().max()))
                wanted, got = wanted + vectors.sum(0), got + mine
            sent = {
                (s.group, s.op): s.nbytes * bus_factor(s.op, s.group_size) for s in meter.samples()
            }
            drift = float((wanted - got).abs().max())
            found[f"{compression} {near}"] = (worst, drift, sent, mine.tolist())
    return found


@pytest.fixture(scope="module")
def sums(run_world: RunWorld) -> list[dict[str, Any]]:
    return run_world(4, _sums)


def test_all_copies_get_the_same_bits(sums: list[dict[str, Any]]) -> None:
    for way in sums[0]:
        assert all(rank[way][3] == sums[0][way][3] for rank in sums), way


def test_errors_of_eight_bits_do_not_add_up(sums: list[dict[str, Any]]) -> None:
    """Four senders and one sum round by half of about 1/127 of 3.5 standard deviations each."""
    for near in (1, 2):
        worst, drift = sums[0][f"int8 {near}"][:2]
        assert 1e-3 < worst < 0.3
        assert drift < 2 * worst
        assert sums[0][f"none {near}"][0] < 1e-14
        assert 1e-4 < sums[0][f"bf16 {near}"][0] < 0.1


def test_bytes_on_the_wire(sums: list[dict[str, Any]]) -> None:
    """All values take eight bytes here; racks of two send a half of them out, and a ring 2 of 3."""
    sent = {way: found[2] for way, found in sums[0].items()}
    whole = 8 * LENGTH
    assert sent["none 1"] == {("rep", "all_reduce"): 1.5 * whole}
    near = {("rep-near", op): 8 * 1004 / 2 for op in ("all_gather", "reduce_scatter")}
    assert sent["none 2"] == {**near, ("rep-far", "all_reduce"): 8 * 502}
    part, blocks = 252, 1
    message = 4 * (part + 4 * blocks)
    assert sent["int8 1"] == {("rep", op): 0.75 * message for op in ("all_gather", "all_to_all")}
    assert sum(sent["bf16 1"].values()) == pytest.approx(1.5 * whole / 4, rel=0.01)


def _steps(trainer: Any, count: int) -> list[Any]:
    return [trainer.take_step(sampled=True) for _ in range(count)]


def _composed(run_world: RunWorld, specs: dict[str, Any], data: Any) -> list[dict[str, Any]]:
    """Run all jobs on the same ranks; return losses, norms and held-out loss by name."""
    import torch

    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    runs = {name: from_spec("test", spec) for name, spec in specs.items()}

    def body(rank: int) -> dict[str, Any]:
        found, grids = {}, Grids()
        for name, run in runs.items():
            trainer = Trainer(run, data, torch.device("cpu"), lambda report: None, grids.of(run))
            reports = [trainer.take_step() for _ in range(run.steps)]
            weights = [p.detach().to_local().clone() for p in trainer.parameters]
            whole = torch.cat([w.flatten() for w in weights])
            copy = run.layout.coordinates(rank)["replicate"]
            place = rank - run.layout.rank(replicate=copy)
            found[name] = SimpleNamespace(
                losses=[r.loss for r in reports],
                norms=[r.grad_norm for r in reports],
                held_out=trainer.evaluate().loss,
                weights=(place, whole.double().sum().item(), whole.double().norm().item()),
            )
        return found

    return run_world(8, body, timeout=500)


GRIDS: dict[str, dict[str, int]] = {
    "tp2 pp2 rep2": {"tensor": 2, "pipeline": 2, "replicate": 2},
    "tp2 rep4": {"tensor": 2, "replicate": 4},
    "pp2 rep4": {"pipeline": 2, "replicate": 4},
}
WAYS = {
    "tp2 pp2 rep2": ("exact", "bf16", "int8", "diloco", "late int8"),
    "tp2 rep4": ("exact", "racks", "racks int8"),
    "pp2 rep4": ("exact", "racks", "racks int8"),
}


@pytest.fixture(scope="module")
def composed(
    run_world: RunWorld, job_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    training = {"steps": 4, "globalBatchSize": 8, "microBatchSize": 1}
    specs = {
        f"{grid}: {way}": job_spec(
            **GRIDS[grid],
            training={**training, "gradientSync": SYNCS[way]},
            architecture={"layers": 2},
        )
        for grid, ways in WAYS.items()
        for way in ways
    }
    data = random_shards(tmp_path_factory.mktemp("shards"), held_out_tokens=140)
    return _composed(run_world, specs, data)


def test_copies_end_alike_in_every_layout(composed: list[dict[str, Any]]) -> None:
    """After the last step: outer updates bring them together once more."""
    for name in composed[0]:
        places: dict[int, set[Any]] = {}
        for rank in composed:
            place, *digest = rank[name].weights
            places.setdefault(place, set()).add(tuple(digest))
        assert all(len(digests) == 1 for digests in places.values()), name
        assert len({rank[name].held_out for rank in composed}) == 1, name


def test_levels_are_exact_with_tensor_and_pipeline_ranks(composed: list[dict[str, Any]]) -> None:
    for grid in ("tp2 rep4", "pp2 rep4"):
        plain, racks = composed[0][f"{grid}: exact"], composed[0][f"{grid}: racks"]
        assert racks.losses == pytest.approx(plain.losses, rel=1e-12)
        assert racks.norms == pytest.approx(plain.norms, rel=1e-10)
        assert racks.held_out == pytest.approx(plain.held_out, rel=1e-12)


def test_approximate_ways_stay_near_with_tensor_and_pipeline_ranks(
    composed: list[dict[str, Any]],
) -> None:
    bars = {"bf16": 2e-3, "int8": 1e-2, "racks int8": 1e-2, "diloco": 0.15, "late int8": 0.15}
    for name, found in composed[0].items():
        grid, way = name.split(": ")
        if way in bars:
            plain = composed[0][f"{grid}: exact"]
            assert 0 < abs(found.held_out - plain.held_out) < bars[way], name
            assert found.losses[0] == pytest.approx(plain.losses[0], rel=bars[way]), name


def test_a_resumed_run_ends_with_the_same_bits(
    run_world: RunWorld,
    job_spec: MakeSpec,
    shards: Any,
    parameter_hash: Callable[[Any], str],
    tmp_path: Path,
) -> None:
    """Saved after step 4: eight-bit errors are kept, and an outer update is on its way."""
    ways = ("int8", "late int8")

    def spec(way: str) -> dict[str, Any]:
        return job_spec(
            replicate=2,
            precision="float32",
            training={"steps": 8, "gradientSync": SYNCS[way]},
            checkpoint={"uri": f"file://{tmp_path}/{way}".replace(" ", "-"), "everySteps": 4},
        )

    def body(rank: int) -> dict[str, list[str]]:
        import torch

        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.training.trainer import Trainer

        found, grids = {}, Grids()
        for way in ways:
            run = from_spec("test", spec(way))
            device = torch.device("cpu")
            whole, half, rest = (
                Trainer(run, shards, device, lambda report: None, grids.of(run)) for _ in range(3)
            )
            _steps(whole, 8)
            _steps(half, 4)
            half.save()
            rest.resume()
            assert rest.step == 4
            hashes = [parameter_hash(each) for each in (half, rest)]
            _steps(rest, 4)
            found[way] = [*hashes, *(parameter_hash(each) for each in (rest, whole))]
        return found

    ranks = run_world(2, body)
    for way in ways:
        saved = {rank[way][0] for rank in ranks}
        assert (len(saved) == 2) == (way == "late int8")
        for rank in ranks:
            at_save, resumed, end, end_of_whole = rank[way]
            assert (resumed, end) == (at_save, end_of_whole)
            assert end != at_save


def test_another_layout_goes_on_from_the_first_copy(
    run_trainers: RunTrainers, job_spec: MakeSpec, shards: Any, tmp_path: Path
) -> None:
    def spec(**degrees: int) -> dict[str, Any]:
        sync = SYNCS["late int8"] if "replicate" in degrees else {}
        job = job_spec(**degrees, training={"steps": 8, "gradientSync": sync})
        return {**job, "checkpoint": {"uri": f"file://{tmp_path}/run", "everySteps": 4}}

    def half(trainer: Any) -> list[float]:
        _steps(trainer, 4)
        trainer.save()
        return [float(p.detach().to_local().norm()) for p in trainer.parameters]

    def rest(trainer: Any) -> list[float]:
        trainer.resume()
        return [float(p.detach().to_local().norm()) for p in trainer.parameters]

    first, second = run_trainers(spec(replicate=2), shards, half)
    assert first != second
    assert run_trainers(spec(), shards, rest) == [first]


@pytest.mark.parametrize(("way", "steps"), [("exact", [2, 12]), ("diloco", [3, 15])])
def test_a_step_is_measured_in_which_copies_meet(
    way: str, steps: list[int], run_trainers: RunTrainers, job_spec: MakeSpec, shards: Any
) -> None:
    """One in ten, and for outer updates every third step the next one in which they meet."""

    def body(trainer: Any) -> list[tuple[int, bool]]:
        trainer.train()
        reports = [report for report in trainer.sent if getattr(report, "collectives", ())]
        return [(r.step, "rep" in {s.group for s in r.collectives}) for r in reports]

    training = {"steps": 15, "gradientSync": SYNCS[way]}
    spec = job_spec(replicate=2, training=training, architecture={"layers": 1})
    assert run_trainers(spec, shards, body) == [[(step, True) for step in steps]] * 2


def test_names_of_the_state_in_checkpoints_stay(
    run_trainers: RunTrainers, job_spec: MakeSpec, shards: Any
) -> None:
    """Checkpoints of earlier releases have these names."""
    spec = job_spec(replicate=2, training={"gradientSync": SYNCS["late int8"]})

    def names(trainer: Any) -> tuple[str, set[str]]:
        for _ in range(OUTER["innerSteps"]):
            trainer.take_step()
        return trainer.replica_sync.weights_prefix, set(trainer.replica_sync.state_dict())

    for rank, (prefix, found) in enumerate(run_trainers(spec, shards, names)):
        kind = "copies.rep2.1F1B.1.int8.1"
        assert prefix == (f"{kind}.copy-1." if rank else "")
        own = {f"{kind}.rank-{rank}.{each}.outer" for each in ("sent", "summed")}
        shared = ("shared", "momentum", "gradient", "due")
        assert found == own | {f"{kind}.place-0.{name}" for name in shared}
