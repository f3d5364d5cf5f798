"""Answer predictions over HTTP, with a checkpoint or an exported ONNX file.

    mindtwins serve --ckpt_path svt_small.ckpt
    curl --data-binary @photograph.jpg http://127.0.0.1:8000/predict

The model's own task, classes and preprocessing are taken, as by `mindtwins infer`. A browser shows
a page at the address that is printed. Ctrl-C ends it when all that is accepted is answered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mindtwins.config import ServeConfig, parse_config
from mindtwins.console import tell
from mindtwins.data.decode import limit_pixels
from mindtwins.errors import UserError
from mindtwins.execution import Model, use_device
from mindtwins.serving.batching import Batcher, batch_sizes
from mindtwins.serving.service import Compiled, Prepared, Service
from mindtwins.tasks import SERVICES, create_task, exported_task, of_task
from mindtwins.training.distributed import World

if TYPE_CHECKING:
    from fastapi import FastAPI

Compute = Callable[[Sequence[Prepared]], list[np.ndarray]]


def main(argv: list[str]) -> None:
    config = parse_config(ServeConfig, argv, __doc__)
    if not (config.weights or config.onnx_path):
        raise UserError(
            "ckpt_path is missing: say which model with --ckpt_path or --pretrained, or --onnx_path"
            " for an export"
        )
    _, _, server = import_serving()
    listener = server.listen(config.host, config.port)
    application, batcher, model = create_application(config)
    server.serve(
        application, listener, batcher.started, f"{model} is ready at {server.url_of(listener)}"
    )


def create_application(config: ServeConfig) -> tuple[FastAPI, Batcher[Prepared, np.ndarray], str]:
    """The web application of a configuration, what computes for it, and the model's name.

    The checkpoint or export is read here; a model is built and compiled by the batcher's thread.

    Raises:
        UserError: a package is missing, or the model's file does not fit.
    """
    app, metrics, _ = import_serving()
    limit_pixels(config.max_pixels)
    exported: Model | None = None
    if config.onnx_path:
        task, exported = exported_task(config)
    else:
        task = create_task(config)
    service = of_task(SERVICES, task.config.task, "served")(task)
    numbers = metrics.Metrics()

    def start() -> Compute:
        """Build and compile, in the thread that computes from then on."""
        use_device(config.device_target, config.allow_tf32)
        model = exported if exported is not None else task.build_model(World())[0]
        compute = partial(service.compute, Compiled(model))
        warm_up(service, compute, config.max_batch)
        return compute

    # Else a graph would be compiled for each shape and each size of a batch.
    is_alone = exported is None and service.example() is None
    if is_alone:
        tell(
            "the first picture of each shape waits for a compilation; a file of mindtwins"
            " export, given with --onnx_path, needs none"
        )
    batcher: Batcher[Prepared, np.ndarray] = Batcher(
        start,
        max_batch=1 if is_alone else config.max_batch,
        max_wait=config.max_wait_ms / 1000,
        observe=numbers.batch_size.observe,
    )
    application = app.create_app(
        service,
        batcher,
        numbers,
        app.Limits(
            config.max_queue, int(config.max_upload_mb * 1e6), config.max_pixels, config.timeout_s
        ),
        model=task.config.model,
        workers=min(config.num_parallel_workers, os.cpu_count() or 1),
        exif_orientation=task.config.exif_orientation,
    )
    return application, batcher, task.config.model


def import_serving() -> tuple[ModuleType, ModuleType, ModuleType]:
    """`mindtwins.serving`'s app, metrics and server, whose packages are optional.

    Raises:
        UserError: one of these is not installed.
    """
    try:
        from mindtwins.serving import app, metrics, server
    except ImportError as error:
        raise UserError(
            f"the server needs {error.name}, which is not installed:"
            " pip install fastapi uvicorn python-multipart prometheus-client"
        ) from error
    return app, metrics, server


def warm_up(service: Service, compute: Compute, max_batch: int) -> None:
    """Compute every size of a batch once: a graph is compiled for each.

    Nothing is done where pictures have various shapes.
    """
    example = service.example()
    if example is not None:
        for size in batch_sizes(max_batch):
            compute([example] * size)
