"""Namespaces of a control plane, ready for pods."""

from __future__ import annotations

from llmtrain_devcluster.api import Api


async def create_namespace(api: Api, name: str) -> None:
    """Create a namespace, unless it exists, and wait until pods can be created there."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await api.apply(body)
    await api.wait_for("serviceaccounts", "default", lambda o: o is not None, name)
    await api.wait_for("configmaps", "kube-root-ca.crt", lambda o: o is not None, name)
