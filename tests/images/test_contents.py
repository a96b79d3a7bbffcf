"""The bill of materials names each package once, and is the same for the same image."""

from __future__ import annotations

import pytest

from llmtrain_images.contents import Contents, Package, bill_of_materials, describe_parts

pytestmark = pytest.mark.unit

CONTENTS = Contents(
    python=(Package("aiohttp", "3.14.5", 8, "Apache-2.0"), Package("torch", "2.15.0+cu132", 90)),
    debian=(Package("libc6", "2:2.36-9+deb12u14", 13, architecture="amd64"),),
    bytes=150,
    environment_bytes=100,
)


def test_components_have_package_urls_and_licences() -> None:
    bill = bill_of_materials("llmtrain/operator:1.2.3", CONTENTS)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "llmtrain/operator"
    assert bill["metadata"]["component"]["version"] == "1.2.3"
    components = bill["components"]
    assert [component["purl"] for component in components] == [
        "pkg:pypi/aiohttp@3.14.5",
        "pkg:pypi/torch@2.15.0%2Bcu132",
        "pkg:deb/debian/libc6@2%3A2.36-9%2Bdeb12u14?arch=amd64",
    ]
    assert components[0]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert "licenses" not in components[1]


def test_the_serial_number_depends_on_the_contents_only() -> None:
    first = bill_of_materials("a:1", CONTENTS)
    assert bill_of_materials("a:1", CONTENTS) == first
    less = Contents(CONTENTS.python[:1], CONTENTS.debian, 150, 100)
    assert bill_of_materials("a:1", less)["serialNumber"] != first["serialNumber"]


def test_parts_go_from_the_whole_to_the_largest_package() -> None:
    assert list(describe_parts(CONTENTS))[:4] == [
        ("all files", 150),
        ("base", 50),
        ("Python packages", 100),
        ("  torch 2.15.0+cu132", 90),
    ]
