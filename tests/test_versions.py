"""The versions that pyproject.toml allows are the versions that are tested."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRA = [
    Requirement(text)
    for name in ("plot", "bitsandbytes", "gguf", "test", "check")
    for text in PROJECT["optional-dependencies"][name]
]
WITH_PRIVATE_PARTS = {"torch", "transformers", "peft", "accelerate", "deepspeed"}


def pins(file):
    lines = (line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#"))
    return {name.lower(): Version(version) for name, _, version in (line.partition("==") for line in lines)}


def bound(requirement, operator):
    return next((Version(each.version) for each in requirement.specifier if each.operator == operator), None)


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_the_oldest_version_that_is_allowed_is_the_one_that_is_tested(requirement):
    oldest = pins("constraints-oldest.txt")[requirement.name.lower()]
    if requirement.name == "torch":
        assert oldest in requirement.specifier
    else:
        assert oldest == bound(requirement, ">=")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_what_is_pinned_is_allowed(file):
    allowed = {each.name.lower(): each.specifier for each in NEEDED + EXTRA}
    assert [(name, pin) for name, pin in pins(file).items() if name in allowed and pin not in allowed[name]] == []


def test_only_libraries_whose_private_parts_are_used_have_an_upper_bound():
    assert {each.name for each in NEEDED if bound(each, "<")} == WITH_PRIVATE_PARTS
