"""The compiled libraries and the recipes; pyproject.toml has everything else.

The libraries are loaded with ctypes and by MindSpore; Python never imports them. So their names
are those of no Python version, and one wheel serves all. Without a compiler, or with one that does
not know a processor, the installation goes on without them (`optional`); a release does not.
"""

import copy
import os
import platform
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# What may be used of a processor beyond its vectors would have to be looked for too, and NumPy,
# which `mindtwins/layers/kernels/loading.py` asks, does not tell of these.
VECTORS_ONLY = ["-mno-bmi", "-mno-bmi2", "-mno-lzcnt", "-mno-movbe"]
# By machine: the builds of the kernels, of which one is chosen before it is loaded.
KERNELS = {
    "x86_64": {
        "x86_64_v3": ["-march=x86-64-v3", *VECTORS_ONLY],
        "x86_64_v4": ["-march=x86-64-v4", *VECTORS_ONLY],
    },
    "aarch64": {"aarch64": []},
}


def library(name: str, sources: list[str], flags: list[str]) -> Extension:
    """A library of C++ files; no debug information, which would be most of it."""
    return Extension(
        name,
        sources,
        depends=glob(f"{os.path.dirname(sources[0])}/*.h"),
        language="c++",
        extra_compile_args=["-std=c++17", "-O3", "-g0", *flags],
        extra_link_args=["-pthread"],
        optional="MINDTWINS_RELEASE" not in os.environ,
    )


def kernels(build: str, processor: list[str]) -> Extension:
    """The kernels for some processors."""
    # Loops aligned: else a loop is up to a fifth slower where other files' code happens to push it.
    flags = [*processor, "-falign-loops=32", "-pthread"]
    sources = sorted(glob("mindtwins/layers/kernels/*.cpp"))
    return library(f"mindtwins.layers.kernels._kernels_{build}", sources, flags)


class BuildLibraries(build_ext):
    """Builds them side by side, each in a folder of its own and without Python's suffix."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or True

    def build_extension(self, ext):
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        super(BuildLibraries, own).build_extension(ext)

    def get_ext_filename(self, fullname):
        return f"{fullname.replace('.', os.sep)}.so"


class BuildWithRecipes(build_py):
    """Puts `configs/` into the package; an editable installation finds it beside the package."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = os.path.join(self.build_lib, "mindtwins", "configs")
            self.mkpath(target)
            for path in glob("configs/*.yaml"):
                self.copy_file(path, target)


class AnyPythonWheel(bdist_wheel):
    """For the platform, but any Python 3."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        *(kernels(*build) for build in KERNELS.get(platform.machine(), {}).items()),
        # Pillow's resize of a part of a picture; it runs on any processor of the architecture.
        library("mindtwins.data._resample", ["mindtwins/data/resample.cpp"], []),
    ],
    cmdclass={
        "build_ext": BuildLibraries,
        "build_py": BuildWithRecipes,
        "bdist_wheel": AnyPythonWheel,
    },
)
