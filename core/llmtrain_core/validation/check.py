"""Checks that need more than the manifest: presets, limits of the trainer, supported features.

The operator sets `Accepted=False` with the first problem; the command line prints all problems.
Each problem has the field and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError

from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.job import Architecture, JobSpec
from llmtrain_core.layout import Layout
from llmtrain_core.validation.pod import pod_problems
from llmtrain_core.validation.presets import PRESETS
from llmtrain_core.validation.problem import Problem
from llmtrain_core.validation.trainable import training_problems

__all__ = [
    "NAME_LIMIT",
    "Job",
    "Problem",
    "check",
    "layout_of",
    "not_yet_supported",
    "problems_of",
]

_MAPS = frozenset({"nodeSelector", "requests", "limits", "nccl", "podLabels", "podAnnotations"})

_CONVERSATIONS = frozenset({"auto", "jsonl", "tokens"})

NAME_LIMIT = 50
"""Maximum length of a job name. `-<attempt>-<index>` must fit into the 63 characters of a
hostname."""


@dataclass(frozen=True, slots=True)
class Job:
    """A valid job, with its architecture, layout and number of nodes."""

    name: str
    spec: JobSpec
    architecture: Architecture | None
    layout: Layout
    nodes: int

    @property
    def gpus_per_node(self) -> int:
        """Number of GPUs, and of ranks, per node."""
        return self.spec.workers.gpus_per_node

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps; 0 for a third-party trainer.

        For fine-tuning by tokens it is the least number: the trainer knows how full sequences are.
        """
        training = self.spec.training
        if training is None or self.architecture is None:
            return 0
        if training.steps is not None:
            return training.steps
        per_step = training.global_batch_size * self.architecture.sequence_length
        return -(-(training.tokens or 0) // per_step)

    @property
    def knows_total_steps(self) -> bool:
        """False for fine-tuning by tokens, whose steps follow from the prepared data."""
        training, data = self.spec.training, self.spec.data
        by_tokens = training is not None and training.tokens is not None
        return not (by_tokens and data is not None and data.objective == "sft")


def layout_of(spec: JobSpec) -> Layout:
    """Return the layout of a valid spec; an absent `data` is derived from the nodes."""
    degrees = spec.parallelism
    other = degrees.tensor * degrees.pipeline * degrees.context * degrees.replicate
    data = degrees.data or (spec.workers.nodes or 1) * spec.workers.gpus_per_node // other
    return Layout(
        tensor=degrees.tensor,
        context=degrees.context,
        data=data,
        replicate=degrees.replicate,
        pipeline=degrees.pipeline,
        expert=degrees.expert,
    )


def check(name: str, raw_spec: Mapping[str, Any]) -> Job | list[Problem]:
    """Check a stored job. Return the job, or all problems."""
    problems = list(_name_problems(name))
    try:
        spec = JobSpec.from_wire(raw_spec)
    except ValidationError as error:
        return [*problems, *problems_of(error)]
    architecture = _architecture(spec)
    layout = layout_of(spec)
    problems += _preset_problems(spec)
    problems += not_yet_supported(spec)
    problems += pod_problems(spec)
    problems += _placement_problems(spec, layout)
    if spec.workers.command is None:
        problems += _uri_problems(spec)
    if architecture is not None and spec.workers.command is None:
        problems += training_problems(spec, layout, architecture)
    if problems:
        return problems
    return Job(
        name=name,
        spec=spec,
        architecture=architecture,
        layout=layout,
        nodes=layout.world_size // spec.workers.gpus_per_node,
    )


def _architecture(spec: JobSpec) -> Architecture | None:
    if spec.model is None:
        return None
    return spec.model.architecture or PRESETS.get(spec.model.preset or "")


def _name_problems(name: str) -> Iterator[Problem]:
    if len(name) > NAME_LIMIT:
        yield Problem(
            Reason.NAME_TOO_LONG,
            "metadata.name",
            f"{len(name)} characters; pods are named <job>-<attempt>-<index>, which leaves"
            f" {NAME_LIMIT}",
            f"use a name of at most {NAME_LIMIT} characters",
        )
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield Problem(
            Reason.INVALID_NAME,
            "metadata.name",
            f"{name[:64]!r} cannot name a Service",
            "use lower-case letters, digits and '-', starting with a letter",
        )


def problems_of(error: ValidationError) -> list[Problem]:
    """Convert errors of pydantic to problems, with paths that start at `spec`."""
    return [_from_pydantic(item) for item in error.errors(include_url=False)]


def _from_pydantic(error: Any) -> Problem:
    path = ["spec"]
    for part in error["loc"]:
        if isinstance(part, int):
            path[-1] += f"[{part}]"
        else:
            path.append(str(part))
    rule = error["ctx"] if error["type"] == "rule" else {"field": ""}
    parent, field = ".".join(path[:-1]), ".".join(path) + rule["field"]
    message = str(error["msg"])
    remedy = f"see kubectl explain {_explained(field)}"
    if error["type"] == "extra_forbidden":
        near = get_close_matches(path[-1], _field_names(), n=1)
        message = "unknown field"
        remedy = f"did you mean {near[0]}?" if near else f"see kubectl explain {_explained(parent)}"
    return Problem(Reason.INVALID_SPEC, field, message, remedy)


def _explained(field: str) -> str:
    """Return a field path for `kubectl explain`: without list indices and keys of maps."""
    parts = re.sub(r"\[\d+\]", "", field).split(".")
    ends = [index for index, part in enumerate(parts) if part in _MAPS]
    return ".".join(["llmtrainingjob", *(parts[: ends[0] + 1] if ends else parts)])


@cache
def _field_names() -> list[str]:
    schema = JobSpec.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    return sorted({name for model in models for name in model.get("properties", {})})


def _preset_problems(spec: JobSpec) -> Iterator[Problem]:
    preset = spec.model.preset if spec.model else None
    if preset is not None and preset not in PRESETS:
        yield Problem(
            Reason.UNKNOWN_PRESET,
            "spec.model.preset",
            f"no preset is named {preset!r}",
            "use one of " + ", ".join(sorted(PRESETS)) + ", or set model.architecture",
        )


def not_yet_supported(spec: JobSpec) -> Iterator[Problem]:
    """Yield the fields that this release does not implement; they are rejected, not ignored."""
    for field, is_set in _unimplemented_fields(spec):
        if is_set:
            yield Problem(
                Reason.NOT_YET_SUPPORTED,
                f"spec.{field}",
                "not supported by this release",
                "remove it, or set it to its default",
            )


def _unimplemented_fields(spec: JobSpec) -> Iterator[tuple[str, bool]]:
    if spec.failure_policy is not None:
        yield "failurePolicy.rules", bool(spec.failure_policy.rules)
        third_party = spec.workers.command is not None  # reports no steps
        yield "failurePolicy.hangTimeout", third_party and bool(spec.failure_policy.hang_timeout)


def _uri_problems(spec: JobSpec) -> Iterator[Problem]:
    """Yield the URIs that the trainer of this release cannot open."""
    for index, source in enumerate(spec.data.sources if spec.data else ()):
        if not _is_folder(source.uri) and not _is_package(source.uri):
            yield Problem(
                Reason.INVALID_SPEC,
                f"spec.data.sources[{index}].uri",
                f"{source.uri!r} is not a source this release can read",
                "use file:///PATH or package://PACKAGE/FOLDER",
            )
        if spec.data and spec.data.objective == "sft" and source.format not in _CONVERSATIONS:
            yield Problem(
                Reason.INVALID_SPEC,
                f"spec.data.sources[{index}].format",
                f"{source.format} has no conversations, which objective sft needs",
                "use jsonl, or objective pretrain",
            )
    base = spec.model.init_from if spec.model else None
    if base is not None and not _is_folder(base):
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.model.initFrom",
            f"{base!r} is not a folder this release can read",
            "use file:///PATH on a volume that all pods share",
        )
    for field, uri in _output_uris(spec):
        if not _is_folder(uri) and not _is_bucket(uri):
            yield Problem(
                Reason.INVALID_SPEC,
                f"spec.checkpoint.{field}",
                f"{uri!r} is not a folder this release can write",
                "use file:///PATH on a volume that all pods share, or s3://BUCKET/PATH",
            )


