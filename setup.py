"""The two extension modules; pyproject.toml has everything else."""

from glob import glob

from setuptools import Extension, setup

# MindSpore loads it as a library; Python never imports it. Compiled for the processor of this
# machine, which the library checks for when it is loaded. Without a compiler the installation
# goes on without it (`optional`), and the layers use MindSpore's own operators.
KERNELS = Extension(
    "mindtwins.layers.kernels._kernels",
    sorted(glob("mindtwins/layers/kernels/*.cpp")),
    depends=glob("mindtwins/layers/kernels/*.h"),
    language="c++",
    # Loops aligned: else a loop is up to a fifth slower where other files' code happens to push it.
    extra_compile_args=["-std=c++17", "-O3", "-march=native", "-falign-loops=32", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)
# Pillow's resize of a part of a picture; it runs on any processor of the architecture.
RESAMPLE = Extension(
    "mindtwins.data._resample",
    ["mindtwins/data/resample.cpp"],
    language="c++",
    extra_compile_args=["-std=c++17", "-O3"],
    optional=True,
)

setup(ext_modules=[KERNELS, RESAMPLE])
