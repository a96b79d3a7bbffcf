"""Write the volumes of a pod to folders of the host, for its containers to mount."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from llmtrain_devcluster.process_node.environment import ContainerConfigError, Lookup, PodInfo
from llmtrain_devcluster.process_node.sandbox import Mount

Object = dict[str, Any]

# Returns a ServiceAccount token for the pod, given its audience and lifetime in seconds.
TokenSource = Callable[[str, int], Awaitable[str]]
# Returns the host folder behind a PersistentVolumeClaim.
ClaimSource = Callable[[str], Awaitable[Path]]

WRITABLE_KINDS = ("emptyDir", "persistentVolumeClaim", "hostPath")


class PodVolumes:
    """The volumes of one pod."""

    def __init__(
        self,
        info: PodInfo,
        folder: Path,
        lookup: Lookup,
        token: TokenSource,
        claim: ClaimSource,
    ):
        self._info = info
        self._folder = folder
        self._lookup = lookup
        self._token = token
        self._claim = claim
        self._places: dict[str, tuple[Path, bool]] = {}

    async def make(self) -> None:
        """Write all volumes. Raises ContainerConfigError if a referenced object is missing."""
        for volume in self._info.pod["spec"].get("volumes") or ():
            name = volume["name"]
            if name not in self._places:
                kind = next(key for key in volume if key != "name")
                place = await self._make(kind, volume[kind], self._folder / name)
                self._places[name] = (place, kind not in WRITABLE_KINDS)

    async def _make(self, kind: str, source: Object, folder: Path) -> Path:
        if kind == "hostPath":
            return Path(source["path"])
        if kind == "persistentVolumeClaim":
            return await self._claim(source["claimName"])
        if kind == "emptyDir":
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
            return folder
        files = await self._files(kind, source)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mode = int(source.get("defaultMode", 0o644))
        for path, content in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(mode)
        return folder

    async def _files(self, kind: str, source: Object) -> Mapping[str, bytes]:
        if kind == "configMap":
            return await self._keys("configmaps", source["name"], source)
        if kind == "secret":
            name = source.get("secretName") or source["name"]
            return await self._keys("secrets", name, source)
        if kind == "downwardAPI":
            return {item["path"]: self._downward(item) for item in source.get("items") or ()}
        if kind == "serviceAccountToken":
            lifetime = int(source.get("expirationSeconds", 3600))
            token = await self._token(source.get("audience", ""), lifetime)
            return {source["path"]: token.encode()}
        if kind == "projected":
            files: dict[str, bytes] = {}
            for part in source.get("sources") or ():
                for inner in part:
                    files |= await self._files(inner, part[inner])
            return files
        raise ContainerConfigError(f"process nodes do not support volumes of kind {kind}")

    def _downward(self, item: Object) -> bytes:
        if "fieldRef" not in item:
            raise ContainerConfigError("process nodes do not support resourceFieldRef in a volume")
        return self._info.field(item["fieldRef"]["fieldPath"]).encode()

    async def _keys(self, kind: str, name: str, source: Object) -> Mapping[str, bytes]:
        data = await self._lookup(kind, name)
        if data is None:
            if source.get("optional"):
                return {}
            raise ContainerConfigError(f'{kind[:-1]} "{name}" not found')
        if not source.get("items"):
            return data
        missing = [item["key"] for item in source["items"] if item["key"] not in data]
        if missing and not source.get("optional"):
            raise ContainerConfigError(f'{kind[:-1]} "{name}" has no key {", ".join(missing)}')
        chosen = (item for item in source["items"] if item["key"] in data)
        return {item["path"]: data[item["key"]] for item in chosen}

    def mounts(self, container: Object) -> list[Mount]:
        """Return the mounts of a container, parent paths first."""
        found = []
        for entry in container.get("volumeMounts") or ():
            if entry["name"] not in self._places:
                raise ContainerConfigError(f"no volume {entry['name']!r} in the pod")
            place, read_only = self._places[entry["name"]]
            if entry.get("subPath"):
                place = place / entry["subPath"]
                if not place.exists() and not read_only:
                    place.mkdir(parents=True)
            found.append(
                Mount(str(place), entry["mountPath"], read_only or bool(entry.get("readOnly")))
            )
        return sorted(found, key=lambda mount: mount.target.count("/"))
