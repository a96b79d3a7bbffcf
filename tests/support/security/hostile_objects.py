"""Random hostile objects, the same for the same seed.

They begin as valid objects, because the API server refuses most of what is random. Each gets some
changes of depth, size, types, unicode, labels, owners or annotations.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmtrain_devcluster.api import Object
from tests.support.operator_harness.harness import JOBS, job_object
from tests.support.security.hostile import deep_managed_fields

STRINGS = (
    "",
    "{",
    "[" * 5000,
    "null",
    "\u0000\u001b[2J\u0007",
    "\u202egnirts\u202c",
    "\U0001f4a5" * 50,
    "\ud7ff\ufffd\uffff",
    "-1",
    "9" * 400,
    "1e999",
    "true",
    "../../..",
    "$(shutdown)",
    "%s%n",
)
OUR_ANNOTATIONS = (
    "llmtrain.dev/replace",
    "llmtrain.dev/allow-over-memory",
    "llmtrain.dev/last-handled-configuration",
    "llmtrain.dev/kopf-managed",
    "kopf.zalando.org/last-handled-configuration",
)
LABEL_VALUES = ("", "0", "-1", "x" * 63, "00000000-0000-0000-0000-000000000000", "9" * 60)
OUR_LABELS = (
    "llmtrain.dev/job-uid",
    "llmtrain.dev/job-name",
    "llmtrain.dev/attempt",
    "llmtrain.dev/node-index",
    "kueue.x-k8s.io/queue-name",
    "kueue.x-k8s.io/priority-class",
)
QUANTITIES = ("0", "1", "9223372036854775807", "9E", "1e18", "100m", "1Ei", "-0")
KINDS = {JOBS: "llmtrain.dev/v1alpha1", "pods": "v1", "nodes": "v1"}
"""The kinds and their versions. Only administrators write nodes."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """An object to create, patches to send after that, and a status of an administrator."""

    resource: str
    name: str
    body: bytes
    patches: tuple[bytes, ...] = ()
    status: bytes = b""


class HostileObjects:
    """A source of hostile objects."""

    def __init__(self, seed: int, known_uids: Callable[[], list[str]] = list):
        """`known_uids` returns UIDs of real jobs, to claim that they own something."""
        self._random = random.Random(seed)
        self._known_uids = known_uids
        self._count = 0

    def next(self, namespace: str) -> Hostile:
        """Return the next object, of any kind."""
        chance = self._random
        self._count += 1
        name = f"hostile-{self._count}"
        resource = chance.choices([*KINDS], [6, 4, 1])[0]
        make = {JOBS: self._job, "pods": self._pod, "nodes": self._node}[resource]
        body, status = make(name, namespace)
        for change in chance.sample(self._changes(), chance.randint(1, 3)):
            change(body)
        patches = tuple(self._patch(resource) for _ in range(chance.choice((0, 0, 1, 2))))
        return Hostile(
            resource,
            name,
            json.dumps(body).encode(),
            patches,
            json.dumps(status).encode() if status else b"",
        )

    def _changes(self) -> list[Callable[[Object], None]]:
        return [self._annotate, self._label, self._own, self._add_finalizers, self._spoil]

    def _job(self, name: str, namespace: str) -> tuple[Object, Object]:
        chance = self._random
        body = job_object(name, namespace, workers={"nodeSelector": {"no": "node"}})
        spec = body["spec"]
        spec["suspend"] = chance.random() < 0.5
        if chance.random() < 0.1:
            spec["managedBy"] = chance.choice(("llmtrain.dev/operator", "example.com/other"))
        if chance.random() < 0.15:
            value = "x" * chance.choice((100, 4000))
            env = [{"name": f"V{i}", "value": value} for i in range(chance.randint(1, 256))]
            spec["workers"]["env"] = env
        return body, {}

    def _pod(self, name: str, _: str) -> tuple[Object, Object]:
        chance = self._random
        requests = {"nvidia.com/gpu": "1", "example.com/thing": chance.choice(QUANTITIES)}
        spec: Object = {
            "containers": [
                {
                    "name": "trainer",
                    "image": "example.com/x:1",
                    "env": [{"name": "V", "value": self._text()}],
                    "resources": {"limits": requests, "requests": requests},
                }
            ],
            "nodeSelector": {"no": "node"},
        }
        if chance.random() < 0.5:
            spec["nodeName"] = "nowhere"
        elif chance.random() < 0.3:
            spec["schedulingGates"] = [{"name": "example.com/gate"}]
        return {"metadata": {"name": name}, "spec": spec}, self._pod_status()

    def _pod_status(self) -> Object:
        """Return a status as a kubelet writes it for a hostile container, or none."""
        chance = self._random
        if chance.random() < 0.5:
            return {}
        ended = {
            "exitCode": chance.choice((0, 1, 137, 2**31 - 1, -1)),
            "message": self._text(),
            "reason": self._text(200),
        }
        container = {"image": "x", "imageID": "", "name": "trainer", "ready": False}
        return {
            "status": {
                "phase": chance.choice(("Running", "Failed", "Succeeded", "Pending")),
                "reason": self._text(200),
                "message": self._text(),
                "conditions": self._conditions(),
                "containerStatuses": [
                    {**container, "restartCount": 0, "state": {"terminated": ended}}
                ],
            }
        }

    def _node(self, name: str, _: str) -> tuple[Object, Object]:
        capacity = {
            resource: self._random.choice(QUANTITIES[:-1])
            for resource in ("cpu", "memory", "pods", "nvidia.com/gpu", "example.com/thing")
        }
        status = {"capacity": capacity, "allocatable": capacity, "conditions": self._conditions()}
        return {"metadata": {"name": name}, "spec": {"unschedulable": True}}, {"status": status}

    def _conditions(self) -> list[Object]:
        chance = self._random
        count = chance.choice((0, 1, 3, 500))
        known = ("Ready", "PodScheduled", "DisruptionTarget", "TerminationTarget")
        return [
            {
                "type": known[i] if i < len(known) else f"example.com/condition-{i}",
                "status": chance.choice(("True", "False", "Unknown")),
                "reason": self._text(200),
                "message": self._text(500),
            }
            for i in range(count)
        ]

    def _text(self, most: int = 100_000) -> str:
        chance = self._random
        text = chance.choice(STRINGS) * chance.choice((1, 1, 1, 100))
        return text[:most]

    def _annotate(self, body: Object) -> None:
        chance = self._random
        found = body["metadata"].setdefault("annotations", {})
        for key in chance.sample(OUR_ANNOTATIONS, chance.randint(1, len(OUR_ANNOTATIONS))):
            found[key] = self._text(40_000)

    def _label(self, body: Object) -> None:
        chance = self._random
        found = body["metadata"].setdefault("labels", {})
        for key in chance.sample(OUR_LABELS, chance.randint(1, len(OUR_LABELS))):
            found[key] = chance.choice((*LABEL_VALUES, *self._known_uids()))
        if chance.random() < 0.1:
            found |= {f"example.com/label-{i}": "x" for i in range(2000)}

    def _own(self, body: Object) -> None:
        chance = self._random
        uids = [*self._known_uids(), *LABEL_VALUES[1:]]
        body["metadata"]["ownerReferences"] = [
            {
                "apiVersion": "llmtrain.dev/v1alpha1",
                "kind": "LLMTrainingJob",
                "name": "x",
                "uid": chance.choice(uids) + ("" if i == 0 else str(i)),
                "controller": i == 0,
            }
            for i in range(chance.choice((1, 1, 10, 1000)))
        ]

    def _add_finalizers(self, body: Object) -> None:
        count = self._random.choice((1, 10, 2000))
        body["metadata"]["finalizers"] = [f"example.com/finalizer-{i}" for i in range(count)]

    def _spoil(self, body: Object) -> None:
        """Replace any field by any value. The API server refuses most of this."""
        place: Any = body["spec"]
        while True:
            key = self._random.choice([*place])
            if not isinstance(place[key], dict) or not place[key] or self._random.random() < 0.3:
                place[key] = self._value()
                return
            place = place[key]

    def _value(self) -> Any:
        nested: Any = self._text(100)
        for _ in range(self._random.choice((0, 1, 50, 400))):
            nested = {"a": nested} if self._random.random() < 0.5 else [nested]
        return self._random.choice((None, True, -1, 2**63, 10**400, 1.5, self._text(), nested, {}))

    def _patch(self, resource: str) -> bytes:
        levels = self._random.choice((10, 500, 1100, 1500))
        if self._random.random() < 0.6:
            return deep_managed_fields(KINDS[resource], levels)
        body: Object = {"metadata": {}}
        self._random.choice((self._annotate, self._label))(body)
        return json.dumps(body).encode()
