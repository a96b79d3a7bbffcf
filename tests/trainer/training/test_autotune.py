"""Communication settings that are tried in the first steps, on real ranks.

The steps take as long as a test says, so that the decision does not depend on the machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

RunWorld = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]

SETTINGS: dict[str, dict[str, Any]] = {
    "one after the other": {},
    "overlap": {"overlap": True},
    "buckets": {"overlap": True, "bucketSize": "40k"},
    "one bucket": {"overlap": True, "bucketSize": "64Mi"},
    "chunks": {"chunks": 3},
    "all": {"overlap": True, "bucketSize": "40k", "chunks": 2},
}
"""Settings whose sums are equal, up to the order of additions."""
STEPS, TRIED = 13, 9
"""Steps of a run, and of its two trials: 2 + 3 and 1 + 3."""


def _start(spec: dict[str, Any], data: Any, **arguments: Any) -> Any:
    import torch

    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    sent: list[Any] = []
    trainer = Trainer(from_spec("test", spec), data, torch.device("cpu"), sent.append, **arguments)
    trainer.sent = sent  # type: ignore[attr-defined]
    return trainer


def test_settings_change_the_order_of_sums_only(
    run_world: RunWorld, job_spec: MakeSpec, shards: Any, parameter_hash: Callable[[Any], str]
) -> None:
    layouts: dict[str, dict[str, Any]] = {
        "rep4": {"replicate": 4},
        "racks": {"replicate": 4, "training": {"gradientSync": {"copiesPerRack": 2}}},
        "int8": {"replicate": 4, "training": {"gradientSync": {"compression": "int8"}}},
        "tied pp2 rep2": {
            "pipeline": 2,
            "replicate": 2,
            "precision": "bfloat16",
            "architecture": {"tiedEmbeddings": True},
        },
    }

    def spec(layout: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
        training = {**layout.get("training", {}), "communication": setting}
        architecture = {"layers": 2, **layout.get("architecture", {})}
        return job_spec(**{**layout, "architecture": architecture, "training": training})

    def names(layout: str) -> list[str]:
        return list(SETTINGS) if layout == "rep4" else ["one after the other", "overlap", "all"]

    def body(rank: int) -> dict[tuple[str, str], Any]:
        found = {}
        for layout, made in layouts.items():
            for name in names(layout):
                trainer = _start(spec(made, SETTINGS[name]), shards)
                losses = [trainer.take_step().loss for _ in range(3)]
                found[layout, name] = losses, parameter_hash(trainer)
        return found

    for found in run_world(4, body, timeout=500):
        for layout in layouts:
            usual, weights = found[layout, "one after the other"]
            assert found[layout, "overlap"] == (usual, weights), layout
            for name in names(layout):
                losses = found[layout, name][0]
                # int8 rounds each message by itself; two numbers have one order only
                tolerance = {"int8": 1e-3, "tied pp2 rep2": 0.0}.get(layout, 1e-12)
                assert losses == pytest.approx(usual, rel=tolerance, abs=0), (layout, name)


def _train(trainer: Any, slow: Callable[[Any], bool]) -> dict[str, Any]:
    """Train to the end; steps with a `slow` scheme take twice as long."""
    from llmtrain_trainer.runtime.reports import CommunicationReport, StepReport

    take_step = trainer.take_step

    def timed(sampled: bool = False) -> Any:
        scheme = trainer.run.sync
        return replace(take_step(sampled), seconds=2.0 if slow(scheme) else 1.0)

    trainer.take_step = timed
    trainer.train()
    return {
        "losses": {each.step: each.loss for each in trainer.sent if isinstance(each, StepReport)},
        "sampled": [e.step for e in trainer.sent if isinstance(e, StepReport) and e.collectives],
        "tuning": [e.tuning.to_wire() for e in trainer.sent if isinstance(e, CommunicationReport)],
        "groups": sorted(trainer.grid.groups),
        "labels": sorted(trainer.grid.labels.values()),
    }


def _copy(root: Path, to: Path, *files: str) -> None:
    """Make a folder with the checkpoint after the trials; rank 0 does it."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        shutil.copytree(root / f"step-{TRIED}", to / f"step-{TRIED}")
        for name in files:
            shutil.copy(root / name, to / name)
    dist.barrier()


