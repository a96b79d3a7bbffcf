"""Pictures are whole although containers start beside the browser."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmtrain_images.debian import install_missing
from llmtrain_pictures.chromium import PACKAGES, PROGRAM
from tests.support.monitoring import changing_addresses
from tests.support.paths import ROOT

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(600)]


def test_requests_of_a_page_survive_a_change_of_addresses() -> None:
    install_missing([PROGRAM], PACKAGES, print)
    # Root needs no user namespace, which a kernel refuses to a process in a chroot.
    as_root = ["--map-root-user"] if os.geteuid() else []
    own_network = ["unshare", *as_root, "--net", "--"]
    draw = [sys.executable, "-m", changing_addresses.__name__]
    done = subprocess.run([*own_network, *draw], cwd=ROOT, capture_output=True, text=True)
    parts = " ".join(str(number) for number in range(changing_addresses.PARTS))
    assert done.stdout == f"() {parts}\n", done.stderr
