"""The wheel: what an installation brings, and what it says of itself."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of a copy of the checkout: building leaves folders behind.

    Built as on a machine without a compiler, where the extensions are left out: the slow part.
    """
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("mindtwins", "tests", "benchmarks", "configs", "convert"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, env=os.environ | {"CC": "false", "CXX": "false"}, check=True)
    (path,) = target.iterdir()
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def distribution(wheel: zipfile.ZipFile) -> PathDistribution:
    """What the wheel says of itself."""
    return PathDistribution(zipfile.Path(wheel, f"mindtwins-{mindtwins.__version__}.dist-info/"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == {*SOURCES, "mindtwins/py.typed", "mindtwins/serving/page.html"}


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
    environments = [
        {"extra": extra}
        for extra in ("convert", "demo", "export", "openvino", "serve", "tensorboard")
    ]
    required = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, distribution.requires or ())
        if not requirement.marker or any(map(requirement.marker.evaluate, environments))
    }
    assert imported == required


def _imports(path: Path) -> set[str]:
    """The first part of each module that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
