"""Checks of the device claims of a job that need more than one field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.device_claims import MAX_DEVICES, DeviceClaim
from llmtrain_core.api.job import JobSpec
from llmtrain_core.api.workers import Workers
from llmtrain_core.devices.demand import DeviceKind, demand_of, is_whole_class, shared_claims_of
from llmtrain_core.devices.selectors import UnsupportedExpressionError, compile_selector, size_of
from llmtrain_core.validation.problem import Problem

_FIELD = "spec.workers.deviceClaims"
MAX_KINDS = 16
"""Kinds of devices of a job that have selectors or constraints. Each is counted on all nodes."""
MAX_CLASSES = 16
"""DeviceClasses of a job. The placement in the status has the amount of each."""
MAX_SHARED_CLAIMS = 4
"""Claims of a PodGroup (`MaxPodGroupResourceClaims` of Kubernetes)."""
MAX_TOKENS = 128
"""Tokens of all selectors of a job, which are evaluated for all devices of their classes."""


def claim_problems(spec: JobSpec) -> Iterator[Problem]:
    """Yield what a job may not claim, and what contradicts itself in its claims."""
    claims = spec.workers.device_claims or []
    for index, claim in enumerate(claims):
        field = f"{_FIELD}[{index}]"
        yield from _name_problems(field, claim)
        yield from _count_problems(field, claim)
        yield from _selector_problems(field, claim)
        yield from _constraint_problems(field, claim)
    counts = Counter(name for claim in claims for name in claim.names)
    for name, count in counts.items():
        if count > 1:
            yield Problem(
                Reason.INVALID_SPEC,
                _FIELD,
                f"two claims of a pod would be named {name}",
                "rename a claim: those of claimsPerPod end in -0, -1 and so on",
            )
    shared = shared_claims_of(spec).count
    if shared > MAX_SHARED_CLAIMS:
        yield Problem(
            Reason.INVALID_SPEC,
            _FIELD,
            f"{shared} claims have scope gang, but a PodGroup has at most {MAX_SHARED_CLAIMS}",
            "put more requests into one claim",
        )
    yield from _size_problems(spec)
    yield from _gpu_problems(spec.workers)


def _size_problems(spec: JobSpec) -> Iterator[Problem]:
    """Yield a problem if the operator does not count so much for one job."""
    kinds = demand_of(spec).keys() | shared_claims_of(spec).keys
    classes = sum(map(is_whole_class, kinds))
    selectors = {text for kind in kinds if isinstance(kind, DeviceKind) for text in kind.selectors}
    sizes = (
        (classes, MAX_CLASSES, "DeviceClasses"),
        (len(kinds) - classes, MAX_KINDS, "selections of devices by selectors and constraints"),
        (sum(map(_size, selectors)), MAX_TOKENS, "words and signs of selectors"),
    )
    for size, limit, text in sizes:
        if size > limit:
            yield Problem(
                Reason.INVALID_SPEC,
                _FIELD,
                f"{size} different {text}, but a job has at most {limit}",
                "use the same ones for several requests, or shorter ones",
            )


def _size(expression: str) -> int:
    try:
        return size_of(expression)
    except UnsupportedExpressionError:
        return 0


def _name_problems(field: str, claim: DeviceClaim) -> Iterator[Problem]:
    if claim.name.startswith(env.VOLUME_PREFIX):
        yield Problem(
            Reason.FORBIDDEN,
            f"{field}.name",
            f"names that start with {env.VOLUME_PREFIX} are reserved for the pod contract",
            "rename the claim",
        )


def _count_problems(field: str, claim: DeviceClaim) -> Iterator[Problem]:
    devices = sum(request.count for request in claim.requests)
    if devices > MAX_DEVICES:
        yield Problem(
            Reason.INVALID_SPEC,
            f"{field}.requests",
            f"{devices} devices, but a claim has at most {MAX_DEVICES}",
            "divide them into several claims",
        )


def _selector_problems(field: str, claim: DeviceClaim) -> Iterator[Problem]:
    for number, request in enumerate(claim.requests):
        for position, selector in enumerate(request.selectors or ()):
            try:
                compile_selector(selector.cel.expression)
            except UnsupportedExpressionError as error:
                yield Problem(
                    Reason.INVALID_SPEC,
                    f"{field}.requests[{number}].selectors[{position}].cel.expression",
                    f"the operator cannot evaluate it to count devices: {error}",
                    "use comparisons of device.driver, device.attributes and device.capacity",
                )


def _constraint_problems(field: str, claim: DeviceClaim) -> Iterator[Problem]:
    known = {request.name: request.count for request in claim.requests}
    bound: set[str] = set()
    for index, constraint in enumerate(claim.constraints or ()):
        names = known if constraint.requests is None else constraint.requests
        where = f"{field}.constraints[{index}].requests"
        if unknown := [name for name in names if name not in known]:
            yield Problem(
                Reason.INVALID_SPEC,
                where,
                f"the claim has no request {unknown[0]!r}",
                "name requests of the claim: " + ", ".join(known),
            )
        if twice := [name for name in names if name in bound]:
            yield Problem(
                Reason.NOT_YET_SUPPORTED,
                where,
                f"the request {twice[0]!r} is in another constraint already",
                "put each request into one constraint",
            )
        bound.update(names)
        if not unknown and sum(known[name] for name in names) < 2:
            yield Problem(
                Reason.INVALID_SPEC,
                where,
                "a constraint on a single device says nothing",
                "name the requests whose devices must have the same attribute",
            )


def _gpu_problems(workers: Workers) -> Iterator[Problem]:
    """Check that the claims of a pod have all of its GPUs, of one class."""
    found: Counter[str] = Counter()
    for claim in workers.device_claims or ():
        for request in claim.requests:
            if request.gpus:
                found[request.device_class_name] += request.count * claim.claims_per_pod
    if not found:
        return
    if len(found) > 1:
        yield Problem(
            Reason.INVALID_SPEC,
            _FIELD,
            "the GPUs are of several classes: " + ", ".join(sorted(found)),
            "use one DeviceClass for all requests with gpus",
        )
    elif found.total() != workers.gpus_per_node:
        yield Problem(
            Reason.INVALID_SPEC,
            _FIELD,
            f"the claims of a pod have {found.total()} GPUs, not {workers.gpus_per_node}",
            "make count x claimsPerPod of the requests with gpus equal to workers.gpusPerNode",
        )
