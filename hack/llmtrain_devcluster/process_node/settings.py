"""The agent's configuration: its cluster, nodes, images and mounts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmtrain_devcluster.kubelet.statuses import NodeSpec
from llmtrain_devcluster.process_node.images import Image
from llmtrain_devcluster.process_node.sandbox import Mount


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The agent's configuration file. Every container gets `mounts`."""

    server: str
    token: str
    ca_file: str
    certificate: str
    key: str
    folder: str
    nodes: Sequence[NodeSpec]
    images: Mapping[str, Image]
    mounts: Sequence[Mount] = field(default_factory=list)
    backoff_seconds: float = 10.0

    def write(self, path: Path) -> None:
        """Write the file, for its owner only: it holds a token."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> AgentSettings:
        """Read the file that `write` wrote."""
        data = json.loads(path.read_text())
        data["nodes"] = [NodeSpec(**node) for node in data["nodes"]]
        data["images"] = {name: Image(**image) for name, image in data["images"].items()}
        data["mounts"] = [Mount(**mount) for mount in data["mounts"]]
        return cls(**data)
