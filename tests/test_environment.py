"""The lists of what vaelab needs say the same: pyproject, the two sets of pins, environment.yml."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ON_CONDA = {"torch": "pytorch", "igraph": "python-igraph"}  # where the name is another


def bounds(lines) -> dict[str, str]:
    found = [Requirement(line) for line in lines]
    return {r.name: str(r.specifier) for r in found if r.name not in ("vaelab", "pip")}


def in_pyproject() -> dict[str, str]:
    extras = PROJECT["optional-dependencies"]
    # Not "parity": only tests and `make bench` need it, and conda users take the course.
    return bounds(PROJECT["dependencies"] + extras["course"] + extras["dev"])


def test_conda_environment_mirrors_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, by_pip = conda["dependencies"]
    expected = {ON_CONDA.get(name, name): bound for name, bound in in_pyproject().items()}
    assert bounds(packages) == expected | {"python": PROJECT["requires-python"]}
    assert by_pip == {"pip": ["-e ."]}
    assert conda["name"] == "vaelab" and conda["channels"] == ["conda-forge"]


def pins(file: str, python: str, platform: str = "linux") -> dict[str, str]:
    """Name to version of every pin that holds for a Python and a platform."""
    lines = (ROOT / file).read_text().splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    here = {"python_version": python, "python_full_version": f"{python}.9", "extra": ""}
    here |= {"sys_platform": platform, "os_name": "nt" if platform == "win32" else "posix"}
    pinned = {}
    for requirement in found:
        if requirement.marker is None or requirement.marker.evaluate(here):
            (pin,) = requirement.specifier
            assert pin.operator == "==", requirement
            assert requirement.name not in pinned, f"{requirement.name} is pinned twice in {file}"
            pinned[requirement.name] = pin.version
    return pinned


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_lock_pins_everything(python, platform):
    extras = PROJECT["optional-dependencies"]
    all_bounds = in_pyproject() | bounds(extras["nbgrader"] + extras["parity"])
    pinned = pins("constraints.txt", python, platform)
    for name, bound in all_bounds.items():
        assert pinned.get(name, "nothing") in Requirement(name + bound).specifier, name
    assert len(pinned) > 3 * len(all_bounds)  # what they need in turn is pinned too


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lowest_set_is_the_bounds_themselves(python):
    pinned = pins("tests/lowest.txt", python)
    for name, bound in in_pyproject().items():
        assert Version(pinned[name]) == Version(bound.removeprefix(">=")), name


def test_both_sets_have_the_same_torch():
    torch = {pins(file, "3.11")["torch"] for file in ("constraints.txt", "tests/lowest.txt")}
    makefile = (ROOT / "Makefile").read_text()
    assert torch == {re.search(r"^TORCH = (\S+)$", makefile, re.M)[1]}


def test_an_installed_package_is_the_pinned_one():
    """`make` writes the pins that it used beside the environment; pip kept to them."""
    record = Path(sys.prefix) / ".pins"
    if not record.exists():
        pytest.skip("this environment was not made by make, so nothing says what it was pinned to")
    pinned = pins(record, ".".join(map(str, sys.version_info[:2])), sys.platform)
    for package in importlib.metadata.distributions():
        name = canonicalize_name(package.metadata["Name"])
        if name in pinned:
            assert Version(package.version).public == pinned[name], name


def test_one_version_is_named_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+), ", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert version == citation["version"] == newest


def test_github_runs_the_commands_of_the_readme():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    runs = {name: [step.get("run") for step in job["steps"]] for name, job in jobs.items()}
    assert runs["test"][-1] == "make test" and runs["everything"][-1] == ".ci/run"
    torch = re.search(r"^TORCH = (\S+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert f"torch=={torch} " in str(runs["test"])
