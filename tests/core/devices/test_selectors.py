"""The part of CEL that selects devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from llmtrain_core.devices.selectors import (
    UnsupportedExpressionError,
    Value,
    Version,
    compile_selector,
)

pytestmark = pytest.mark.unit

GPU = "gpu.nvidia.com"


@dataclass(frozen=True)
class Device:
    driver: str = GPU
    attributes: Mapping[tuple[str, str], Value] = field(
        default_factory=lambda: {
            (GPU, "type"): "gpu",
            (GPU, "productName"): "NVIDIA H100 80GB HBM3",
            (GPU, "index"): 3,
            (GPU, "mig"): False,
            (GPU, "driverVersion"): Version("570.158.1"),
            ("resource.kubernetes.io", "pcieRoot"): "pci0000:01",
        }
    )
    capacity: Mapping[tuple[str, str], Fraction] = field(
        default_factory=lambda: {(GPU, "memory"): Fraction(80 * 2**30)}
    )


A, C = f'device.attributes["{GPU}"]', f'device.capacity["{GPU}"]'

MET = (
    f'device.driver == "{GPU}"',
    f"device.driver == '{GPU}' && device.attributes['{GPU}'].type == 'gpu'",  # of NVIDIA's chart
    f'{A}.type != "mig" && !{A}.mig',
    f'{A}["type"] in ["gpu", "mig"]',
    f'"type" in {A} && !("none" in {A})',
    f"has({A}.index) && !has({A}.none) && !has(device.attributes['other'].type)",
    f"{A}.index >= 3 && {A}.index < 4 && -1 < {A}.index",
    f'{A}.productName.contains("H100") && {A}.productName.startsWith("NVIDIA")',
    f"{C}.memory.compareTo(quantity('40Gi')) >= 0",
    f"({C}.memory.isGreaterThan(quantity('79Gi')) || false) && true",
    # An operand that decides hides one without a value.
    f'{A}.none == "x" || {A}.type == "gpu"',
    'device.attributes["resource.kubernetes.io"].pcieRoot == "pci0000:01"',
    f'{A}.type == "\\"" || true',
)
NOT_MET = (
    'device.driver == "other"',
    f'{A}.none == "x"',
    f'!({A}.none == "x")',  # no value, so not true
    f'{A}.none == "x" && true',
    f'{A}.type == "gpu" && {A}.none == "x"',
    f"{A}.index == '3'",  # another type has no value, and is not unequal
    f"{A}.index != '3'",
    f'{A}.driverVersion == "570.158.1"',
    f"{C}.memory.isLessThan(quantity('80Gi'))",
    f"{C}.memory.compareTo(quantity('many')) >= 0",
    f"{A}.type",
    f"{A}.index && true",
)
UNSUPPORTED = (
    "",
    "device",
    "device.name == 'x'",
    "pod.driver == 'x'",
    f"{A}.type == 'gpu' ? true : false",
    f"{A}.driverVersion.compareTo(semver('1.0.0')) > 0",
    f"{A}.productName.matches('(a+)+b')",
    f"{A}.productName.lowerAscii() == 'x'",
    "device.attributes.size() > 0",
    "[1, 2].exists(x, x == 1)",
    "1.5 < 2",
    "device.driver == 'x' &&",
    "(device.driver == 'x'",
    "device.driver == 'x')",
    "device.driver == 'a\\n'",
    "device.driver.startsWith('a', 'b')",
    "has()",
    "(" * 50 + "true" + ")" * 50,
    "!" * 50 + "true",
)


@pytest.mark.parametrize("expression", MET)
def test_a_device_meets_a_condition(expression: str) -> None:
    assert compile_selector(expression)(Device())


@pytest.mark.parametrize("expression", NOT_MET)
def test_a_condition_that_is_false_or_has_no_value_is_not_met(expression: str) -> None:
    assert not compile_selector(expression)(Device())


@pytest.mark.parametrize("expression", UNSUPPORTED)
def test_what_is_not_supported_is_refused(expression: str) -> None:
    with pytest.raises(UnsupportedExpressionError):
        compile_selector(expression)


def test_a_long_expression_is_read_in_bounded_depth() -> None:
    many = " && ".join(["true"] * 500)
    assert compile_selector(many)(Device())
