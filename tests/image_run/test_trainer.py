"""A training pod runs as its image runs it: an unknown user, and only the pod's own mounts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api import env
from tests.support.image_run.container import USER, Container
from tests.support.trainer.jobs import job_spec
from tests.support.trainer.launchers import Pods

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

ROOMS = ("core", "trainer", "cli")
POD = "/mnt/pod"
WORK, SAVED, LOG = f"{POD}/work", f"{POD}/checkpoints", f"{POD}/termination-log"
WRITABLE = (*(path for path in env.WRITABLE_PATHS if path != env.WORK_DIR_PATH), WORK)
"""The emptyDirs of a pod of the operator; that of `WORK_DIR_PATH` is elsewhere."""
ENDS_WITHIN = 600


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    folder.chmod(0o755)  # pytest keeps others out
    for number in range(8):
        words = [f"word{(number * 31 + i * i) % 97} and" for i in range(400)]
        (folder / f"{number}.txt").write_text(" ".join(words) + "\n")
    return folder


def _writable_folder(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o777)
    return path


def test_a_job_is_prepared_trained_and_saved(tmp_path: Path, corpus: Path) -> None:
    spec = job_spec(
        uri=f"file://{POD}/corpus",
        precision="float32",
        checkpoint={"uri": f"file://{SAVED}", "everySteps": 2},
        training={"steps": 4},
    )
    pods = Pods(tmp_path, spec)
    try:
        _run_pod(pods, tmp_path, corpus)
    finally:
        pods.stop()


def _run_pod(pods: Pods, folder: Path, corpus: Path) -> None:
    saved = _writable_folder(folder / "saved")
    message = folder / "termination-log"
    message.touch()
    message.chmod(0o666)
    pod = {
        **pods.environment(0),
        env.JOB_FILE: f"{POD}/job.json",
        env.WORK_DIR: WORK,
        env.TERMINATION_LOG: LOG,
    }
    image = Container(
        rooms=ROOMS,
        binds={f"{POD}/job.json": pods.job, f"{POD}/corpus": corpus, SAVED: saved, LOG: message},
        writable=(*WRITABLE, SAVED, LOG),
        env={env.HOME: env.TMP_PATH, **pod, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    log = folder / "log"
    process = image.start(["-m", "llmtrain_trainer.launch"], log)
    try:
        assert process.wait(ENDS_WITHIN) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    result: dict[str, Any] = json.loads(message.read_text())["result"]
    assert result["step"] == 4 and result["lastCheckpointStep"] == 4
    assert {path.stat().st_uid for path in saved.rglob("*")} == {USER}
    text = log.read_text()
    assert "Traceback" not in text and "Read-only" not in text, text


def test_the_data_of_an_indexed_job_is_prepared(tmp_path: Path, corpus: Path) -> None:
    volume = _writable_folder(tmp_path / "volume")
    image = Container(
        rooms=ROOMS,
        binds={f"{POD}/corpus": corpus, f"{POD}/volume": volume},
        writable=("/tmp", f"{POD}/volume"),
        env={"JOB_COMPLETION_INDEX": "0", "LLMTRAIN_DATA_PROCESSES": "1"},
    )
    log = tmp_path / "log"
    arguments = ["-c", "from llmtrain_cli.main import run; run()", "data", "prepare"]
    arguments += ["--source", f"text=file://{POD}/corpus", "--vocab-size", "320"]
    process = image.start([*arguments, "--to", f"{POD}/volume/prepared"], log)
    assert process.wait(ENDS_WITHIN) == 0, log.read_text()
    assert (volume / "prepared").stat().st_uid == USER
    assert "Traceback" not in log.read_text()
