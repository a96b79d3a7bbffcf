"""What a user of kubectl sees: apply, explain and the columns."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_core.api.crd import crds as definitions
from llmtrain_devcluster.api import Api, resource_path
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.paths import ROOT

pytestmark = pytest.mark.cluster

KUBECTL = Path(sys.executable).with_name("kubectl")
JOBS = "llmtrain.dev/v1alpha1/llmtrainingjobs"

STATUS = {
    "observedGeneration": 1,
    "phase": "Running",
    "reason": "Training",
    "layout": "tp8·pp4·dp16",
    "nodes": "12/16",
    "placementSummary": "16 nodes · 2 leaf · 1 spine",
    "restarts": 1,
    "progress": {
        "step": 420,
        "totalSteps": 1000,
        "loss": 2.345,
        "mfu": 0.41,
        "eta": "2099-01-01T00:00:00Z",
        "restartsInPlace": 7,
    },
    "progressPercent": "42%",
}
COLUMNS = {
    "NAME": "columns",
    "STATE": "Running",
    "NODES": "12/16",
    "LAYOUT": "tp8·pp4·dp16",
    "STEP": "420",
    "PROGRESS": "42%",
    "ETA": "2099-01-01T00:00:00Z",
    "RESTARTS": "1",
    "IN-PLACE": "7",
    "AGE": None,
}
WIDE = {
    "LOSS": "2.345",
    "MFU": "0.41",
    "PLACEMENT": "16 nodes · 2 leaf · 1 spine",
    "REASON": "Training",
}


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    return control_plane.kubeconfig("admin")


async def kubectl(kubeconfig: Path, *arguments: str) -> str:
    def run() -> str:
        command = [str(KUBECTL), f"--kubeconfig={kubeconfig}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return await asyncio.to_thread(run)


async def test_apply_the_committed_files(kubeconfig: Path, crds: None) -> None:
    """The plain client-side apply, which keeps a copy in an annotation of limited size."""
    for _ in range(2):
        output = await kubectl(kubeconfig, "apply", "-f", str(ROOT / "crds"))
        assert len(output.splitlines()) == 2
    assert "unchanged" in output


async def explain_when_served(kubeconfig: Path, field: str) -> str:
    """A new definition reaches the OpenAPI document, which kubectl reads, a moment later."""
    for _ in range(50):
        try:
            return await kubectl(kubeconfig, "explain", field)
        except AssertionError:
            await asyncio.sleep(0.2)
    return await kubectl(kubeconfig, "explain", field)


def sections(schema: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """Return all objects with fields of their own, by path."""
    schema = schema.get("items", schema)
    found = {path: schema["properties"]} if "properties" in schema else {}
    for name, child in schema.get("properties", {}).items():
        found |= sections(child, f"{path}.{name}")
    return found


async def test_explain_describes_every_field(kubeconfig: Path, crds: None) -> None:
    await explain_when_served(kubeconfig, "llmtrainingjob.spec.parallelism")
    schema = definitions()[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, fields in sections(schema["properties"]["spec"], "llmtrainingjob.spec").items():
        if path.count(".") > 2:  # sections of the spec are enough: each call costs a process
            continue
        words = (await kubectl(kubeconfig, "explain", path)).split()
        text = " ".join(words)
        assert "<no description>" not in text
        for name, field in fields.items():
            assert name in words
            assert " ".join(field["description"].split()) in text


async def test_explain_parallelism_reads_well(kubeconfig: Path, crds: None) -> None:
    text = await explain_when_served(kubeconfig, "ltj.spec.parallelism")
    assert "KIND:       LLMTrainingJob" in text
    assert "Parallel degrees. Their product is the world size." in text
    assert "tensor\t<integer>" in text
    assert "enum: GPipe, 1F1B" in text


def rows(text: str) -> tuple[list[str], str]:
    header, row = text.splitlines()
    return header.split(), row


async def test_columns(kubeconfig: Path, api: Api, namespace: str, crds: None) -> None:
    manifest = yaml.safe_load((ROOT / "tests/corpus/accepted/minimal.yaml").read_text())
    await api.create(JOBS, {**manifest, "metadata": {"name": "columns"}}, namespace)
    await api.request(
        "PATCH",
        resource_path(JOBS, namespace, "columns") + "/status",
        body={"status": STATUS},
        content_type="application/merge-patch+json",
    )
    header, row = rows(await kubectl(kubeconfig, "-n", namespace, "get", "ltj"))
    assert header == list(COLUMNS)
    assert row.split()[:-1] == [value for value in COLUMNS.values() if value]
    header, row = rows(await kubectl(kubeconfig, "-n", namespace, "get", "ltj", "-o", "wide"))
    assert header == [*COLUMNS, *WIDE]
    assert row.split()[-len(" ".join(WIDE.values()).split()) :] == " ".join(WIDE.values()).split()


async def test_the_category_lists_jobs(kubeconfig: Path, namespace: str, crds: None) -> None:
    text = await kubectl(kubeconfig, "-n", namespace, "get", "llmtrain", "-o", "json")
    assert json.loads(text)["kind"] == "List"
