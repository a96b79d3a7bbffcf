"""The objects of a job besides its pods: ConfigMap (job file), Service (DNS), NetworkPolicy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from llmtrain_core.api import env, labels
from llmtrain_core.api.base import API_VERSION
from llmtrain_operator.kube.resources import CONFIG_MAPS, NETWORK_POLICIES, SERVICES, Resource
from llmtrain_operator.manifests.names import JobIdentity

Object = dict[str, Any]


KEPT_FIELDS: Mapping[Resource, Sequence[str]] = {
    CONFIG_MAPS: (),  # its data is immutable
    SERVICES: ("selector", "ports", "publishNotReadyAddresses"),
    NETWORK_POLICIES: ("podSelector", "policyTypes", "ingress"),
}
"""The kinds of objects that are restored while their job runs, and the fields of their specs that
are compared. They are written out in full: the API server adds nothing to them."""


def kept_fields(resource: Resource, body: Mapping[str, Any]) -> Object:
    """Return the fields of the spec that are compared, and restored if they differ."""
    spec = body.get("spec") or {}
    return {key: spec[key] for key in KEPT_FIELDS[resource] if key in spec}


def digest(resource: Resource, body: Mapping[str, Any]) -> str:
    """Return a digest of the fields of an object that are compared."""
    text = orjson.dumps(kept_fields(resource, body), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:32]


def job_resources(
    raw: Mapping[str, Any],
    identity: JobIdentity,
    attempt: int,
    gang_key: str,
    metrics_peers: Sequence[Mapping[str, Any]] = (),
) -> list[tuple[Resource, Object]]:
    """Return the objects to create before the first pod, in order of creation.

    Those of a kind of KEPT_FIELDS are restored if they are deleted or edited.
    """
    return [
        (CONFIG_MAPS, make_config_map(raw, identity, attempt, gang_key)),
        (SERVICES, make_service(identity)),
        (NETWORK_POLICIES, make_network_policy(identity, metrics_peers)),
    ]


def child_names(identity: JobIdentity, attempt: int) -> Mapping[Resource, str]:
    """Return the names of the objects that an attempt needs before its pods, by kind."""
    return {
        CONFIG_MAPS: identity.config_map(attempt),
        SERVICES: identity.name,
        NETWORK_POLICIES: identity.name,
    }


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
                _port("metrics", env.HTTP_PORT),
                _port("rendezvous", env.RENDEZVOUS_PORT),
            ],
        },
    }


def _port(name: str, number: int) -> Object:
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}


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


def _known_trials(raw: Mapping[str, Any]) -> Object:
    """Return what earlier attempts of a job with `network.tuning` have found out."""
    tuning = (raw["spec"].get("network") or {}).get("tuning")
    known = ((raw.get("status") or {}).get("progress") or {}).get("networkTuning")
    return {} if tuning is None or known is None else {"networkTuning": known}


def make_config_map(
    raw: Mapping[str, Any], identity: JobIdentity, attempt: int, gang_key: str
) -> Object:
    """Return the ConfigMap with the job file and the key of the gang (see docs/contract.md).

    Each attempt has its own, because a part of the spec may change between attempts. Pods that an
    old version started have no key: then the other pods of their attempt have none, either.
    """
    of_attempt = {labels.ATTEMPT: str(attempt)}
    key = {env.GANG_KEY_NAME: gang_key} if gang_key else {}
    metadata = {"name": identity.name, "namespace": identity.namespace, "uid": identity.uid}
    job = {
        "apiVersion": API_VERSION,
        "kind": "LLMTrainingJob",
        "metadata": metadata,
        "spec": raw["spec"],
        **_known_trials(raw),
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": identity.metadata(identity.config_map(attempt), **of_attempt),
        "immutable": True,
        "data": {env.JOB_FILE_NAME: json.dumps(job, indent=1, sort_keys=True), **key},
    }
