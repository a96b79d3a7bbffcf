import gc
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from llmtrain_devcluster.fixtures import (  # noqa: F401
    api,
    control_plane,
    namespace,
    scripted_nodes,
)
from llmtrain_images.fixtures import docker_engine  # noqa: F401
from tests.support.deadline import limit_of, pytest_runtest_protocol  # noqa: F401
from tests.support.marks import can_select

# A busy machine must not fail a property, and what lands must not hang on luck: `make test` has the
# same examples each time. `make fuzz` looks for new ones.
settings.register_profile(
    "fresh",
    deadline=None,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("same", settings.get_profile("fresh"), derandomize=True, database=None)
settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed every generator, so that no test depends on chance or on the tests before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of which `-m` can select nothing."""
    expression = config.getoption("markexpr")
    if expression and collection_path.match("test_*.py"):
        return not can_select(expression, collection_path.read_text("utf-8")) or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run folders, and files in them, with the longest time limit first.

    With two workers the run then does not end with one worker that waits for a long test.
    """
    folders: dict[object, float] = {}
    files: dict[object, float] = {}
    for item in items:
        limit = limit_of(item)
        folders[item.path.parent] = max(folders.get(item.path.parent, 0), limit)
        files[item.path] = max(files.get(item.path, 0), limit)
    items.sort(key=lambda i: (-folders[i.path.parent], str(i.path.parent), -files[i.path]))


def pytest_collection_finish() -> None:
    """Keep the collector from going through thousands of tests and their modules again and again.

    Processes that tests fork share the memory of these objects as long as nothing touches them.
    """
    gc.freeze()
