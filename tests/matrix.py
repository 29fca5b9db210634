"""Every test on several Pythons, each with the locked, the lowest and the newest packages.

``make matrix`` runs this; ``make matrix PYTHONS="python3.12 /opt/python3.13/bin/python3"`` names
other Pythons. A cell of the table is `make test` in an environment of its own under build/matrix/,
with a log beside it. It takes as long as `make test`, once per cell.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
HERE = ROOT / "build" / "matrix"
SHOWN = ("numpy", "pandas", "anndata", "scanpy", "typer")  # those that break things most often


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--torch", required=True, help="the one version of torch, also for newest")
    parser.add_argument("pythons", nargs="+", help="interpreters, by name or path")
    options = parser.parse_args()

    HERE.mkdir(parents=True, exist_ok=True)
    newest = HERE / "newest.txt"
    newest.write_text(f"torch=={options.torch}\n")
    sets = {"locked": ROOT / "constraints.txt", "lowest": ROOT / "tests/lowest.txt"}
    sets["newest"] = newest

    print(f"| Python | packages | {', '.join(SHOWN)} | result | minutes |\n|---|---|---|---|---|")
    failed = False
    for python in options.pythons:
        version = said(python, "-c", "import platform; print(platform.python_version())").strip()
        tested: dict[str, str] = {}  # installed packages -> the set that was tested with them
        for name, pins in sets.items():
            venv = HERE / f"{version}-{name}"
            started = time.monotonic()
            folder = venv.relative_to(ROOT)  # as `make` names it
            make = ["make", f"VENV={folder}", f"PYTHON={python}", f"PINS={pins.relative_to(ROOT)}"]
            with open(f"{venv}.log", "w") as log:
                run = {"cwd": ROOT, "stdout": log, "stderr": subprocess.STDOUT}
                code = subprocess.call([*make, f"{folder}/.installed"], **run)
                packages = installed(venv) if code == 0 else ""
                if code == 0 and packages not in tested:
                    code = subprocess.call([*make, "test"], **run)
            if code:
                result = f"FAILED: {summary(Path(log.name))}"
                failed = True
            elif packages in tested:
                result = f"same packages as {tested[packages]}"
            else:
                result = summary(Path(log.name))
                tested[packages] = name
            minutes = (time.monotonic() - started) / 60
            row = f"| {version} | {name} | {versions(packages)} | {result} | {minutes:.0f} |"
            print(row, flush=True)
    return int(failed)


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def installed(venv: Path) -> str:
    frozen = said(venv / "bin/python", "-m", "pip", "freeze", "--exclude-editable")
    return re.sub(r"^torch[= @].*$", "", frozen, flags=re.M)


def versions(packages: str) -> str:
    found = dict(line.split("==") for line in packages.splitlines() if line.count("==") == 1)
    return ", ".join(found.get(name, "-") for name in SHOWN)


def summary(log: Path) -> str:
    """The closing line of pytest, or the last line there is."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    counts = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
    return re.sub(r" in [\d.]+s.*", "", (counts or lines or ["no output"])[-1])


if __name__ == "__main__":
    sys.exit(main())
