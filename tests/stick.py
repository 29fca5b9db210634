"""One folder for a room without a network: course, site, data, and wheels for each platform.

``make stick`` writes ``build/stick/vaelab``. Copied to a laptop, ``make course`` there (or, on
Windows, the lines in its ``STICK.txt``) asks no network. The wheels are those of
``constraints.txt``, for the Python that runs this: which packages the course needs is read from
those installed here, as the other platform would read it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
BUILD = ("hatchling", "editables")  # what pip needs to install the folder itself
CPU = "https://download.pytorch.org/whl/cpu"  # on Linux the usual torch brings gigabytes of CUDA
# No newer system than PyTorch itself asks for: glibc 2.28, and macOS 14.
MANYLINUX = [f"manylinux_2_{n}_x86_64" for n in range(28, 16, -1)]
MACOS = [f"macosx_{n}_0_{kind}" for n in range(14, 10, -1) for kind in ("arm64", "universal2")]
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
STICK = """\
vaelab, a course that needs no network
======================================

1. Copy this folder to your laptop, and go on there.
2. To read: open site/index.html in a browser.
3. To work: you need Python {python} (no other; python.org/downloads has it). Open a terminal in the
   copied folder.

   Linux and macOS:

       make PYTHON=python{python} course

   Windows (PowerShell):

       $env:PIP_NO_INDEX = "1"; $env:PIP_FIND_LINKS = "wheels"
       py -{python} -m venv .venv
       .venv\\Scripts\\pip install -c constraints.txt -e ".[dev]"
       .venv\\Scripts\\vaelab course

The folder has wheels for: {platforms}.
"""
SYSTEMS = {
    "linux": "Linux on Intel or AMD (glibc 2.28 or newer)",
    "macos": "macOS 14 or newer on Apple silicon",
    "windows": "Windows on Intel or AMD",
}
IGNORED = shutil.ignore_patterns(
    *(".git", ".venv", "build", "my-course", "wheels", "__pycache__", ".*_cache"),
    *(".ipynb_checkpoints", ".doctrees"),  # the latter is Sphinx's own memory
)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PATCHES = (
    f"{PYTHON}.0",
    f"{PYTHON}.99",
)  # a laptop may have any of them; a marker can tell them apart


def pins_for(platform: str) -> dict[str, list[str]]:
    """The locked versions of each package that the course needs on a platform.

    There are two where the lock tells the first releases of this Python from later ones.
    """
    system = {**PLATFORMS[platform][1], "os_name": "nt" if platform == "windows" else "posix"}

    def holds(marker, extra: str = "") -> bool:
        tried = (system | {"python_full_version": patch, "extra": extra} for patch in PATCHES)
        return marker is None or any(map(marker.evaluate, tried))

    locked = defaultdict(list)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if holds(pin.marker):
                locked[canonicalize_name(pin.name)].append(str(pin.specifier).removeprefix("=="))
    needed, waiting = {}, [("vaelab", "dev")]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name != "vaelab":
            if name not in locked:
                sys.exit(
                    f"constraints.txt does not name {name}, which is needed here: make the stick "
                    "with the environment of `make course`."
                )
            needed[name] = locked[name]
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # only another platform has it
            requires = []
        for requirement in map(Requirement, requires):
            if holds(requirement.marker, extra):
                to = canonicalize_name(requirement.name)
                if not to.startswith(("nvidia-", "cuda-", "triton")):
                    waiting += [(to, e) for e in ("", *requirement.extras)]
    return needed


def download(pins: dict[str, list[str]], platform: str, to: Path) -> None:
    """Bring one wheel for each pin."""
    number = PYTHON.replace(".", "")
    tags = [x for tag in [*PLATFORMS[platform][0], "any"] for x in ("--platform", tag)]
    abis = [x for abi in (f"cp{number}", "abi3", "none") for x in ("--abi", abi)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(to), "--no-deps"]
    command += [
        "--only-binary=:all:",
        "--python-version",
        PATCHES[-1],
        "--implementation",
        "cp",
    ]
    command += [*tags, *abis]
    others = {n: versions for n, versions in pins.items() if n != "torch"}
    for turn in range(max(map(len, others.values()))):  # pip takes one version of a package a time
        now = [f"{n}=={v[turn]}" for n, v in others.items() if len(v) > turn]
        subprocess.run([*command, *now], check=True)
    small = ["--extra-index-url", CPU] if platform == "linux" else []
    subprocess.run([*command, *small, f"torch=={pins['torch'][0]}"], check=True)


def missing_in(wheels: Path, pins: dict[str, list[str]]) -> list[str]:
    """The pins of which no wheel is there."""
    there = {
        (canonicalize_name(name), str(version).partition("+")[0])
        for name, version, *_ in (parse_wheel_filename(path.name) for path in wheels.glob("*.whl"))
    }
    wanted = [(n, v) for n, versions in pins.items() for v in versions]
    return [f"{n}=={v}" for n, v in wanted if (n, v.partition("+")[0]) not in there]


def copy_course(out: Path) -> None:
    """The repository without what was built or written in it, and the data of the lessons."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT, out, ignore=IGNORED)
    for built, to in (("site/html", "site"), ("slides", "slides")):
        if (ROOT / "build" / built).is_dir():
            shutil.copytree(ROOT / "build" / built, out / to, ignore=IGNORED)
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
    (wheels / "python").write_text(PYTHON)  # the Makefile compares it
    systems = ", ".join(SYSTEMS[platform] for platform in options.platform)
    note = STICK.format(python=PYTHON, platforms=systems)
    (options.out / "STICK.txt").write_text(note, encoding="utf-8")
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
