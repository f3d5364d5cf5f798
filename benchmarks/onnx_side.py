"""What a process does for onnxruntime and OpenVINO: they run the file that export.py would write.

Another process, with MindSpore, writes it; this one holds no framework for training.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.inputs import ONNXRUNTIME, OPENVINO, Work, batch_of
from benchmarks.timing import Timed
from benchmarks.workers import Worker, mindspore_environment, serve

Run = Callable[[np.ndarray], object]

timed = Timed()
# Started by the first file that is asked of it; it ends with this process.
exporter = Worker("mindspore_side", mindspore_environment())


def build(contestant: str, fields: list) -> dict:
    """Get ready for a `Work` and do it once: what that takes."""
    work = Work(*fields)
    images, _ = batch_of(work)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        exporter.ask("write_onnx", fields=work, path=str(path))

        def make() -> Callable[[], object]:
            run = RUNTIMES[contestant](path, len(os.sched_getaffinity(0)))
            return lambda: run(images)

        return timed.start(make, lambda result: None)._asdict()


def _onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (port.name for port in session.get_inputs())
    return lambda images: session.run(None, {name: images})


def _openvino(path: Path, threads: int) -> Run:
    import openvino

    how = {
        "INFERENCE_PRECISION_HINT": "f32",  # it would compute in bfloat16 by itself
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", how)
    request = compiled.create_infer_request()
    return lambda images: request.infer([images])


RUNTIMES: dict[str, Callable[[Path, int], Run]] = {
    ONNXRUNTIME: _onnxruntime,
    OPENVINO: _openvino,
}


if __name__ == "__main__":
    serve(build, timed.turn)
