"""Generated data sets that appear whole or not at all, also when several processes write them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from mindtwins.data.folders import is_leftover
from mindtwins.errors import UserError


def write_generated_folder(
    folder: str | os.PathLike[str],
    write: Callable[[Path], None],
    *,
    files: str,
    count: int,
    name: str,
) -> Path:
    """Let `write` fill a new folder, unless the folder is there already.

    Args:
        folder: its parent folders are created.
        write: fills the empty folder that it is given.
        files: pattern of the files below the folder that are counted to see that it is complete.
        count: the number of those files.
        name: of the data set, for messages.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists with other content, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        found = sum(
            not any(map(is_leftover, path.relative_to(folder).parts)) for path in folder.glob(files)
        )
        if found != count:
            raise UserError(
                f"{folder} exists but holds {found} of the {name}' {count} files: choose "
                "another folder, or remove it if nothing else is in it"
            )
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write(partial)
            partial.chmod(0o755)  # mkdtemp's folders are private
            partial.rename(folder)
        except OSError:
            # Another process was first: renaming onto a folder that is not empty fails.
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the {name} to {folder}: {error.strerror}") from error
    return folder
