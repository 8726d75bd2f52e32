"""A kit of packages for a GPU machine without a network: made where there is one, unpacked there in seconds.

    python tests/gpu/kit.py make [--out .kit] [--python 3.12] [--packages FILE] [--wheels FOLDER]
    python tests/gpu/kit.py unpack [--kit .kit] [--site FOLDER]

`make` fetches the packages of packages.txt for the Python of the GPU machine, whatever Python runs this; what has no wheel
is built, DeepSpeed without compiled parts. What nobody needs there (Ray's Java archive, the dashboard's pages, symbols) is
left out, which makes 100 MB of wheels 45 MB. `unpack` prints the folder to put on PYTHONPATH. Needs nothing but Python.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
PARTS = 8
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)), "manylinux2014_x86_64"]
DASHBOARD = "ray/dashboard/client/build/"
DROPPED = ("ray/jars/", "ray/rllib/", "ray/core/libjemalloc.so", DASHBOARD)
OTHER_DEVICES = re.compile(r"bitsandbytes/libbitsandbytes_(cuda(?!130)|rocm|xpu)")  # CUDA 13.0 stays
# Without these Ray's dashboard ends at its start, and ray.init waits for it.
DASHBOARD_NEEDS = (f"{DASHBOARD}static/.keep", f"{DASHBOARD}speedscope-1.5.3/.keep")
WITH_SYMBOLS = ("ray/_raylet.so", "ray/core/src/ray/gcs/gcs_server", "ray/core/src/ray/raylet/raylet")
STUB = (
    'def __getattr__(name):\n    raise ImportError("left out of the kit: it needs a compiler for the other Python")\n'
)


def main() -> None:
    """Make or unpack a kit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("--out", type=Path, default=Path(".kit"))
    making.add_argument("--python", default="3.12", help="version of the GPU machine's Python")
    making.add_argument("--packages", type=Path, default=HERE / "packages.txt")
    making.add_argument("--wheels", type=Path, help="folder that keeps wheels for the next time")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("--kit", type=Path, default=Path(".kit"))
    unpacking.add_argument("--site", type=Path, default=Path(tempfile.gettempdir()) / "arc_ray_site")
    arguments = parser.parse_args()
    if arguments.command == "unpack":
        print(unpack(arguments.kit, arguments.site))
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheels = arguments.wheels or Path(scratch) / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        make(arguments.out, arguments.python, arguments.packages, wheels, Path(scratch) / "site")
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")


def make(out: Path, python: str, packages: Path, wheels: Path, site: Path) -> None:
    """Write a kit of the packages that a file names, in the versions of constraints.txt, from what `wheels` lacks on."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    versions = {normal(name): version for name, version in pinned.items()}
    names = [line.strip() for line in packages.read_text().splitlines() if line.strip() and not line.startswith("#")]
    for name in names:
        install(wheel_of(name, versions[normal(name)], wheels, python), site)
    if (site / "ray").exists():
        for place in DASHBOARD_NEEDS:
            (site / place).parent.mkdir(parents=True, exist_ok=True)
            (site / place).touch()
        for place in WITH_SYMBOLS:
            (site / place).chmod(0o755)
            if shutil.which("strip"):
                subprocess.run(["strip", "--strip-unneeded", site / place], check=True)
    # The checkout itself is not installed there, and datasets note which version of it made them.
    version = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    about = site / f"arc_ray-{version}.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text(f"Metadata-Version: 2.1\nName: arc_ray\nVersion: {version}\n")
    pack(site, out, python)


def normal(name: str) -> str:
    """Write a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wheel_of(name: str, version: str, wheels: Path, python: str) -> Path:
    """Return a wheel for this Python: kept, downloaded, built, or where that takes a compiler, a stub."""

    def found() -> Path | None:
        short = python.replace(".", "")
        tags = ("py3-none-", f"py{short}-none-", f"cp{short}", "abi3")
        heads = ((path, path.name.split("-")) for path in wheels.glob("*.whl"))
        fitting = [p for p, head in heads if normal(head[0]) == normal(name) and head[1] == version]
        return next((path for path in fitting if any(tag in path.name for tag in tags)), None)

    if wheel := found():
        return wheel
    pip, asked = [sys.executable, "-m", "pip"], f"{name}=={version}"
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    subprocess.run(
        [*pip, "download", "--quiet", *wanted, "--dest", str(wheels), asked], capture_output=True, check=False
    )
    if wheel := found():
        return wheel
    build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), asked]
    built = subprocess.run(build, capture_output=True, text=True, env={**os.environ, "DS_BUILD_OPS": "0"}, check=False)
    if wheel := found():
        return wheel
    if built.returncode:
        raise SystemExit(f"{asked} can be neither downloaded nor built: {built.stderr.strip()[-500:]}")
    print(f"{asked} has compiled parts and no wheel for Python {python}: a stub is packed", file=sys.stderr)
    stub = wheels / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(stub, "w") as archive:
        archive.writestr(f"{name}/__init__.py", STUB)
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return stub


def install(wheel: Path, site: Path) -> None:
    """Unpack a wheel as `pip install --target` would, without its scripts and headers and what nobody needs."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            place = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", member.filename)
            is_dropped = (place.startswith(DROPPED) and place != f"{DASHBOARD}index.html") or OTHER_DEVICES.match(place)
            if place.endswith(("/", ".map")) or re.match(r"[^/]+\.data/", place) or is_dropped:
                continue
            target = site / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
            if member.external_attr >> 16 & 0o111:
                target.chmod(0o755)


def pack(site: Path, out: Path, python: str) -> None:
    """Write a tree as some archives of about equal size, which are unpacked at the same time."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    groups: list[list[Path]] = [[] for _ in range(PARTS)]
    sizes = [0] * PARTS
    for path in sorted((p for p in site.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(path)
        sizes[smallest] += path.stat().st_size

    def write(number: int) -> tuple[str, str]:
        target = out / f"part-{number}.tar.xz"
        with tarfile.open(target, "w:xz") as archive:
            for path in sorted(groups[number]):
                archive.add(path, path.relative_to(site).as_posix())
        return target.name, hashlib.sha256(target.read_bytes()).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = dict(pool.map(write, range(PARTS)))
    (out / "manifest.json").write_text(json.dumps({"python": python, "parts": parts}, indent=1))


def unpack(kit: Path, site: Path) -> Path:
    """Unpack a kit and compile what it holds, unless that was done; return where it is."""
    if not (site / ".complete").exists():
        manifest = json.loads((kit / "manifest.json").read_text())
        here, parts = f"{sys.version_info.major}.{sys.version_info.minor}", manifest["parts"]
        if manifest["python"] != here:
            raise SystemExit(
                f"{kit} is for Python {manifest['python']}, and this is {here}: make it with --python {here}"
            )
        site.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            list(pool.map(_unpack_part, [kit / name for name in parts], parts.values(), [site] * len(parts)))
        quiet = [sys.executable, "-W", "ignore", "-m", "compileall", "-q", "-j", "0", str(site)]
        subprocess.run(quiet, capture_output=True, check=False)  # packages hold templates that are no Python
        (site / ".complete").touch()
    return site


def _unpack_part(part: Path, sha256: str, site: Path) -> None:
    if hashlib.sha256(part.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{part} is damaged: copy the kit anew")
    with tarfile.open(part) as archive:
        archive.extractall(site, filter="data")


if __name__ == "__main__":
    main()
