"""Errors of the operator: one hierarchy; `retryable` tells whether a retry may succeed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PASSING = frozenset({404, 408, 409, 410, 429})
"""Codes of rejections that say nothing about the request itself."""
_ABOVE_LIMIT = re.compile(r"must be less than or equal to (\S+) limit of ")


class OperatorError(Exception):
    """Base class of all errors of the operator."""

    retryable = False


class ConfigError(OperatorError):
    """The configuration of the operator is invalid."""


class LeaseLostError(OperatorError):
    """This process is not the leader and must not write."""


class ApiError(OperatorError):
    """The API server rejected a request; `status` and `reason` are from its response."""

    def __init__(
        self, status: int, reason: str, message: str, details: Mapping[str, Any] | None = None
    ):
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = dict(details or {})

    @property
    def not_applied(self) -> bool:
        """Whether it is certain that the request had no effect."""
        return True

    @property
    def denied(self) -> bool:
        """Whether the server refuses this request, and would refuse it again unchanged."""
        return 400 <= self.status < 500 and self.status not in _PASSING

    @property
    def retry_after(self) -> float:
        """Seconds to wait before a retry, from the response; 0 if it has none."""
        return float(self.details.get("retryAfterSeconds") or 0)


class ConflictError(ApiError):
    """The object has changed since it was read; read it again."""

    retryable = True


class AlreadyExistsError(ApiError):
    """An object of that name exists."""


class NotFoundError(ApiError):
    """The object or the resource does not exist."""


class GoneError(ApiError):
    """The resourceVersion is too old for a watch; list again."""

    retryable = True


class ForbiddenError(ApiError):
    """RBAC, a quota or an admission plugin rejected the request."""

    @property
    def quota(self) -> bool:
        """Whether a ResourceQuota rejected the request."""
        return "exceeded quota" in self.message or "failed quota" in self.message


class InvalidError(ApiError):
    """The object is invalid."""

    @property
    def limited_resource(self) -> str:
        """Name of the resource that a pod requests beyond its limit; otherwise empty."""
        found = _ABOVE_LIMIT.search(self.message)
        return found[1] if found else ""


class UnavailableError(ApiError):
    """The server did not respond or failed; the request may have had its effect."""

    retryable = True

    @property
    def webhook_failed(self) -> bool:
        """Whether an admission webhook that must admit the request did not answer."""
        return self.status == 500 and "failed calling webhook" in self.message

    @property
    def denied(self) -> bool:
        """Whether a webhook that must admit the request did not answer."""
        return self.webhook_failed

    @property
    def not_applied(self) -> bool:
        """Only rejections for overload (429) or without admission certainly had no effect."""
        return self.status == 429 or self.webhook_failed


class TooLargeError(UnavailableError):
    """The response has too many bytes."""


def api_error(
    status: int, reason: str, message: str, details: Mapping[str, Any] | None = None
) -> ApiError:
    """Return the error for a response of the API server."""
    kind: type[ApiError] = ApiError
    if status == 409:
        kind = AlreadyExistsError if reason == "AlreadyExists" else ConflictError
    elif status == 429 or status >= 500:
        kind = UnavailableError
    else:
        kind = {403: ForbiddenError, 404: NotFoundError, 410: GoneError, 422: InvalidError}.get(
            status, ApiError
        )
    return kind(status, reason, message, details)
