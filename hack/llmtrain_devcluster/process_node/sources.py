"""Read the objects that a pod refers to from the API server when the pod starts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain_devcluster.api import Api, ApiStatusError, resource_path
from llmtrain_devcluster.process_node.environment import ContainerConfigError

Object = dict[str, Any]


class PodSources:
    """ConfigMaps, Secrets, tokens and claims for one pod."""

    def __init__(self, api: Api, pod: Object):
        self._api = api
        self._pod = pod
        self._namespace: str = pod["metadata"]["namespace"]

    async def data(self, kind: str, name: str) -> Mapping[str, bytes] | None:
        """Return the data of a ConfigMap or Secret, or None if it does not exist."""
        try:
            found = await self._api.get(kind, name, self._namespace)
        except ApiStatusError as error:
            if error.status == 404:
                return None
            raise ContainerConfigError(f"cannot read {kind} {name}: {error}") from error
        plain = found.get("data") or {}
        binary = found.get("binaryData") or {}
        if kind == "secrets":
            plain, binary = {}, plain
        decoded = {key: base64.b64decode(value) for key, value in binary.items()}
        return decoded | {key: str(value).encode() for key, value in plain.items()}

    async def token(self, audience: str, seconds: int) -> str:
        """Return a token of the pod's ServiceAccount, bound to the pod."""
        meta = self._pod["metadata"]
        account = self._pod["spec"].get("serviceAccountName") or "default"
        path = resource_path("serviceaccounts", self._namespace, account) + "/token"
        reference = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        body = {
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": max(600, seconds),
                "boundObjectRef": reference,
            }
        }
        try:
            answer = await self._api.request("POST", path, body=body)
        except ApiStatusError as error:
            raise ContainerConfigError(f"no token for ServiceAccount {account}: {error}") from error
        return str(answer["status"]["token"])

    async def claim(self, name: str) -> Path:
        """Return the folder of a claim, which must be bound to a hostPath volume."""
        try:
            claim = await self._api.get("persistentvolumeclaims", name, self._namespace)
            volume = claim["spec"].get("volumeName")
            if not volume:
                raise ContainerConfigError(f'persistentvolumeclaim "{name}" is not bound')
            found = await self._api.get("persistentvolumes", volume)
        except ApiStatusError as error:
            raise ContainerConfigError(f'persistentvolumeclaim "{name}": {error}') from error
        if "hostPath" not in found["spec"]:
            raise ContainerConfigError(
                f"process nodes support hostPath volumes only: {volume} is of another kind"
            )
        path = Path(found["spec"]["hostPath"]["path"])
        path.mkdir(parents=True, exist_ok=True)
        return path
