"""Adapters through a job's life: from a base, through a restart, to merged weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.checkpoint.paths import INDEX_FILE
from llmtrain_trainer.errors import InputError

pytestmark = pytest.mark.torch

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]
Hash = Callable[[Any], str]

LORA = {"rank": 3, "alpha": 6, "targets": ["q_proj", "down_proj"], "merge": True}


def folder(path: Path, every: int = 3) -> dict[str, Any]:
    return {"uri": f"file://{path}", "everySteps": every}


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory,
    run_trainers: RunTrainers,
    job_spec: MakeSpec,
    shards: Any,
) -> tuple[Path, float]:
    """A base trained for a few steps, and its held-out loss."""
    path = tmp_path_factory.mktemp("base")

    def train(trainer: Any) -> float:
        trainer.train()
        return trainer.evaluate().loss  # type: ignore[no-any-return]

    return path, run_trainers(job_spec(checkpoint=folder(path)), shards, train)[0]


@pytest.fixture(scope="module")
def lora(base: tuple[Path, float], job_spec: MakeSpec) -> MakeSpec:
    """Make the spec of a job that trains adapters on the base."""

    def make(path: Path, lora: dict[str, Any] = LORA, **layout: int) -> dict[str, Any]:
        return job_spec(
            **layout,
            init_from=f"file://{base[0]}",
            training={"lora": lora},
            checkpoint=folder(path),
        )

    return make


def names(step: Path) -> set[str]:
    """Return what a checkpoint holds."""
    from llmtrain_trainer.checkpoint.shards import load_index

    return set(load_index(step).state_dict_metadata)


def test_a_job_of_adapters_from_base_to_merged_weights(
    base: tuple[Path, float],
    lora: MakeSpec,
    job_spec: MakeSpec,
    run_trainers: RunTrainers,
    parameter_hash: Hash,
    shards: Any,
    tmp_path: Path,
) -> None:
    import torch

    from llmtrain_trainer.weights.huggingface import weights_of_huggingface
    from llmtrain_trainer.weights.reading import weight_shapes, weights_of_checkpoint

    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def train(trainer: Any) -> tuple[float, float, str]:
        trainer.train()
        bits = parameter_hash(trainer)
        return trainer.held_out_before.loss, trainer.evaluate().loss, bits

    def half(trainer: Any) -> None:
        trainer.resume()
        trainer.load_initial_weights()
        trainer.held_out_before = trainer.evaluate()
        for _ in range(3):
            trainer.take_step()
        trainer.save()

    spec, exported = lora(whole, data=2), tmp_path / "exported"
    spec["checkpoint"]["exportHuggingFace"] = f"file://{exported}"
    straight = run_trainers(spec, shards, train)
    # it starts as the base, which it leaves
    assert straight[0][0] == pytest.approx(base[1], rel=1e-12)
    assert abs(straight[0][1] - straight[0][0]) > 1e-5
    # a checkpoint holds adapters and their moments, nothing else
    held = names(whole / "step-6")
    assert len({name for name in held if name.startswith("model.")}) == 4 * 2 * 2
    assert all(".lora." in name for name in held if ".param_groups." not in name), held
    # stopped half way and gone on with in new processes, the bits are the same
    run_trainers(lora(halves, data=2), shards, half)
    assert run_trainers(lora(halves, data=2), shards, train) == straight
    # merged weights are a base like any other, in any layout, and do what the adapters did
    merged = whole / "merged" / "step-6"
    assert {name for name in names(merged) if ".lora." in name} == set()
    again = job_spec(tensor=2, init_from=f"file://{whole}/merged")

    def evaluate(trainer: Any) -> float:
        trainer.load_initial_weights()
        return trainer.evaluate().loss  # type: ignore[no-any-return]

    assert run_trainers(again, shards, evaluate)[0] == pytest.approx(straight[0][1], rel=1e-12)
    # and they are what is exported
    architecture, read = weights_of_huggingface(exported)
    weights = list(weight_shapes(architecture))
    stored = weights_of_checkpoint(merged, architecture)(weights)
    assert all(torch.equal(w, stored[name].float()) for name, w in read(weights).items())


def refusal(run_trainers: RunTrainers, spec: dict[str, Any], data: Any) -> tuple[str, str | None]:
    def train(trainer: Any) -> tuple[str, str | None, str]:
        try:
            trainer.train()
        except InputError as error:
            return error.reason, error.field, error.message
        raise AssertionError("trained")

    reason, field, message = run_trainers(spec, data, train)[0]
    return f"{reason}: {message}", field


def test_what_is_no_base_or_no_checkpoint_of_the_job_is_refused(
    base: tuple[Path, float],
    lora: MakeSpec,
    job_spec: MakeSpec,
    run_trainers: RunTrainers,
    shards: Any,
    tmp_path: Path,
) -> None:
    def save(trainer: Any) -> None:
        trainer.take_step()
        trainer.save()

    run_trainers(lora(tmp_path), shards, save)
    cases = [
        (lora(tmp_path, {**LORA, "rank": 4}), "spec.checkpoint.uri", "with different adapters"),
        (job_spec(checkpoint=folder(tmp_path)), "spec.checkpoint.uri", "with different adapters"),
        (job_spec(init_from=f"file://{tmp_path}"), "spec.model.initFrom", "holds adapters only"),
        (job_spec(init_from=f"file://{tmp_path}/none"), "spec.model.initFrom", "contains none"),
        (
            job_spec(init_from=f"file://{base[0]}", architecture={"layers": 3}),
            "spec.model.initFrom",
            "another architecture",
        ),
    ]
    for spec, field, message in cases:
        said, named = refusal(run_trainers, spec, shards)
        assert (named, message in said) == (field, True), said


def test_a_job_of_adapters_goes_on_from_the_base_that_it_recorded_or_is_refused(
    base: tuple[Path, float],
    job_spec: MakeSpec,
    run_trainers: RunTrainers,
    parameter_hash: Hash,
    shards: Any,
    tmp_path: Path,
) -> None:
    """The base job goes on while the job of adapters is stopped."""
    growing, early, late = (tmp_path / name for name in ("growing", "early", "late"))
    for root, step in ((growing, 3), (early, 3), (late, 6)):
        shutil.copytree(base[0] / f"step-{step}", root / f"step-{step}")

    def on(root: Path, run: str) -> dict[str, Any]:
        return job_spec(
            init_from=root.as_uri(), training={"lora": LORA}, checkpoint=folder(tmp_path / run)
        )

    def record(step: int) -> dict[str, Any]:
        text = (tmp_path / f"run/step-{step}/llmtrain.json").read_text()
        return dict(json.loads(text)["base"])

    def half(trainer: Any) -> None:
        trainer.load_initial_weights()
        trainer.held_out_before = trainer.evaluate()
        for _ in range(3):
            trainer.take_step()
        trainer.save()

    def train(trainer: Any) -> tuple[str, float]:
        trainer.train()
        return parameter_hash(trainer), trainer.evaluate().loss

    job = on(growing, "run")
    run_trainers(job, shards, half)
    index = (growing / "step-3" / INDEX_FILE).read_bytes()
    digest = hashlib.sha256(index).hexdigest()[:32]
    assert record(3) == {"uri": growing.as_uri(), "step": 3, "digest": digest}
    shutil.copytree(tmp_path / "run", tmp_path / "stopped")

    shutil.copytree(late / "step-6", growing / "step-6")
    resumed = run_trainers(job, shards, train)
    assert record(6) == record(3)
    # the weights are base and adapters: those of a job whose base never went on
    assert resumed == run_trainers(on(early, "on-early"), shards, train)
    assert resumed != run_trainers(on(late, "on-late"), shards, train)

    again = on(growing, "stopped")
    shutil.rmtree(growing / "step-3")
    said, field = refusal(run_trainers, again, shards)
    assert field == "spec.model.initFrom" and "step-3 is not a complete checkpoint" in said, said
    shutil.copytree(late / "step-6", growing / "step-3")
    said, field = refusal(run_trainers, again, shards)
    assert field == "spec.model.initFrom" and "step-3 has other weights" in said, said


def test_a_sequence_longer_than_learned_positions_is_refused(
    job_spec: MakeSpec, tmp_path: Path
) -> None:
    """A base with rotary positions reads sequences of any length; learned ones end somewhere."""
    from llmtrain_trainer.checkpoint.init_from import base_checkpoint
    from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, create_step_folder
    from llmtrain_trainer.checkpoint.paths import COMPLETE_MARKER
    from llmtrain_trainer.job_spec import from_spec

    for positions in ("rotary", "learned"):
        short, long = (
            from_spec("test", job_spec(architecture={"positions": positions, **length}))
            for length in ({}, {"sequenceLength": 32})
        )
        root, wanted = tmp_path / positions, long.architecture.to_wire()
        saved = CheckpointMetadata(1, "2.15.0", "dp1", short.architecture.to_wire(), "d", 8, None)
        step = create_step_folder(root, saved)
        (step / COMPLETE_MARKER).touch()
        if positions == "rotary":
            assert base_checkpoint(root.as_uri(), "2.15.0", wanted).folder == step
            continue
        with pytest.raises(InputError, match="sequenceLength is 16 there and 32 here") as caught:
            base_checkpoint(root.as_uri(), "2.15.0", wanted)
        assert caught.value.field == "spec.model.initFrom" and caught.value.remedy


def test_a_base_without_its_tokenizer_is_refused(tmp_path: Path, base: tuple[Path, float]) -> None:
    """Other tokens would mean nothing to it; the one beside its weights is used."""
    from llmtrain_trainer.checkpoint.init_from import checkpoint_tokenizer

    with pytest.raises(InputError, match=r"has no tokenizer\.json") as caught:
        checkpoint_tokenizer(f"file://{base[0]}")
    assert caught.value.field == "spec.data.tokenizer.uri"
    step = tmp_path / "step-1"
    step.mkdir()
    for name in (".metadata", "tokenizer.json"):
        (step / name).write_text("")
    assert checkpoint_tokenizer(f"file://{tmp_path}") == step / "tokenizer.json"
