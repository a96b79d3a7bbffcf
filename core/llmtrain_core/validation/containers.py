"""Checks of containers: environment variables, resources and init containers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from llmtrain_core.api import env
from llmtrain_core.api.base import LABEL_KEY, quantity_value
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.containers import EnvFromSource, EnvVar, InitContainer, ResourceAmounts
from llmtrain_core.api.defaults import HUGE_PAGES
from llmtrain_core.validation.problem import Problem


def environment_problems(
    parent: str, variables: Sequence[EnvVar] | None, sources: Sequence[EnvFromSource] | None
) -> Iterator[Problem]:
    """Yield what is wrong with `env` and `envFrom` of a container at the path `parent`."""
    for index, variable in enumerate(variables or ()):
        yield from _variable_problems(f"{parent}.env[{index}]", variable)
    for index, source in enumerate(sources or ()):
        reserved = next((p for p in env.RESERVED_PREFIXES if source.prefix.startswith(p)), None)
        if reserved is not None:
            yield Problem(
                Reason.FORBIDDEN,
                f"{parent}.envFrom[{index}].prefix",
                f"variables that start with {reserved} are reserved for the pod contract, the"
                " dynamic linker or container runtimes, and the keys of the object are not known",
                "use another prefix, or name each variable in env with valueFrom",
            )


def _variable_problems(field: str, variable: EnvVar) -> Iterator[Problem]:
    name = variable.name
    if _is_of_contract(name):
        message = f"{name} is reserved for the pod contract"
        yield Problem(Reason.FORBIDDEN, f"{field}.name", message, "remove the variable")
    elif _chooses_devices(name):
        message = f"{name} tells the container runtime which devices of the node the pod gets"
        remedy = "remove the variable; the pod gets the devices that it requests"
        yield Problem(Reason.FORBIDDEN, f"{field}.name", message, remedy)
    if variable.value and variable.value_from is not None:
        message = f"{name} has a value and a source of its value"
        yield Problem(Reason.INVALID_SPEC, f"{field}.value", message, "remove value or valueFrom")


def is_reserved_variable(name: str) -> bool:
    """Return whether a job may not set a variable in a container of its pods."""
    return _is_of_contract(name) or _chooses_devices(name)


def _is_of_contract(name: str) -> bool:
    return (name.startswith(env.PREFIX) and name not in env.SETTABLE) or name in env.OWNED


def _chooses_devices(name: str) -> bool:
    """Return True if a container runtime reads the variable."""
    if name in env.LIBRARY_VARIABLES:
        return False
    return name.startswith(env.RUNTIME_PREFIX) or name.endswith(env.RUNTIME_SUFFIX)


def init_container_problems(field: str, container: InitContainer) -> Iterator[Problem]:
    """Yield what is wrong with an init container at the path `field`."""
    if container.name == env.TRAINER_CONTAINER:
        message = f"{container.name} is the name of the container that trains"
        yield Problem(Reason.FORBIDDEN, f"{field}.name", message, "rename the init container")
    yield from environment_problems(field, container.env, container.env_from)
    yield from resource_problems(f"{field}.resources", container.resources)
    for kind, resource in _named(container.resources):
        if "/" in resource:
            yield Problem(
                Reason.FORBIDDEN,
                f"{field}.resources.{kind}.{resource}",
                "init containers have no devices",
                "remove the entry; use devices in the trainer only",
            )
        elif not re.fullmatch(LABEL_KEY[1:-1], resource, re.ASCII):
            yield Problem(
                Reason.INVALID_SPEC,
                f"{field}.resources.{kind}.{resource}",
                f"{resource!r} is not the name of a resource",
                "use cpu, memory, ephemeral-storage or hugepages-SIZE",
            )


def _named(resources: ResourceAmounts | None) -> Iterator[tuple[str, str]]:
    for resource in (resources and resources.requests) or ():
        yield "requests", resource
    for resource in (resources and resources.limits) or ():
        yield "limits", resource


def resource_problems(field: str, resources: ResourceAmounts | None) -> Iterator[Problem]:
    """Yield requests of the resources at the path `field` that do not agree with their limits."""
    requests = (resources and resources.requests) or {}
    limits = (resources and resources.limits) or {}
    for resource in sorted(requests):
        # Kubernetes permits no overcommitment of extended resources and huge pages.
        exact = "/" in resource or resource.startswith(HUGE_PAGES)
        if exact and limits.get(resource) != requests[resource]:
            yield Problem(
                Reason.INVALID_SPEC,
                f"{field}.requests.{resource}",
                f"the request of {resource} must equal its limit",
                "set the same amount under limits, or only the limit",
            )
        elif resource in limits and quantity_value(requests[resource]) > quantity_value(
            limits[resource]
        ):
            yield Problem(
                Reason.INVALID_SPEC,
                f"{field}.requests.{resource}",
                f"{requests[resource]} is more than the limit of {limits[resource]}",
                "raise the limit or lower the request",
            )
