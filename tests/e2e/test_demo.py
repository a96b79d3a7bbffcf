"""`make demo`, run as a newcomer runs it: what it shows is true, and it leaves nothing behind."""

import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MARK = "LLMTRAIN_DEMO_TEST"


def marked_processes(mark: str) -> list[int]:
    """Processes that inherited our mark, however deep below the demo they were started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def cluster_folder(text: str) -> Path:
    """The folder that the demo says its cluster had."""
    found = re.search(r"files in (\S+)", text)
    assert found, "the demo prints where its cluster keeps its files"
    return Path(found[1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    report = tmp_path_factory.mktemp("demo") / "report.json"
    mark = uuid.uuid4().hex
    temporary = tmp_path_factory.mktemp("temporary")
    run = subprocess.run(
        [sys.executable, "-m", "llmtrain_devcluster.demo"],
        env=os.environ | {MARK: mark, "DEMO_REPORT": str(report), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=800,
    )
    print(run.stdout)
    yield {
        "code": run.returncode,
        "text": run.stdout,
        "report": json.loads(report.read_text()) if report.exists() else {},
        "processes": marked_processes(mark),
        "temporary": list(temporary.iterdir()),
    }


def test_the_job_succeeds_and_learns(demo: dict):
    assert demo["code"] == 0
    report = demo["report"]
    assert report["phase"] == "Succeeded"
    assert report["heldOutLossBefore"] - report["heldOutLossAfter"] >= 1.0


def test_every_tensor_group_sits_inside_one_node(demo: dict):
    placement = demo["report"]["placement"]
    home = {rank: node["name"] for node in placement["nodes"] for rank in node["ranks"]}
    assert sorted(home) == list(range(8))
    for group in ([0, 1], [2, 3], [4, 5], [6, 7]):
        assert len({home[rank] for rank in group}) == 1
    assert placement["crossings"]["node"]["tensor"] == 0
    assert placement["domains"] == {"spine": 1, "leaf": 2, "node": 4}


def test_latency_of_collectives_is_measured_for_every_group(demo: dict):
    collectives = demo["report"]["collectives"]
    assert {"tp", "dp", "pp"} <= set(collectives)
    for rows in collectives.values():
        for row in rows:
            assert row["count"] > 0
            assert row["bytesPerStep"] > 0
            assert (row["meanSeconds"] > 0) == (row["op"] not in {"send", "recv"})


def test_what_is_printed_is_what_is_reported(demo: dict):
    report, text = demo["report"], demo["text"]
    assert f"{report['heldOutLossAfter']:.3f}" in text
    for node in report["placement"]["nodes"]:
        line = next(line for line in text.splitlines() if node["name"] in line)
        assert f"{node['ranks'][0]}-{node['ranks'][-1]}" in line


def test_nothing_is_left(demo: dict):
    assert demo["processes"] == []
    assert demo["temporary"] == []
    folder = cluster_folder(demo["text"])
    assert not folder.exists()
    assert str(folder) not in Path("/proc/mounts").read_text()
    ports = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", demo["text"])}
    assert ports, "the demo prints the address of its API server"
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
