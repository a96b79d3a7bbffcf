"""Pods of others that come and go on the nodes of a trace, and what they do to pods of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from llmtrain_devcluster.api import Api, ApiStatusError, Object
from llmtrain_devcluster.kubelet.pod_watch import BUSY
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import OperatorHarness, condition, status_of
from tests.support.operator_harness.queue_trace import Played
from tests.support.operator_harness.queue_watch import GPU, Revision

ORDINARY = frozenset({404, 409, *BUSY})
"""Statuses of a request that kube-scheduler or the load of the server has overtaken."""
GRACE_SECONDS = 1
LATE_SECONDS = 5.0
"""A pod that kube-scheduler refuses for longer should have left its node."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How many foreign pods there are, and what they request. Equal values give equal pods."""

    seed: int
    per_second: float
    """Pods that are created per second on average."""
    seconds: tuple[float, float] = (2.0, 8.0)
    """Shortest and longest life of a pod."""


def foreign_body(
    rng: random.Random, name: str, tag: str, nodes: Sequence[str], owner: Object
) -> Object:
    """Return a pod that takes CPU, memory, GPUs, or only one of the pods of its node.

    kube-scheduler chooses its node, or it is pinned to one, or bound when it is created, as static
    pods are. Half of them have a controller.
    """
    requests = rng.choices(
        [
            {"cpu": str(rng.randint(16, 44))},
            {"memory": f"{rng.randint(100, 400)}Gi"},
            {GPU: str(rng.randint(1, 4))},
            {},
        ],
        [4, 3, 2, 3],
    )[0]
    limits = {name: amount for name, amount in requests.items() if name == GPU}
    container = {
        "name": "main",
        "image": "example.com/x:1",
        "resources": {"requests": requests, "limits": limits},
    }
    spec: Object = {
        "containers": [container],
        "nodeSelector": {"harness": tag},
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "restartPolicy": "Never",
    }
    node, way = rng.choice(nodes), rng.random()
    if way < 0.1 and not limits:
        spec["nodeName"] = node
    elif way < 0.4:
        field = {"key": "metadata.name", "operator": "In", "values": [node]}
        terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
        affinity = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
        spec["affinity"] = {"nodeAffinity": affinity}
    metadata: Object = {"name": name}
    if rng.random() < 0.5:
        metadata["ownerReferences"] = [owner]
    return {"metadata": metadata, "spec": spec}


class ForeignPods:
    """Creates, resizes and deletes foreign pods on the nodes of a harness, in another namespace."""

    def __init__(self, harness: OperatorHarness, pressure: Pressure):
        self._api: Api = harness.api
        self._harness = harness
        self._pressure = pressure
        self._rng = random.Random(pressure.seed)
        self.namespace = f"{harness.namespace}-others"
        self.done = Counter[str]()
        """Number of pods by what happened to them."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._api.create("namespaces", {"metadata": {"name": self.namespace}})
        await self._api.wait_for(
            "serviceaccounts", "default", lambda found: found is not None, self.namespace
        )
        owner = await self._api.create(
            "configmaps", {"metadata": {"name": "controller"}}, self.namespace
        )
        reference = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": "controller",
            "uid": owner["metadata"]["uid"],
            "controller": True,
        }
        self._harness.nodes.script(
            lambda pod: pod["metadata"]["namespace"] == self.namespace,
            PodScript(exit_after=None),
        )
        self._task = asyncio.create_task(self._run(reference))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for pod in await self._api.list("pods", self.namespace):
            await self._api.delete(
                "pods", pod["metadata"]["name"], self.namespace, grace_seconds=0, missing_ok=True
            )
        await self._api.delete("namespaces", self.namespace, missing_ok=True)

    def text(self) -> str:
        """Say how many foreign pods there were."""
        return "foreign pods: " + ", ".join(f"{n} {what}" for what, n in self.done.items())

    async def _run(self, owner: Object) -> None:
        rng, count = self._rng, 0
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(rng.expovariate(self._pressure.per_second))
                names = self._harness.node_names
                body = foreign_body(rng, f"f{count:05}", self._harness.tag, names, owner)
                life = rng.uniform(*self._pressure.seconds)
                size = rng.randint(1, 40) if rng.random() < 0.2 else 0
                group.create_task(self._one(body, life, size))
                count += 1

    async def _one(self, body: Object, life: float, size: int) -> None:
        """Create a pod and delete it when it is that old. Resize one of CPU if a size is given."""
        name, container = body["metadata"]["name"], body["spec"]["containers"][0]
        if not await self._try("created", self._api.create("pods", body, self.namespace)):
            return
        await asyncio.sleep(life / 2)
        if size and "cpu" in container["resources"]["requests"]:
            resize = self._api.resize(name, "main", {"cpu": str(size)}, self.namespace)
            await self._try("resized", resize)
        await asyncio.sleep(life / 2)
        await self._try("deleted", self._api.delete("pods", name, self.namespace))

    async def _try(self, what: str, request: Awaitable[object]) -> bool:
        try:
            await request
        except ApiStatusError as error:
            if error.status not in ORDINARY:
                raise
            return False
        self.done[what] += 1
        return True


def refused_seconds(revisions: Iterable[Revision]) -> dict[str, float]:
    """Return the longest time for which kube-scheduler refused each pod, by UID; 0 if it did not.

    Refused is a pod with `PodScheduled=False, Unschedulable`.
    """
    longest: dict[str, float] = {}
    since: dict[str, float] = {}
    for change in sorted(revisions, key=lambda change: change.revision):
        if change.kind != "pod":
            continue
        uid, scheduled = change.raw["metadata"]["uid"], condition(change.raw, "PodScheduled")
        longest.setdefault(uid, 0.0)
        if uid in since:
            longest[uid] = max(longest[uid], change.seconds - since[uid])
        refused = scheduled.get("status") == "False" and scheduled["reason"] == "Unschedulable"
        if refused and not change.deleted:
            since.setdefault(uid, change.seconds)
        else:
            since.pop(uid, None)
    return longest


def check_refusals(played: Played) -> float:
    """Check that no refusal counts as a failure of a job; return the share of pods that are late.

    Late is a pod that kube-scheduler refuses for longer than `LATE_SECONDS`. Print the share, and
    the longest time for which a pod was refused.
    """
    found = refused_seconds(played.revisions)
    refused = [seconds for seconds in found.values() if seconds]
    late = sum(seconds > LATE_SECONDS for seconds in refused)
    left = Counter(attempt.left_for for attempt in played.account.attempts if attempt.left_for)
    print(
        f"{len(found)} pinned pods, {len(refused)} refused, {late} ({late / len(found):.2%}) for"
        f" longer than {LATE_SECONDS:.0f} s, the longest {max(refused, default=0.0):.1f} s"
    )
    print("gangs that left their nodes:", ", ".join(f"{n} {why}" for why, n in left.items()))
    statuses = {
        change.raw["metadata"]["name"]: status_of(change.raw)
        for change in sorted(played.revisions, key=lambda change: change.revision)
        if change.kind == "job"
    }
    failed = [name for name, status in statuses.items() if status.get("restartsCountTowardsMax")]
    assert not failed, f"a refused pod counts as a failure of {sorted(failed)}"
    return late / len(found)
