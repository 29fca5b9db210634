"""The three lists of what vaelab needs say the same: pyproject, constraints, environment.yml."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

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


def test_constraints_satisfy_pyproject():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert pinned
    for requirement in pinned:
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        wanted = Requirement(requirement.name + in_pyproject()[requirement.name]).specifier
        assert pin.version in wanted, f"{requirement} is outside {wanted} of pyproject.toml"