@pytest.mark.parametrize(
    ("winner", "compression"), [(1, "int8"), (2, "none")], ids=["flat", "hierarchical"]
)
def test_the_steps_after_the_trials_are_those_of_a_run_with_the_setting(
    winner: int,
    compression: str,
    tmp_path: Path,
    run_world: RunWorld,
    job_spec: MakeSpec,
    shards: Any,
) -> None:
    def spec(folder: str, size: int = 1, autotune: bool = True) -> dict[str, Any]:
        return job_spec(
            replicate=4,
            architecture={"layers": 1},
            checkpoint={"uri": f"file://{tmp_path}/{folder}", "everySteps": TRIED, "keep": 9},
            training={
                "steps": STEPS,
                "globalBatchSize": 4,
                "microBatchSize": 1,
                "gradientSync": {"compression": compression, "copiesPerRack": size},
                "communication": {"autotune": autotune, "overlap": False, "chunks": 1},
            },
        )

    def slow(sync: Any) -> bool:
        return bool(sync.replicas_per_rack != winner)

    def body(rank: int) -> dict[str, Any]:
        node = f"node{rank}"
        found = {"tuned": _train(_start(spec("tuned"), shards, node=node), slow)}
        _copy(tmp_path / "tuned", tmp_path / "set")
        found["set"] = _train(_start(spec("set", winner, False), shards), slow)
        _copy(tmp_path / "tuned", tmp_path / "again", "communication.json")
        found["again"] = _train(_start(spec("again"), shards, node=node), slow)
        _copy(tmp_path / "tuned", tmp_path / "elsewhere", "communication.json")
        found["elsewhere"] = _train(_start(spec("elsewhere"), shards, node=f"{node}x"), slow)
        return found

    results = run_world(4, body, timeout=500)
    for found in results:
        after = {step: found["tuned"]["losses"][step] for step in range(TRIED + 1, STEPS + 1)}
        assert found["set"]["losses"] == after
        assert found["again"]["losses"] == after
        assert found["tuned"]["losses"] == results[0]["tuned"]["losses"]
        # no trial is sampled, and neither is the step after it, which may connect new groups
        assert found["tuned"]["sampled"] == [TRIED + 2]
        racks = {"intra_rack", "inter_rack"}
        for name in ("tuned", "set", "again"):
            assert racks.issubset(found[name]["groups"]) == (winner == 2), name
            assert ("rep-near" in found[name]["labels"]) == (winner == 2), name
        assert bool(found["tuned"]["tuning"]) == (found is results[0])
    tuned, again = results[0]["tuned"]["tuning"], results[0]["again"]["tuning"]
    assert [each["state"] for each in tuned] == ["Trying", "Trying", "Chosen"]
    assert tuned[-1]["fromStep"] == TRIED + 1
    assert tuned[-1]["setting"]["copiesPerRack"] == winner
    shown = {each["copiesPerRack"]: each["stepSeconds"] for each in tuned[-1]["trials"]}
    assert shown == {winner: 1.0, 3 - winner: 2.0}
    assert [each["state"] for each in again] == ["Reused"]
    assert again[0]["setting"] == tuned[-1]["setting"] and again[0]["trials"] == tuned[-1]["trials"]
    assert [each["state"] for each in results[0]["elsewhere"]["tuning"]] == ["Trying"]


def _flat_or_hierarchical(job_spec: MakeSpec, folder: Path) -> dict[str, Any]:
    """Return a job that tries an all-reduce without racks, and with racks of two."""
    return job_spec(
        replicate=4,
        architecture={"layers": 1},
        checkpoint={"uri": f"file://{folder}", "everySteps": 100},
        training={
            "steps": STEPS,
            "globalBatchSize": 4,
            "microBatchSize": 1,
            "communication": {"autotune": True, "overlap": False, "chunks": 1},
        },
    )


