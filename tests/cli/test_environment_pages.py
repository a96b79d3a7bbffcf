"""What docs/environments shows is valid, and is what jobs get on the recorded node lists.

A page shows a job, links to a node list, and then shows `status.network` of the job on these nodes.
A YAML block with only `spec` has changes of the job above it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_core.network import Kind, NodeNetwork, Setting
from llmtrain_core.network.profile import candidates_on
from llmtrain_core.node_health import DEFAULT_ROWS
from llmtrain_core.validation.check import Job, check
from llmtrain_core.validation.pod_privileges import privileges
from llmtrain_operator.cache.network_status import network_status
from tests.support.cluster_files import Shell
from tests.support.node_lists import FOLDER, facts_of, network
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

PAGES = sorted((ROOT / "docs" / "environments").glob("*.md"))
INDEX = next(page for page in PAGES if page.name == "README.md")
ENVIRONMENTS = [page for page in PAGES if page != INDEX]
PART = re.compile(r"node_lists/([\w-]+)\.yaml\)|^```(\w*)\n(.*?)^```$", re.M | re.S)
NO_VALUES = "none"


@dataclass(frozen=True)
class Shown:
    """A job, the recorded nodes, and what a page says about them."""

    name: str
    job: Mapping[str, Any]
    nodes: str
    network: Mapping[str, Any] | None = None
    text: str = ""


def merged(base: Any, change: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return {**base, **{key: merged(base.get(key), value) for key, value in change.items()}}


def parts(page: Path) -> Iterator[Shown | Mapping[str, Any]]:
    """Yield the jobs of a page, and what it shows of the job above on the nodes above."""
    nodes = ""
    base: Mapping[str, Any] = {}
    job: Mapping[str, Any] = {}
    for found in PART.finditer(page.read_text("utf-8")):
        listed, language, code = found.groups()
        if listed is not None:
            nodes = listed
        elif language == "text":
            yield Shown(f"{page.stem}: {nodes}", job, nodes, text=code)
        else:
            assert language == "yaml", f"{page.name}: a block of {language!r} is not checked"
            block = yaml.safe_load(code)
            if block.keys() == {"network"}:
                yield Shown(f"{page.stem}: {nodes}", job, nodes, network=block["network"])
            elif block.get("kind") == "LLMTrainingJob":
                base = job = block
                yield job
            else:
                assert block.keys() == {"spec"}, f"{page.name}: not a part of a job"
                job = merged(base, block)
                yield job


def jobs(page: Path) -> list[Mapping[str, Any]]:
    return [part for part in parts(page) if not isinstance(part, Shown)]


def shown(page: Path) -> list[Shown]:
    return [part for part in parts(page) if isinstance(part, Shown)]


def checked(job: Mapping[str, Any]) -> Job:
    assert job["apiVersion"] == "llmtrain.dev/v1alpha1"
    answer = check(job["metadata"]["name"], job["spec"])
    assert not isinstance(answer, list), [str(problem) for problem in answer]
    return answer


def place(llmtrain: Shell, file: Callable[..., str], part: Shown, *options: str) -> str:
    """Return what `llmtrain place` prints about a job that is placed on the nodes."""
    nodes = str(FOLDER / f"{part.nodes}.yaml")
    arguments = ("-f", file("job.json", part.job), "--nodes", nodes)
    code, out, err = llmtrain("place", *arguments, *options)
    assert code == 0, out + err
    return out


def status_of(printed: str) -> dict[str, Any]:
    """Return `status.network` of a job with the network that `llmtrain place` prints."""
    found = json.loads(printed)["network"]
    settings = tuple(
        Setting(Kind(item["kind"]), item["name"], item["value"], item["setBy"], item["source"])
        for item in found["settings"]
    )
    preset = found["topologyPreset"]
    decided = NodeNetwork(found["row"], found["fact"], settings, tuple(found["notes"]), preset)
    return network_status(decided).to_wire()


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=lambda page: page.stem)
def test_every_job_is_valid_and_a_page_says_which_are_privileged(page: Path) -> None:
    found = [checked(job) for job in jobs(page)]
    assert found and not privileges(found[0].spec.workers), "the first job is for all namespaces"
    privileged = any(privileges(job.spec.workers) for job in found)
    assert privileged == ("pods.md#privileged-pods" in page.read_text("utf-8"))


@pytest.mark.parametrize(
    "part", [part for page in PAGES for part in shown(page)], ids=lambda part: part.name
)
def test_a_page_shows_what_a_job_gets_on_the_recorded_nodes(
    llmtrain: Shell, file: Callable[..., str], part: Shown
) -> None:
    if part.network is None:
        assert f"\n{part.text}\n" in place(llmtrain, file, part)
    else:
        assert part.network == status_of(place(llmtrain, file, part, "-o", "json"))


def test_every_environment_shows_a_job_on_nodes_and_all_rows_of_the_table_are_among_them() -> None:
    by_page = {page.stem: [part for part in shown(page) if part.network] for page in ENVIRONMENTS}
    assert all(by_page.values())
    linked = {name for page in ENVIRONMENTS for name in node_lists(page)}
    assert linked == {path.stem for path in FOLDER.iterdir()}
    rows = {
        candidate.row
        for name in linked
        for facts in facts_of(name).values()
        for candidate in candidates_on(facts)
    }
    text = "".join(page.read_text("utf-8") for page in ENVIRONMENTS)
    assert [row for row in rows if f"`{row}`" not in text] == []


def node_lists(page: Path) -> list[str]:
    return [found for found, *_ in PART.findall(page.read_text("utf-8")) if found]


def test_the_index_has_what_auto_sets_on_each_list_and_why() -> None:
    table = INDEX.read_text("utf-8").partition("## Recorded nodes")[2].partition("\n## ")[0]
    listed = {}
    for line in re.findall(r"^\| \[.*", table, re.M):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        listed[re.findall(r"node_lists/([\w-]+)\.yaml", cells[0])[0]] = cells[1:]
    assert len(listed) >= 12
    assert listed == {path.stem: row_of(path.stem) for path in FOLDER.iterdir()}


def row_of(name: str) -> list[str]:
    """Return the cells of a list: the profiles to name, and what `auto` sets."""
    found = network(name)
    profiles: tuple[str, ...] = ("tcp",)
    for candidate in candidates_on(next(iter(facts_of(name).values()))):
        profiles = candidate.profiles
        break
    values = [
        ", ".join(f"`{key}={value}`" for key, value in found.of_kind(kind).items())
        for kind in (Kind.RESOURCE, Kind.VARIABLE)
    ]
    named = ", ".join(f"`{profile}`" for profile in profiles)
    cells = [value or NO_VALUES for value in (named, *values)]
    return [f"`{found.row}`", *cells, " ".join(found.notes) or found.fact]


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=lambda page: page.stem)
def test_labels_and_resources_of_the_commands_are_on_recorded_nodes(page: Path) -> None:
    text = page.read_text("utf-8")
    listed = re.findall(r"get nodes .*-L (\S+)", text)
    used = {label for labels in listed for label in labels.split(",")}
    columns = re.findall(r":\.status\.allocatable\.((?:\\.|[^\s,'.])+)", text)
    used |= {column.replace("\\.", ".") for column in columns}
    documents = [yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in node_lists(page)]
    nodes = [item for found in documents for item in found["items"] if item["kind"] == "Node"]
    known = {key for node in nodes for key in node["metadata"]["labels"]}
    known |= {key for node in nodes for key in node["status"]["allocatable"]}
    assert columns and used <= known


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=lambda page: page.stem)
def test_the_rows_of_node_health_exist(page: Path) -> None:
    section = page.read_text("utf-8").partition("## Node health")[2].partition("\n## ")[0]
    named = re.findall(r"`([a-z-]+/[\w*-]+)`", section)
    rows = [row.name for row in DEFAULT_ROWS]
    assert named and [name for name in named if not any(fnmatch(row, name) for row in rows)] == []


def test_a_page_that_drifts_is_found(
    llmtrain: Shell, file: Callable[..., str], tmp_path: Path
) -> None:
    source = (INDEX.parent / "aws-eks.md").read_text("utf-8")
    page = tmp_path / "aws-eks.md"
    page.write_text(source.replace('value: "32"', 'value: "16"', 1), "utf-8")
    first = next(part for part in shown(page) if part.network)
    assert first.network != status_of(place(llmtrain, file, first, "-o", "json"))
    page.write_text(source.replace("gpusPerNode: 8", "gpusPerNode: eight", 1), "utf-8")
    assert isinstance(check("llama3-8b", jobs(page)[0]["spec"]), list)
