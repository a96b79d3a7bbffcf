"""One corpus of manifests, one verdict: pydantic and a real API server agree on every file.

`accepted` and `rejected` hold what can be judged from the manifest alone; a rejected file says in a
comment which field is wrong, and both sides must name it. `refused` holds what needs more
knowledge than a schema has: accepted by both, and refused by `check`. `transitions` holds pairs of
manifests, before and after an update.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llmtrain_core.api.job import IMMUTABLE, JobSpec
from llmtrain_core.validation.check import Job, Problem, check, problems_of
from llmtrain_devcluster.api import Api, ApiStatusError, resource_path
from tests.support.paths import CORPUS

JOBS = "llmtrain.dev/v1alpha1/llmtrainingjobs"
STRICT_DRY_RUN = {"dryRun": "All", "fieldValidation": "Strict"}


def files(folder: str) -> list[Path]:
    return sorted((CORPUS / folder).glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def spec_of(path: Path) -> Any:
    return documents(path)[0]["spec"]


def note(path: Path, key: str) -> str:
    """Return what a leading comment `# key: value` says."""
    found = re.search(rf"^# {key}: (.+)$", path.read_text(), re.MULTILINE)
    assert found, f"{path.name} has no comment '# {key}: ...'"
    return found[1]


def named(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files(folder), ids=lambda path: path.stem)


def refusals(spec: Any) -> list[Problem]:
    try:
        JobSpec.from_wire(spec)
    except ValidationError as error:
        return problems_of(error)
    return []


@pytest.mark.unit
def test_the_corpus_is_large_enough() -> None:
    assert len(files("accepted")) >= 40
    assert len(files("rejected")) >= 60


@pytest.mark.unit
@named("accepted")
def test_pydantic_accepts(path: Path) -> None:
    assert refusals(spec_of(path)) == []


@pytest.mark.unit
@named("accepted")
def test_an_accepted_manifest_survives_the_way_there_and_back(path: Path) -> None:
    spec = JobSpec.from_wire(spec_of(path))
    assert JobSpec.from_wire(spec.to_wire()) == spec


@pytest.mark.unit
@named("rejected")
def test_pydantic_rejects_and_names_the_field(path: Path) -> None:
    field = note(path, "field")
    problems = refusals(spec_of(path))
    assert field in [problem.field for problem in problems], problems
    assert all(problem.message and problem.remedy for problem in problems)
    checked = check("job", spec_of(path))
    assert isinstance(checked, list)
    assert field in [problem.field for problem in checked]


@pytest.mark.unit
@named("refused")
def test_check_refuses_and_names_reason_and_field(path: Path) -> None:
    assert refusals(spec_of(path)) == []
    problems = check("job", spec_of(path))
    assert not isinstance(problems, Job)
    assert (note(path, "reason"), note(path, "field")) in [(p.reason, p.field) for p in problems]
    for problem in problems:
        assert problem.message
        assert problem.remedy
        assert str(problem).startswith(problem.field)


async def _agree(judgements: Iterable[Coroutine[Any, Any, str]]) -> None:
    """Run all judgements at once; each returns what is wrong with the server's verdict."""
    wrong = [text for text in await asyncio.gather(*judgements) if text]
    assert not wrong, "\n".join(wrong)


async def _create(
    api: Api, namespace: str, spec: Any, name: str, **query: str
) -> ApiStatusError | None:
    body = {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "LLMTrainingJob",
        "metadata": {"name": name},
        "spec": spec,
    }
    try:
        await api.request("POST", resource_path(JOBS, namespace), query=query, body=body)
    except ApiStatusError as error:
        return error
    return None


def _blames(error: ApiStatusError, field: str) -> bool:
    causes = [cause.get("field") for cause in error.details.get("causes", [])]
    # An unknown field is refused before validation, in a message without causes.
    return field in causes or f'unknown field "{field}"' in error.message


@pytest.mark.cluster
async def test_the_api_server_accepts(api: Api, namespace: str, crds: None) -> None:
    async def judge(path: Path) -> str:
        error = await _create(api, namespace, spec_of(path), path.stem, **STRICT_DRY_RUN)
        return f"{path.name} was refused: {error}" if error else ""

    await _agree(map(judge, [*files("accepted"), *files("refused")]))


@pytest.mark.cluster
async def test_the_api_server_rejects_and_names_the_field(
    api: Api, namespace: str, crds: None
) -> None:
    async def judge(path: Path) -> str:
        error = await _create(api, namespace, spec_of(path), path.stem, **STRICT_DRY_RUN)
        if error is None:
            return f"{path.name} was accepted"
        return "" if _blames(error, note(path, "field")) else f"{path.name}: {error}"

    await _agree(map(judge, files("rejected")))


@pytest.mark.cluster
async def test_the_defaults_of_the_api_server_are_those_of_pydantic(
    api: Api, namespace: str, crds: None
) -> None:
    """What is stored, read by pydantic, is what pydantic read from the manifest."""

    async def judge(path: Path) -> str:
        body = {**documents(path)[0], "metadata": {"name": path.stem}}
        stored = await api.request(
            "POST", resource_path(JOBS, namespace), query=STRICT_DRY_RUN, body=body
        )
        same = JobSpec.from_wire(stored["spec"]) == JobSpec.from_wire(spec_of(path))
        return "" if same else f"{path.name}: {stored['spec']}"

    await _agree(map(judge, files("accepted")))


def test_each_immutable_field_has_a_transition_that_is_refused() -> None:
    fields = {note(path, "field") for path in files("transitions/refused")}
    assert fields == {f"spec.{name}" for name in IMMUTABLE}


@pytest.mark.cluster
async def test_transitions(api: Api, namespace: str, crds: None) -> None:
    async def judge(path: Path) -> str:
        before, after = documents(path)
        allowed = path.parent.name == "allowed"
        name = f"{path.parent.name}-{path.stem}"
        created = await _create(api, namespace, before["spec"], name)
        if created is not None:
            return f"{path.name}: the manifest before was refused: {created}"
        stored = await api.get(JOBS, name, namespace)
        body = {**stored, "spec": after["spec"]}
        try:
            await api.request("PUT", resource_path(JOBS, namespace, name), body=body)
        except ApiStatusError as error:
            if allowed:
                return f"{path.name} was refused: {error}"
            # One rule compares all sections: its path is the spec, and its message names them.
            expected = f"immutable, create a new job instead: {note(path, 'field')}"
            named = _blames(error, "spec") and expected in error.message
            return "" if named else f"{path.name}: {error}"
        return "" if allowed else f"{path.name} was accepted"

    await _agree(map(judge, [*files("transitions/allowed"), *files("transitions/refused")]))
