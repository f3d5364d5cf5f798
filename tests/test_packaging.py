"""The source distribution and the wheel: what they bring, say of themselves, and can do alone."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mindtwins

ROOT = Path(__file__).parents[1]
SOURCES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "mindtwins").rglob("*.py")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of a copy of the checkout: building leaves folders behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in ("mindtwins", "tests", "benchmarks", "configs", "convert", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for path in ROOT.glob("[!.]*"):
        if path.is_file():
            shutil.copy(path, source)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(target)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel_path(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the source distribution.

    Built as on a machine without a compiler, where the libraries are left out: the slow part.
    """
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(sdist)]
    subprocess.run(command, env=os.environ | {"CC": "false", "CXX": "false"}, check=True)
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(wheel_path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_path)


@pytest.fixture(scope="module")
def distribution(wheel: zipfile.ZipFile) -> PathDistribution:
    """What the wheel says of itself."""
    return PathDistribution(zipfile.Path(wheel, f"mindtwins-{mindtwins.__version__}.dist-info/"))


def test_the_source_distribution_holds_what_building_and_running_take(sdist: Path):
    with tarfile.open(sdist) as archive:
        paths = [Path(member.name) for member in archive if member.isfile()]
    files = {"/".join(path.parts[1:]) for path in paths}
    suffixes = {".py", ".cpp", ".h", ".yaml"}
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in ("mindtwins", "configs", "convert")
        for path in (ROOT / name).rglob("*")
        if path.suffix in suffixes
    }
    assert expected <= files
    assert {"train.py", "validate.py", "infer.py", "demo.py", "setup.py", "LICENSE"} <= files
    assert not [name for name in files if name.startswith(("tests/", "benchmarks/"))]
    assert not [name for name in files if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_recipes_and_nothing_else(wheel: zipfile.ZipFile):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    recipes = {f"mindtwins/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    data = ("py.typed", "classification/imagenet_classes.txt", "serving/page.html")
    assert files == {*SOURCES, *recipes, *(f"mindtwins/{name}" for name in data)}


def test_one_wheel_serves_every_python(wheel_path: Path, distribution: PathDistribution):
    tag = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
    assert wheel_path.name == f"mindtwins-{mindtwins.__version__}-{tag}.whl"
    assert distribution.metadata["Requires-Python"] == "<3.13,>=3.10"


@pytest.mark.slow
def test_the_wheel_brings_its_license(wheel: zipfile.ZipFile, distribution: PathDistribution):
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    (name,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_version_is_the_same_everywhere(distribution: PathDistribution):
    assert distribution.version == mindtwins.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mindtwins.__version__
    assert f"\n## [{mindtwins.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_the_package_imports_is_required(distribution: PathDistribution):
    """By the package or by an extra for some of its runs, and nothing besides."""
    providers = packages_distributions()
    imported = {
        canonicalize_name(name)
        for path in SOURCES.values()
        for module in _imports(path) - sys.stdlib_module_names - {"mindtwins"}
        for name in providers[module]
    }
    extras = ("convert", "demo", "export", "hub", "openvino", "serve", "tensorboard")
    environments = [{"extra": extra} for extra in extras]
    required = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, distribution.requires or ())
        if not requirement.marker or any(map(requirement.marker.evaluate, environments))
    }
    assert imported == required


@pytest.fixture(scope="module")
def installed(wheel_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, all that it requires, and no torch.

    The wheel's libraries are those that were built for the tests.
    """
    folder = tmp_path_factory.mktemp("an environment")
    venv.create(folder, symlinks=True)
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    install += ["--quiet", "--no-index", "--no-deps", str(wheel_path)]
    subprocess.run(install, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in (ROOT / "mindtwins").rglob("*.so"):
        shutil.copy(path, packages / path.relative_to(ROOT))
    (packages / "torch.py").write_text('raise ModuleNotFoundError("no torch", name="torch")\n')
    # What stands here comes after the environment's own; .pth files in there are not followed.
    (packages / "required.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin"


@pytest.mark.slow
def test_a_wheel_without_torch_trains_and_validates(installed: Path, tmp_path: Path):
    def run(*command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python, mindtwins = str(installed / "python"), str(installed / "mindtwins")
    used = run(python, "-c", "from mindtwins.config import recipes; print(recipes.BUNDLED)")
    assert installed.parent in Path(used).parents
    recipe = ["-c", "svt_tiny_digits"]
    run(mindtwins, "train", *recipe, "--epoch_size=1", "--warmup_epochs=0", "--epoch_steps=2")
    result = tmp_path / "result.json"
    weights = tmp_path / "outputs" / "svt_tiny_digits" / "final.ckpt"
    validate = ["validate", *recipe, "--ckpt_path", str(weights), "--output_json", str(result)]
    mpirun = shutil.which("mpirun")
    two_ranks = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2"] if mpirun else []
    run(*two_ranks, mindtwins, *validate)
    assert json.loads(result.read_text())["images"] == 355
    assert {path.name for path in tmp_path.iterdir()} == {"data", "outputs", "result.json"}


def _imports(path: Path) -> set[str]:
    """The first part of each module that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
