"""Where the operator finds its API server, also as a user without name and home folder."""

from __future__ import annotations

import json
import pwd
from pathlib import Path

import pytest

from llmtrain_operator.errors import ConfigError
from llmtrain_operator.kube.client import load_configuration

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


def kubeconfig(path: Path, server: str) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


async def test_without_a_home_folder_the_error_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="set KUBECONFIG or --kubeconfig"):
        await load_configuration(None)


async def test_the_flag_then_the_variable_then_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = kubeconfig(tmp_path / "flag", "http://flag")
    variable = kubeconfig(tmp_path / "variable", "http://variable")
    kubeconfig(tmp_path / ".kube" / "config", "http://home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await load_configuration(None)).host == "http://home"
    monkeypatch.setenv("KUBECONFIG", str(variable))
    assert (await load_configuration(None)).host == "http://variable"
    assert (await load_configuration(str(flag))).host == "http://flag"


async def test_a_pod_does_not_read_a_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig(tmp_path / ".kube" / "config", "http://home")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with pytest.raises(ConfigError):
        await load_configuration(None)
