"""An exported ONNX file as a function of arrays, by onnxruntime."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mindtwins.errors import UserError
from mindtwins.export.seal import SEAL_KEY, check_seal
from mindtwins.files import read_file

# Of what is said of an export in its metadata, as "export" has it.
EXPORT_VERSION = 1


class OnnxModel:
    """An exported model: images (N, C, H, W) float32 -> what the checkpoint's gives.

    With `--preprocess` the images are pictures, uint8 (N, H, W, 3).

    Args:
        path: of the file.

    Attributes:
        path: the same.
        metadata: all that the file says, as a checkpoint does; of the export itself under "export".
        classes: the names of the classes, by number; None where they are not known.
        preprocessing: from an RGB picture to the input; set by `mindtwins.load_onnx`.

    Raises:
        UserError: onnxruntime is not there, or the file cannot be read, was not written by this
            project, or is not as it was written.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        onnxruntime = import_onnxruntime()
        self.path = Path(path).expanduser()
        content = read_file(path)
        check_seal(self.path, content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # it has many of its own
            raise UserError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error
        texts = self._session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {
            key: json.loads(text) for key, text in texts.items() if key != SEAL_KEY
        }
        version = self.metadata["export"]["export_version"]
        if version > EXPORT_VERSION:
            raise UserError(
                f"{path} was exported by MindTwins {self.metadata['export']['mindtwins']}, which is"
                " newer than this one: update MindTwins, or export it again"
            )
        classes = self.metadata.get("classes")
        self.classes: tuple[str, ...] | None = tuple(classes) if classes else None
        self.preprocessing: Callable | None = None
        self._input = self._session.get_inputs()[0]

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """What the file takes; a text stands for what it leaves open."""
        return tuple(self._input.shape)

    @property
    def takes_pictures(self) -> bool:
        """Whether it prepares pictures itself: uint8 (1, H, W, 3), one at a time."""
        return self.metadata["export"]["input"]["layout"] == "NHWC"

    def __call__(self, images: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Run the model; several outputs are a list, see `run`."""
        outputs = self.run(images)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """All outputs for images.

        A file for batches of one size gets its images in such, the last filled up with zeros.

        Raises:
            UserError: the images are not what the file takes.
        """
        self._check(images)
        batch = self.input_shape[0]
        if not isinstance(batch, int) or len(images) == batch:
            return self._run(images)
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filled = np.zeros((batch, *part.shape[1:]), part.dtype)
            filled[: len(part)] = part
            parts.append([output[: len(part)] for output in self._run(filled)])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        try:
            return self._session.run(None, {self._input.name: images})
        except Exception as error:
            raise UserError(
                f"{self.path} cannot compute images of shape {images.shape}: {_first_line(error)}"
            ) from error

    def _check(self, images: np.ndarray) -> None:
        """Raise a UserError for images that onnxruntime would refuse in words of its own."""
        stated = self.metadata["export"]["input"]
        wanted = self.input_shape
        fits = len(wanted) == images.ndim and all(
            not isinstance(side, int) or side == there
            for side, there in zip(wanted[1:], images.shape[1:], strict=True)
        )
        if not fits or str(images.dtype) != stated["dtype"]:
            shape = ", ".join(map(str, wanted))
            raise UserError(
                f"{self.path} takes {stated['dtype']} images of shape ({shape}), not"
                f" {images.dtype} {images.shape}: export it for that size, or for any"
            )
        sides = images.shape[1:3] if self.takes_pictures else images.shape[2:]
        if min(sides) < stated["minimum_size"]:
            raise UserError(
                f"{self.path} takes images of at least {stated['minimum_size']} pixels on each"
                f" side, not {sides[0]} x {sides[1]}"
            )


def import_onnxruntime() -> ModuleType:
    """onnxruntime, which is optional.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "ONNX files are run by onnxruntime, which is not installed:"
            ' pip install "onnxruntime>=1.20" "numpy<2"'
        ) from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
