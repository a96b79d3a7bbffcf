"""The objects of a job besides its pods: ConfigMap (job file), Service (DNS), NetworkPolicy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain_core.api import env
from llmtrain_core.api.base import API_VERSION
from llmtrain_operator.kube.resources import CONFIG_MAPS, NETWORK_POLICIES, SERVICES, Resource
from llmtrain_operator.manifests.names import JobIdentity

Object = dict[str, Any]


def job_resources(
    raw: Mapping[str, Any],
    identity: JobIdentity,
    gang_key: str,
    metrics_peers: Sequence[Mapping[str, Any]] = (),
) -> list[tuple[Resource, Object]]:
    """Return the objects to create before the first pod, in order of creation."""
    return [
        (CONFIG_MAPS, make_config_map(raw, identity, gang_key)),
        (SERVICES, make_service(identity)),
        (NETWORK_POLICIES, make_network_policy(identity, metrics_peers)),
    ]


def make_service(identity: JobIdentity) -> Object:
    """Return the headless Service. It publishes the addresses of pods that are not ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": identity.metadata(identity.name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": identity.selector(),
            "ports": [
                {"name": "metrics", "port": env.HTTP_PORT, "protocol": "TCP"},
                {"name": "rendezvous", "port": env.RENDEZVOUS_PORT, "protocol": "TCP"},
            ],
        },
    }


def make_network_policy(
    identity: JobIdentity, metrics_peers: Sequence[Mapping[str, Any]] = ()
) -> Object:
    """Return the NetworkPolicy: pods of the job reach all ports, the peers only that of HTTP."""
    ingress: list[Object] = [{"from": [{"podSelector": {"matchLabels": identity.selector()}}]}]
    if metrics_peers:  # an empty list would admit everyone
        port = {"protocol": "TCP", "port": env.HTTP_PORT}
        ingress.append({"from": [dict(peer) for peer in metrics_peers], "ports": [port]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": identity.metadata(identity.name),
        "spec": {
            "podSelector": {"matchLabels": identity.selector()},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def make_config_map(raw: Mapping[str, Any], identity: JobIdentity, gang_key: str) -> Object:
    """Return the ConfigMap with the job file and the key of the gang (see docs/contract.md)."""
    metadata = {"name": identity.name, "namespace": identity.namespace, "uid": identity.uid}
    job = {
        "apiVersion": API_VERSION,
        "kind": "LLMTrainingJob",
        "metadata": metadata,
        "spec": raw["spec"],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": identity.metadata(identity.config_map),
        "immutable": True,
        "data": {
            env.JOB_FILE_NAME: json.dumps(job, indent=1, sort_keys=True),
            env.GANG_KEY_NAME: gang_key,
        },
    }
