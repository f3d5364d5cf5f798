"""Installation: `pip install -e .[convert,demo]`; the Makefile does all of it."""

from setuptools import Extension, find_packages, setup

# MindSpore loads it as a library; Python never imports it. Compiled for the processor of this
# machine, which the library checks for when it is loaded. Without a compiler the installation
# goes on without it (`optional`), and the layers use MindSpore's own operators.
KERNELS = Extension(
    "mindtwins.layers.kernels._kernels",
    [
        f"mindtwins/layers/kernels/{name}.cpp"
        for name in ("kernels", "convolution", "maps", "rearrangement")
    ],
    depends=["mindtwins/layers/kernels/common.h"],
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-march=native", "-pthread"],
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

setup(
    name="mindtwins",
    version="0.1.0",
    description="Twins vision transformers (PCPVT and SVT) on MindSpore, with PyTorch's answers",
    ext_modules=[KERNELS, RESAMPLE],
    packages=find_packages(include=["mindtwins", "mindtwins.*"]),
    # MindSpore 2.10 has wheels for 3.9 to 3.12, torch 2.13 for 3.10 and up.
    python_requires=">=3.10,<3.13",
    install_requires=[
        "mindspore>=2.7,<2.11",
        # MindSpore up to 2.10 is built against NumPy 1: with NumPy 2 eager arithmetic and the
        # dataset pipeline fail to import numpy.core.multiarray.
        "numpy>=1.24,<2",
        "safetensors>=0.4",
        "pillow>=10",
        "pyyaml>=6",
        "tqdm>=4.60",
        "matplotlib>=3.7",
    ],
    extras_require={
        # Reading and writing .pth files, and the reference that --verify compares with. The
        # parity tolerances were measured on this version.
        "convert": ["torch==2.13.0"],
        # The handwritten digits and the two photographs of the demo.
        "demo": ["scikit-learn>=1.3"],
        # `--tensorboard true`; reading the logs needs TensorBoard itself, from anywhere.
        "tensorboard": ["tensorboardX>=2.6"],
        "test": [
            "torch==2.13.0",
            "scikit-learn>=1.3",
            "pytest>=8,<10",
            "pytest-xdist>=3.5",
            "tensorboardX>=2.6",
            # Brings mpirun, for the tests of several ranks.
            "openmpi>=4.1,<6",
            # A formatter's output changes with its version.
            "ruff==0.17.5",
        ],
    },
)
