"""The table leaves to NCCL what only NCCL knows, and docs/networks.md names every source."""

from __future__ import annotations

import pytest

from llmtrain_core.network.environments import TABLE
from llmtrain_core.network.profile import PROFILE_VARIABLES
from tests.support.node_lists import FOLDER, facts_of
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

FORBIDDEN = ("ALGO", "PROTO", "BUFFSIZE", "NCHANNELS")
WITH_GID = {"oci-roce", "amd-ainic"}
WITH_CHECK = {"gke-tcpxo", "gke-tcpx"}
"""Rows with all values of Google, which the plugin compares with its own."""


def test_the_table_leaves_to_nccl_what_only_nccl_knows_and_names_every_source() -> None:
    page = (ROOT / "docs" / "networks.md").read_text()
    seen = set()
    for name in (path.stem for path in FOLDER.iterdir()):
        for facts in facts_of(name).values():
            for candidate in (candidate for row in TABLE for candidate in row(facts)):
                seen.add(candidate.row)
                values = [*candidate.variables, *candidate.amounts, *(candidate.demand or ())]
                sources = {item.source for item in values}
                sources |= {candidate.devices.source} if candidate.devices else set()
                sources |= {candidate.networks_source} if candidate.networks else set()
                if (parts := candidate.parts) is not None:
                    sources |= {parts.source, parts.networks_source}
                    sources |= {item.source for item in parts.annotations}
                sources |= (
                    {candidate.need.source} if candidate.need and candidate.need.source else set()
                )
                assert not [s for s in sources if f"`{s}`" not in page], candidate.row
                for item in values:
                    assert not item.name.endswith(FORBIDDEN) or candidate.row in WITH_CHECK
                    assert item.name in page
                    assert item.name != "NCCL_IB_GID_INDEX" or candidate.row in WITH_GID
                assert f"`{candidate.row}`" in page
    assert len(seen) == len(TABLE) - 1  # the network operator has two rows of one name
    for variables in PROFILE_VARIABLES.values():
        assert all(f"`{item.source}`" in page and item.name in page for item in variables)
