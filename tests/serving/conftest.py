"""Small models, and servers of them on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from mindtwins.checkpoint import save_checkpoint
from mindtwins.commands import export
from mindtwins.config import InferConfig
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.export.onnx_file import to_bytes
from mindtwins.export.to_onnx import build_onnx
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize
from mindtwins.serving.server import listen, url_of
from mindtwins.tasks import KINDS, create_task
from mindtwins.training.distributed import World

NAMES = tuple("abcdefghij")


@pytest.fixture(autouse=True)
def same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's limit of pixels ends with its test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """classifier.ckpt, of ten named classes and 64 x 64 pixels, segmentor.ckpt, and their .onnx."""
    folder = tmp_path_factory.mktemp("models")
    reference = randomize(create_reference("svt_tiny", num_classes=10))
    torch.save(reference.state_dict(), folder / "classifier.pth")
    conversion = from_torch(read_source(folder / "classifier.pth"), KINDS)
    conversion.metadata["classes"] = NAMES
    conversion.metadata["preprocessing"] |= {"image_size": 64}
    save_checkpoint(folder / "classifier.ckpt", conversion.tensors, conversion.metadata)
    config = InferConfig(
        task="segmentation", model="fpn_svt_tiny", num_classes=11, resize_scale=(128, 64)
    )
    model, metadata = create_task(config).build_model(World())
    tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
    save_checkpoint(folder / "segmentor.ckpt", tensors, metadata)
    for name in ("classifier", "segmentor"):
        order = export.create_order(folder / f"{name}.ckpt")
        content = to_bytes(*build_onnx(order, order.create().dialect))
        (folder / f"{name}.onnx").write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def running() -> Callable:
    """A context in which an application is served; gives a client of it."""
    return _running


@contextmanager
def _running(app: FastAPI, is_ready: bool = True) -> Iterator[httpx.Client]:
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=url_of(listener), timeout=120) as client:
            while is_ready and client.get("/readyz").status_code != 200:
                time.sleep(0.02)
            yield client
    finally:
        server.should_exit = True
        thread.join()