def test_a_setting_whose_trial_fails_costs_a_restart(
    tmp_path: Path, run_world: RunWorld, job_spec: MakeSpec, shards: Any
) -> None:
    spec = _flat_or_hierarchical(job_spec, tmp_path)

    def body(rank: int) -> Any:
        import torch.distributed as dist

        from llmtrain_trainer.errors import TrialError

        first = _start(spec, shards)
        take_step = first.take_step

        def failing(sampled: bool = False) -> Any:
            if first.run.sync.replicas_per_rack == 2:
                raise RuntimeError("out of memory")
            return replace(take_step(sampled), seconds=2.0)

        first.take_step = failing
        with pytest.raises(TrialError, match=r'"copiesPerRack":2.*RuntimeError: out of memory'):
            first.train()
        assert first.step == 5
        dist.barrier()
        return _train(_start(spec, shards), lambda sync: sync.replicas_per_rack == 1)["tuning"]

    reports = run_world(4, body)[0]
    assert [each["state"] for each in reports] == ["Chosen"]
    assert reports[0]["setting"]["copiesPerRack"] == 1
    trials = {each["copiesPerRack"]: each.get("stepSeconds") for each in reports[0]["trials"]}
    assert trials == {1: 2.0, 2: None}


def test_a_setting_that_cannot_be_used_is_not_tried_again(
    tmp_path: Path, run_world: RunWorld, job_spec: MakeSpec
) -> None:
    spec = _flat_or_hierarchical(job_spec, tmp_path)

    def body(rank: int) -> list[Any]:
        import torch

        from llmtrain_trainer.errors import PeerLostError, TrialError
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.runtime.exception_report import failure_of
        from llmtrain_trainer.runtime.reports import StepReport
        from llmtrain_trainer.training.autotune import Autotune

        sent: list[Any] = []

        def start(error: Exception) -> Any:
            def use(sync: Any) -> None:
                raise error

            run = from_spec("test", spec)
            made = Autotune(run, [1000], torch.device("cpu"), use, sent.append)
            made.restore(tmp_path, "node")
            made.start(0)
            return made

        def take_steps(trials: Autotune) -> None:
            for step in range(1, 6):
                trials.add_step(StepReport(step, 1.0, {}, 1, 1.0, 1.0, 0.1))

        first = start(RuntimeError("no more groups"))
        with pytest.raises(RuntimeError, match="data"), first.trial():
            raise RuntimeError("data")  # the setting of the job is not a trial
        with pytest.raises(TrialError) as caught:
            take_steps(first)
        assert failure_of(caught.value).retryable
        with pytest.raises(PeerLostError), first.trial():
            raise PeerLostError("rank 1 is gone")
        second = start(AssertionError("it is tried again"))
        assert not second.trying
        with pytest.raises(RuntimeError, match="later"), second.trial():
            raise RuntimeError("later")
        return [each.tuning.to_wire() for each in sent]

    (reports,) = run_world(1, body)
    assert [each["state"] for each in reports] == ["Trying", "Trying", "Chosen"]
    assert reports[-1]["setting"]["copiesPerRack"] == 1
    trials = {each["copiesPerRack"]: each.get("stepSeconds") for each in reports[-1]["trials"]}
    assert trials == {1: 1.0, 2: None}


def test_the_key_of_a_placement_has_what_step_times_depend_on(
    tmp_path: Path, run_world: RunWorld, job_spec: MakeSpec
) -> None:
    def body(rank: int) -> list[str]:
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.training.autotune import placement_key

        def key(node: str = "a", batch: int = 4, **variables: str) -> str:
            spec = _flat_or_hierarchical(job_spec, tmp_path)
            spec["training"]["globalBatchSize"] = batch
            with pytest.MonkeyPatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value)
                return placement_key(from_spec("test", spec), node)

        return [
            key(),
            key(node="b"),
            key(batch=8),
            key(NCCL_NET="Socket"),
            key(NCCL_NET="IB"),
            key(HOSTNAME="another"),
            key(),
        ]

    (keys,) = run_world(1, body)
    assert len({*keys}) == 5 and keys[-1] == keys[-2] == keys[0]


def test_groups_of_racks_end_in_the_same_order_on_all_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch.distributed as dist

    from llmtrain_core.layout import Layout
    from llmtrain_core.plan.gradient_sync import EXACT_SYNC
    from llmtrain_trainer.parallel.mesh import RACK_GROUPS, Grid

    ended: list[Any] = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda group: ended.append(group.group_name))
    groups: dict[str, Any] = {
        name: SimpleNamespace(group_name=name)
        for name in ("inter_rack", "dp_replicate", "intra_rack")
    }
    labels = {name: name for name in groups}
    grid = Grid(Layout(replicate=4), cast(Any, None), groups, None, labels).with_racks(EXACT_SYNC)
    assert ended == list(RACK_GROUPS)
    assert [*grid.groups] == [*grid.labels] == ["dp_replicate"]
