"""The bill of materials of an image has the packages that pip finds in it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from llmtrain_images.build import build_operator, build_trainer
from llmtrain_images.contents import bill_of_materials, read_contents
from llmtrain_images.docker_engine import DockerEngine
from llmtrain_images.wheels import find_pip

pytestmark = [pytest.mark.kind, pytest.mark.timeout(2400)]

Build = Callable[[DockerEngine], str]


@pytest.mark.parametrize("build", [build_operator, build_trainer])
def test_it_lists_what_pip_lists(docker_engine: DockerEngine, build: Build) -> None:
    image = build(docker_engine)
    bill = bill_of_materials(image, read_contents(docker_engine, image))
    listed = {
        (component["name"], component["version"])
        for component in bill["components"]
        if component["purl"].startswith("pkg:pypi/")
    }
    sealed = ("--rm", "--read-only", "--network", "none", "--volume", f"{find_pip()}:/pip:ro")
    command = ("--entrypoint", "python", image, "/pip", "list", "--format", "json")
    run = docker_engine.docker("run", *sealed, *command)
    expected = {
        (entry["name"].lower().replace("_", "-"), entry["version"])
        for entry in json.loads(run.stdout)
    }
    assert listed == expected
    assert bill == bill_of_materials(image, read_contents(docker_engine, image))
