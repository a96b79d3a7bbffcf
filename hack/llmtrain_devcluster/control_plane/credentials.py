"""Tokens, keys and kubeconfigs of a cluster."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class User:
    """A user of the API server, with a token."""

    name: str
    groups: Sequence[str]
    token: str

    @classmethod
    def new(cls, name: str, groups: Sequence[str] = ()) -> User:
        """Return a user with a new token."""
        return cls(name, tuple(groups), secrets.token_urlsafe(24))


def token_file(users: Mapping[str, User]) -> str:
    """Return the text of the API server's token file."""
    lines = []
    for user in users.values():
        groups = ",".join(user.groups)
        lines.append(f'{user.token},{user.name},{user.name},"{groups}"')
    return "\n".join(lines) + "\n"


def kubeconfig(server: str, ca_file: Path, user: User) -> str:
    """Return a kubeconfig (JSON is YAML) for one user, with the certificate inside."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "devcluster",
        "contexts": [
            {"name": "devcluster", "context": {"cluster": "devcluster", "user": user.name}}
        ],
        "clusters": [
            {
                "name": "devcluster",
                "cluster": {"server": server, "certificate-authority": str(ca_file)},
            }
        ],
        "users": [{"name": user.name, "user": {"token": user.token}}],
    }
    return json.dumps(content, indent=2) + "\n"


def write_private(path: Path, text: str) -> Path:
    """Write a file atomically, readable only for its owner."""
    partial = path.with_name(path.name + ".partial")
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)
    return path
