"""The errors of the operator: one hierarchy, and each error knows whether trying again may help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class OperatorError(Exception):
    """Base of all errors of the operator."""

    retryable = False


class ConfigError(OperatorError):
    """The operator cannot start as it is configured."""


class LeaseLostError(OperatorError):
    """This process is not the leader (any more): it must not write."""


class ApiError(OperatorError):
    """The API server refused a request; `status` and `reason` are the server's own."""

    def __init__(
        self, status: int, reason: str, message: str, details: Mapping[str, Any] | None = None
    ):
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = dict(details or {})

    @property
    def settled(self) -> bool:
        """Whether it is certain that the request changed nothing."""
        return True

    @property
    def retry_after(self) -> float:
        """Seconds that the server asks to wait; 0 where it says nothing."""
        return float(self.details.get("retryAfterSeconds") or 0)


class ConflictError(ApiError):
    """The object changed since it was read: read it again."""

    retryable = True


class AlreadyExistsError(ApiError):
    """An object of that name is there."""


class NotFoundError(ApiError):
    """There is no such object, or no such resource."""


class GoneError(ApiError):
    """The resourceVersion is too old for a watch: list again."""

    retryable = True


class ForbiddenError(ApiError):
    """The server does not allow it: RBAC, quota or admission."""

    @property
    def quota(self) -> bool:
        """Whether a ResourceQuota is the cause."""
        return "exceeded quota" in self.message or "failed quota" in self.message


class InvalidError(ApiError):
    """The object is not valid."""


class UnavailableError(ApiError):
    """The server did not answer, or could not: the request may have had its effect."""

    retryable = True

    @property
    def settled(self) -> bool:
        """Only a refusal for overload is certain to have changed nothing."""
        return self.status == 429


def api_error(
    status: int, reason: str, message: str, details: Mapping[str, Any] | None = None
) -> ApiError:
    """Return the error that fits an answer of the API server."""
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
