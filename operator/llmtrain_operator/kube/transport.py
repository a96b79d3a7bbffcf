"""Connections to the API server, and its errors."""

from __future__ import annotations

from typing import Any

import aiohttp
from kubernetes.aio.client.rest import RESTClientObject

from llmtrain_core.api.untrusted import read_json
from llmtrain_operator.errors import ApiError, UnavailableError, api_error
from llmtrain_operator.kube.bounded_http import HttpAnswer, new_session

READ_BUFFER_BYTES = 2 * 1024 * 1024


class Connections(RESTClientObject):
    """The library's settings of TLS and proxy. The requests are ours, so its sessions are not used.

    The variables of the environment for proxies do not apply to the API server.
    """

    def session(self) -> aiohttp.ClientSession:
        """Return the session, which is created inside the event loop."""
        if self.pool_manager is None:
            self.pool_manager = new_session(self._create_connector(), READ_BUFFER_BYTES)
        return self.pool_manager

    def options(self) -> dict[str, Any]:
        """Return the options of each request."""
        found: dict[str, Any] = {}
        if self.configuration.tls_server_name:
            found["server_hostname"] = self.configuration.tls_server_name
        if self.proxy:
            found |= {"proxy": self.proxy, "proxy_headers": self.proxy_headers}
        return found


def connection_error(error: BaseException) -> ApiError:
    """Return the error for a request that got no acceptable answer."""
    return UnavailableError(0, "NoAnswer", f"{type(error).__name__}: {error}"[:300])


def response_error(answer: HttpAnswer) -> ApiError:
    """Return the error for a response that is not successful; its body should be a Status."""
    found = read_json(answer.body)
    if not isinstance(found, dict):
        found = {"message": answer.body[:300].decode(errors="replace")}
    reason, message, details = (found.get(key) for key in ("reason", "message", "details"))
    details = dict(details) if isinstance(details, dict) else {}
    wait = answer.headers.get("Retry-After", "")
    if wait.isdecimal():
        details.setdefault("retryAfterSeconds", int(wait))
    return api_error(answer.status, str(reason or ""), str(message or ""), details)
