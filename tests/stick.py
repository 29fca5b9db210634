"""One folder for a room without a network: the course, its data, and wheels for each platform.

``make stick`` writes ``build/stick/vaelab``. Copied to a laptop, ``make course`` there (or, on
Windows, the lines in its README) asks no network. The wheels are those of ``constraints.txt``, for
the Python that runs this: which packages the course needs is read from those installed here, as the
other platform would read it.
"""

import argparse
import json
import os
import platform as platform_
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
BUILD = ("hatchling", "editables")  # what pip needs to install the folder itself
CPU = "https://download.pytorch.org/whl/cpu"  # on Linux the usual torch brings gigabytes of CUDA
MANYLINUX = [f"manylinux_2_{n}_x86_64" for n in range(34, 16, -1)]
MACOS = [f"macosx_{n}_0_{kind}" for n in range(15, 10, -1) for kind in ("arm64", "universal2")]
PLATFORMS = {  # the tags of its wheels, and what markers see there
    "linux": (
        [*MANYLINUX, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"],
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    ),
    "macos": (
        [*MACOS, *(f"macosx_10_{n}_universal2" for n in range(15, 8, -1))],
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    ),
    "windows": (
        ["win_amd64"],
        {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    ),
}
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", "build", "my-course", "wheels", "__pycache__", ".*_cache", ".ipynb_checkpoints"
)


PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def pins_for(platform: str) -> dict[str, str]:
    """The locked version of each package that the course needs on a platform."""
    here = {**PLATFORMS[platform][1], "os_name": "nt" if platform == "windows" else "posix"}
    locked = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(here | {"extra": ""}):
                locked[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    needed, waiting = {}, [("vaelab", "dev")]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name != "vaelab":
            needed[name] = locked[name]
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # only another platform has it
            requires = []
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            if marker is None or marker.evaluate(here | {"extra": extra}):
                to = canonicalize_name(requirement.name)
                if not to.startswith(("nvidia-", "cuda-", "triton")):
                    waiting += [(to, e) for e in ("", *requirement.extras)]
    return needed


def download(pins: dict[str, str], platform: str, to: Path) -> None:
    """Bring one wheel for each pin."""
    number = PYTHON.replace(".", "")
    tags = [x for tag in [*PLATFORMS[platform][0], "any"] for x in ("--platform", tag)]
    abis = [x for abi in (f"cp{number}", "abi3", "none") for x in ("--abi", abi)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(to), "--no-deps"]
    command += [
        "--only-binary=:all:",
        "--python-version",
        platform_.python_version(),
        "--implementation",
        "cp",
    ]
    command += [*tags, *abis]
    others = {n: v for n, v in pins.items() if n != "torch"}
    subprocess.run([*command, *(f"{n}=={v}" for n, v in others.items())], check=True)
    small = ["--extra-index-url", CPU] if platform == "linux" else []
    subprocess.run([*command, *small, f"torch=={pins['torch']}"], check=True)


def missing_in(wheels: Path, pins: dict[str, str]) -> list[str]:
    """The pins of which no wheel is there."""
    there = {
        (canonicalize_name(name), str(version).partition("+")[0])
        for name, version, *_ in (parse_wheel_filename(path.name) for path in wheels.glob("*.whl"))
    }
    return [f"{n}=={v}" for n, v in pins.items() if (n, v.partition("+")[0]) not in there]


def copy_course(out: Path) -> None:
    """The repository without what was built or written in it, and the data of the lessons."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT, out, ignore=IGNORED)
    for built in ("site", "slides"):
        if (ROOT / "build" / built).is_dir():
            shutil.copytree(ROOT / "build" / built, out / built)
    needed = set()
    for edition in (ROOT / "course" / "exercises").glob("*.ipynb"):
        about = json.loads(edition.read_text(encoding="utf-8"))["metadata"]["vaelab"]
        needed |= {*about["data"]}
    os.environ["VAELAB_DATA"] = str(out / "data")
    from vaelab import datasets

    for name in sorted(needed):
        try:
            datasets.fetch(name, progress=False)
        except OSError as error:
            sys.exit(str(error))
        print(f"data {name}: {', '.join({*datasets.verify(name).values()})}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "stick" / "vaelab")
    parser.add_argument("--platform", nargs="+", default=[*PLATFORMS], choices=[*PLATFORMS])
    options = parser.parse_args()
    copy_course(options.out)
    wheels = options.out / "wheels"
    wheels.mkdir()
    build = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), *BUILD]
    subprocess.run(build, check=True)
    missing = []
    for platform in options.platform:
        pins = pins_for(platform)
        download(pins, platform, wheels)
        missing += missing_in(wheels, pins)
        print(f"{platform}, Python {PYTHON}: {len(pins)} packages")
    if missing:
        sys.exit(f"There is no wheel of {', '.join(missing)}.")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"Wrote {options.out} ({size / 1e9:.1f} GB). Copy it, and run `make course` in it.")


if __name__ == "__main__":
    main()
