"""Pages of the interface from the docstrings, by pdoc: `python docs/build_api.py site`.

What pdoc has to warn of ends the build.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from pkgutil import iter_modules

import pdoc

import mindtwins

# Command lines, which `--help` describes.
COMMANDS = ("commands", "__main__")
# To Python they look like modules.
LIBRARIES = ("!mindtwins.data._resample", "!mindtwins.layers.kernels._.*")


def main(folder: str) -> None:
    """Write the pages of the package and all of its modules."""
    for name in mindtwins.__all__:  # each is imported when it is asked for, and pdoc does not ask
        getattr(mindtwins, name)
    pdoc.render.configure(docformat="google", footer_text=f"MindTwins {mindtwins.__version__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="pdoc")
        names = [module.name for module in iter_modules(mindtwins.__path__)]
        modules = [f"mindtwins.{name}" for name in names if name not in COMMANDS]
        pdoc.pdoc("mindtwins", *modules, *LIBRARIES, output_directory=Path(folder))
    print(f"wrote {folder}/index.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
