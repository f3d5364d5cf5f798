"""The C++ products give NumPy's numbers at sizes that leave rests in every dimension."""

import subprocess
import sys
from pathlib import Path

import pytest

from mindtwins.layers.kernels import loading

CHECKS = Path(__file__).with_name("product_checks.py")


@pytest.mark.parametrize("build", loading.BUILDS)
def test_products(build):
    """On 1, 2 and 3 threads alike, and without touching what lies beyond an array."""
    library = loading.FOLDER / f"_kernels_{build}.so"
    if build not in loading.suitable(loading.__cpu_features__) or not library.exists():
        pytest.skip("no such build, or not for this processor")
    command = [sys.executable, str(CHECKS), str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
