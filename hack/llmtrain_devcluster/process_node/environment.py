"""Resolve a container's environment and command as a kubelet does."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

# Looks up the data of a ConfigMap or Secret by kind ("configmaps", "secrets") and name.
Lookup = Callable[[str, str], Awaitable["Mapping[str, bytes] | None"]]

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ContainerConfigError(RuntimeError):
    """A container refers to an object that is missing, or to an unsupported field."""


@dataclass(frozen=True, slots=True)
class PodInfo:
    """A pod, with the addresses that it gets when it starts."""

    pod: Object
    pod_ip: str
    host_ip: str

    @property
    def hostname(self) -> str:
        """The pod's host name."""
        name = self.pod["spec"].get("hostname") or self.pod["metadata"]["name"]
        return str(name)[:63].rstrip("-.")

    def field(self, path: str) -> str:
        """Return the value of a fieldRef."""
        meta, spec = self.pod["metadata"], self.pod["spec"]
        subscript = _SUBSCRIPT.fullmatch(path)
        if subscript:
            return str((meta.get(subscript[1]) or {}).get(subscript[2], ""))
        if path in ("metadata.labels", "metadata.annotations"):
            pairs = meta.get(path.partition(".")[2]) or {}
            return "".join(f'{key}="{value}"\n' for key, value in sorted(pairs.items()))
        known = {
            "metadata.name": meta["name"],
            "metadata.namespace": meta["namespace"],
            "metadata.uid": meta["uid"],
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
            "status.podIP": self.pod_ip,
            "status.podIPs": self.pod_ip,
            "status.hostIP": self.host_ip,
            "status.hostIPs": self.host_ip,
        }
        if path not in known:
            raise ContainerConfigError(f"process nodes have no fieldRef {path!r}")
        return str(known[path])


def expand(text: str, env: Mapping[str, str]) -> str:
    """Expand $(NAME); an unknown name stays as it is and $$ is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[1] is None else env.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


async def resolve_env(
    container: Object, info: PodInfo, base: Mapping[str, str], lookup: Lookup
) -> dict[str, str]:
    """Return a container's environment; later entries see earlier ones."""
    env = dict(base)
    for source in container.get("envFrom") or ():
        for kind, key in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
            if key in source:
                data = await _data(lookup, kind, source[key])
                prefix = source.get("prefix", "")
                env |= {prefix + name: value.decode() for name, value in data.items()}
    for entry in container.get("env") or ():
        if "valueFrom" in entry:
            value = await _value_from(entry["valueFrom"], info, lookup)
            if value is not None:
                env[entry["name"]] = value
        else:
            env[entry["name"]] = expand(entry.get("value", ""), env)
    return env


async def _value_from(source: Object, info: PodInfo, lookup: Lookup) -> str | None:
    if "fieldRef" in source:
        return info.field(source["fieldRef"]["fieldPath"])
    for kind, key in (("configmaps", "configMapKeyRef"), ("secrets", "secretKeyRef")):
        if key in source:
            reference = source[key]
            data = await _data(lookup, kind, reference)
            if reference["key"] in data:
                return data[reference["key"]].decode()
            if reference.get("optional"):
                return None
            raise ContainerConfigError(
                f"couldn't find key {reference['key']} in {kind} {reference['name']}"
            )
    raise ContainerConfigError(f"process nodes do not support valueFrom {', '.join(source)}")


async def _data(lookup: Lookup, kind: str, reference: Object) -> Mapping[str, bytes]:
    data = await lookup(kind, reference["name"])
    if data is None:
        if reference.get("optional"):
            return {}
        raise ContainerConfigError(f'{kind[:-1]} "{reference["name"]}" not found')
    return data


def resolve_command(
    container: Object, env: Mapping[str, str], image_command: tuple[str, ...]
) -> list[str]:
    """Return the command line: command, or that of the image, and args."""
    command = container.get("command") or list(image_command)
    line = [expand(word, env) for word in (*command, *(container.get("args") or ()))]
    if not line:
        raise ContainerConfigError(
            "no command specified: the image has none, so set command in the container"
        )
    return line