def _output_uris(spec: JobSpec) -> Iterator[tuple[str, str]]:
    if spec.checkpoint is None:
        return
    yield "uri", spec.checkpoint.uri
    if spec.checkpoint.export_hugging_face is not None:
        yield "exportHuggingFace", spec.checkpoint.export_hugging_face


def _is_folder(uri: str) -> bool:
    return re.match(r"file:(//|//localhost)?/(?!/)", uri) is not None


def _is_bucket(uri: str) -> bool:
    return re.match(r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9]/[^/]", uri) is not None


def _is_package(uri: str) -> bool:
    return re.match(r"package://[^\W\d]\w*(/|$)", uri) is not None


def _placement_problems(spec: JobSpec, layout: Layout) -> Iterator[Problem]:
    """Check that a tensor group is part of a node, or consists of whole nodes in one domain.

    The levels of the fabric are checked at placement.
    """
    within = spec.topology.tensor_within if spec.topology else None
    gpus = spec.workers.gpus_per_node
    if gpus % layout.tensor == 0:
        return
    if within in {None, "node"}:
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.parallelism.tensor",
            f"tensor groups of {layout.tensor} do not divide the {gpus} ranks of a node",
            "choose a divisor of workers.gpusPerNode, or name a wider level in"
            " topology.tensorWithin",
        )
    elif layout.tensor % gpus:
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.parallelism.tensor",
            f"tensor groups of {layout.tensor} are neither a divisor nor a multiple of the {gpus}"
            " ranks of a node",
            "choose a divisor or a multiple of workers.gpusPerNode",
        )
