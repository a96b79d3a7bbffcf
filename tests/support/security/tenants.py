"""Three tenants, each a ServiceAccount with the ClusterRole `edit` in a namespace of its own.

`edit` includes the jobs of llmtrain by the shipped, aggregated ClusterRole. A tenant has no other
right: what a test does as a tenant, any user of a cluster with llmtrain can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from llmtrain_devcluster.api import WAIT_SECONDS, Api, ApiStatusError, Object, resource_path
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import NodeSpec, PodScript, ScriptedNodes
from tests.support.operator_harness.harness import JOBS, OperatorHarness, status_of
from tests.support.security import hostile

NAMES = ("mallory", "bob", "carol")
"""The attacker, and two tenants that must not notice anything."""
NODES = 8
GPUS = 2
RBAC = "rbac.authorization.k8s.io/v1"
ACCOUNT = "tenant"


class Tenant(OperatorHarness):
    """A namespace and its user. All requests have the rights of the user."""

    async def start_seconds(self, name: str, limit: float = 60.0) -> float:
        """Return the seconds from the creation of a job until its gang runs, and delete the job."""
        begin = time.monotonic()
        await self.submit(name)
        await self.api.wait_for(
            JOBS,
            name,
            lambda job: status_of(job).get("phase") == "Running",
            self.namespace,
            seconds=limit,
            every=0.02,
        )
        taken = time.monotonic() - begin
        await self.delete(name, seconds=limit)
        return taken

    async def job_is(
        self, name: str, holds: Callable[[Object], bool], seconds: float = WAIT_SECONDS
    ) -> Object:
        """Wait for a state of a job that may be hostile, and return what can be read of it."""
        deadline = time.monotonic() + seconds
        while not holds(job := await hostile.read(self.api, JOBS, name, self.namespace)):
            assert time.monotonic() < deadline, status_of(job)
            await asyncio.sleep(0.1)
        return job

    async def clear(self) -> None:
        """Delete all jobs and pods without reading them, with or without an operator."""
        for resource in (JOBS, "pods"):
            await self._delete_all(resource)
        deadline = time.monotonic() + 10
        while left := await hostile.names(self.api, JOBS, self.namespace):
            if time.monotonic() > deadline:
                for name in left:
                    path = resource_path(JOBS, self.namespace, name)
                    with contextlib.suppress(ApiStatusError, TimeoutError):
                        await self.api.send("DELETE", path)
                        body = b'{"metadata":{"finalizers":null}}'
                        await hostile.patch(self.api, JOBS, name, body, self.namespace)
            await asyncio.sleep(0.1)
        await self._delete_all("pods")  # that were being created

    async def _delete_all(self, resource: str) -> None:
        path = resource_path(resource, self.namespace)
        # Hundreds of large objects take longer than a request may: the rest is done again.
        with contextlib.suppress(TimeoutError):
            await self.api.send("DELETE", path, b'{"gracePeriodSeconds":0}')


@dataclass(frozen=True, slots=True)
class Tenants:
    """The tenants of a test, and the administrator who sees everything."""

    mallory: Tenant
    """The attacker."""
    bob: Tenant
    carol: Tenant
    admin: Api
    nodes: ScriptedNodes
    """`NODES` nodes with `GPUS` GPUs each, which all jobs of the tenants select."""


@contextlib.asynccontextmanager
async def three_tenants(control_plane: ControlPlane, admin: Api) -> AsyncIterator[Tenants]:
    """Create the tenants and their nodes; nothing of them stays."""
    tag = secrets.token_hex(3)
    async with contextlib.AsyncExitStack() as stack:
        # Pods run until they are deleted, so that an attack and a measure have all the time.
        nodes = await stack.enter_async_context(ScriptedNodes(admin, PodScript(exit_after=None)))
        await nodes.add(
            *(NodeSpec(f"node-{tag}-{i}", {"harness": tag}, gpus=GPUS) for i in range(NODES))
        )
        tenants = [
            await stack.enter_async_context(_tenant(control_plane, admin, name, nodes, tag))
            for name in NAMES
        ]
        yield Tenants(*tenants, admin=admin, nodes=nodes)


@contextlib.asynccontextmanager
async def _tenant(
    control_plane: ControlPlane, admin: Api, name: str, nodes: ScriptedNodes, tag: str
) -> AsyncIterator[Tenant]:
    namespace = f"{name}-{tag}"
    await admin.create("namespaces", {"metadata": {"name": namespace}})
    await admin.wait_for("serviceaccounts", "default", lambda o: o is not None, namespace)
    await admin.create("serviceaccounts", {"metadata": {"name": ACCOUNT}}, namespace)
    await admin.create(f"{RBAC}/rolebindings", _binding(namespace), namespace)
    token = await _token(admin, namespace)
    async with Api(control_plane.url, token, control_plane.ca_file) as api:
        await _await_rights(api, namespace)
        try:
            yield Tenant(api, namespace, nodes, tag)
        finally:
            # The administrator cleans up, because an attack may have locked its user out.
            await Tenant(admin, namespace, nodes, tag).clear()
            await admin.delete("namespaces", namespace)


def _binding(namespace: str) -> dict[str, object]:
    return {
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": RBAC.split("/")[0], "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    }


async def _token(admin: Api, namespace: str) -> str:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{ACCOUNT}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = await admin.request("POST", path, body=body)
    return str(answer["status"]["token"])


async def _await_rights(api: Api, namespace: str) -> None:
    """Wait until the API server applies the new binding and the aggregated role."""
    for _ in range(600):
        try:
            await api.list(JOBS, namespace)
            await api.list("pods", namespace)
            return
        except ApiStatusError as error:
            if error.status != 403:
                raise
        await asyncio.sleep(0.1)
    raise TimeoutError(f"the tenant of {namespace} does not get its rights")
