"""The kopf handlers: they start the parts of the operator, and a reconcile loop for each job.

Only `on.event` is used. It makes kopf write nothing to jobs, so they have no finalizer and no
annotations of kopf. The loops are tasks of the operator, because a kopf daemon needs a finalizer.
`on.create/update/resume` handlers are edge-triggered and store a second copy of the spec. Indexes
are slow and miss deletions between two watches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from llmtrain_core.api.base import GROUP, VERSION
from llmtrain_operator.cache.job import is_ours
from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import ConfigError
from llmtrain_operator.kopf_workarounds import PLURAL, fed_by

TOKEN_MINUTES = 5
"""Lifetime of kopf's credentials. The kubelet rotates a mounted token long before it expires."""


async def operate(controller: Controller) -> None:
    """Run the operator until a signal or a fatal error."""
    namespace = controller.config.namespace
    with fed_by(controller.feed):
        await kopf.operator(
            registry=registry(),
            memo=kopf.Memo(controller=controller),
            # By default kopf looks up the user name, which the UID of a container may not have.
            identity=controller.config.identity,  # type: ignore[arg-type]  # a NewType of kopf
            standalone=True,
            clusterwide=namespace is None,
            namespaces=[namespace] if namespace else [],
        )


def registry() -> kopf.OperatorRegistry:
    """Return a registry with all handlers."""
    handlers = kopf.OperatorRegistry()
    on: dict[str, Any] = {"registry": handlers}
    kopf.on.startup(**on)(configure)
    kopf.on.startup(**on)(start)
    kopf.on.cleanup(**on)(stop)
    kopf.on.login(**on)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, when=is_managed, **on)(reconcile)
    return handlers


def is_managed(spec: Mapping[str, Any], **_: Any) -> bool:
    """Return False for jobs of other controllers."""
    return is_ours(spec)


async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    """Set every kopf setting whose default does not fit."""
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.peering.standalone = True
    settings.queueing.worker_limit = None
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.process.ultimate_exiting_timeout = 20
    # kopf logs one line per event; the log of the operator has the same information.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)


async def start(memo: kopf.Memo, **_: Any) -> None:
    """Fill the informer caches before the first reconcile."""
    await memo.controller.start()


async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Stop all tasks."""
    await memo.controller.stop()


async def login(memo: kopf.Memo, **_: Any) -> kopf.ConnectionInfo:
    """Return the operator's own credentials for kopf."""
    credentials = await memo.controller.cluster.credentials()
    if not credentials.server:
        raise ConfigError("the kubeconfig has no server")
    lifetime = timedelta(minutes=TOKEN_MINUTES)
    return kopf.ConnectionInfo(
        server=credentials.server,
        ca_path=credentials.ca_path,
        insecure=credentials.insecure,
        token=credentials.token,
        certificate_path=credentials.certificate_path,
        private_key_path=credentials.private_key_path,
        expiration=datetime.now(UTC) + lifetime if credentials.rotates else None,
    )


async def reconcile(memo: kopf.Memo, uid: str, **_: Any) -> None:
    """Start the reconcile loop of a job, unless it runs. The informer of jobs wakes it."""
    memo.controller.reconcile(uid)
