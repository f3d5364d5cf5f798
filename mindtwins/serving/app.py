"""The web application: predictions, health, metrics, and a page to try it."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from mindtwins.console import tell
from mindtwins.errors import UserError
from mindtwins.serving.batching import Admission, Batcher, QueueFull, Stopped
from mindtwins.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from mindtwins.serving.service import Prepared, Service, TooSmall
from mindtwins.serving.uploads import FIELD, ClientGone, Refusal, decode, read_picture_file

Found = TypeVar("Found")

logger = logging.getLogger("mindtwins.serving")

# What goes with a status.
HEADERS = {
    503: {"Retry-After": "1"},  # seconds
    # Or the rest of the request would be read.
    413: {"Connection": "close"},
    504: {"Connection": "close"},
}
# What an answer is counted as that nobody waited for; nginx's number.
CLIENT_GONE = 499
READ = ["GET", "HEAD"]

# The page is one file: nothing of it comes from elsewhere, and nothing goes elsewhere.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
# What /predict takes, for /openapi.json: the body is read by hand, within its limit.
REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        queue: requests without an answer.
        upload: bytes of a request.
        pixels: of a picture.
        seconds: that a request may take.
    """

    queue: int
    upload: int
    pixels: int
    seconds: float


def create_app(
    service: Service,
    batcher: Batcher[Prepared, np.ndarray],
    metrics: Metrics,
    limits: Limits,
    *,
    model: str,
    workers: int,
    exif_orientation: bool = False,
) -> FastAPI:
    """The application; its start starts the batcher, and its end waits for the batcher's.

    Args:
        model: its name, for people.
        workers: threads that decode and draw.
        exif_orientation: turn pictures upright.
    """
    admission = Admission(limits.queue)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    page = files("mindtwins.serving").joinpath("page.html").read_text(encoding="utf-8")
    metrics.gauge("requests_open", "requests without an answer", lambda: admission.taken)
    metrics.gauge("queue_depth", "pictures that wait for the model", lambda: batcher.depth)
    metrics.gauge("ready", "1 when the model is compiled", lambda: batcher.is_ready)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.run()
        yield
        batcher.close()
        pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="MindTwins", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/predict", openapi_extra=REQUEST_BODY)
    async def predict(request: Request, output: str = "json") -> Response:
        """What the model finds in the picture that is the body, or the form's field `image`."""
        begun = time.perf_counter()
        response = await _admitted(request, output)
        metrics.requests.labels(response.status_code).inc()
        metrics.seconds.observe(time.perf_counter() - begun)
        return response

    async def _admitted(request: Request, output: str) -> Response:
        """The answer to a request, or why it gets none."""
        try:
            if output not in ("json", *service.pictures):
                known = ", ".join(("json", *service.pictures))
                raise Refusal(400, f"output is {output!r}, but must be one of {known}")
            if not batcher.is_ready:
                raise Refusal(503, "the model is being compiled")
            with admission:
                return await asyncio.wait_for(_answered(request, output), limits.seconds)
        except Refusal as refusal:
            return _error(refusal.status, refusal.message)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)  # which nobody gets
        except (QueueFull, Stopped):
            return _error(503, f"{limits.queue} requests wait already")
        except asyncio.TimeoutError:
            return _error(504, f"there was no answer within {limits.seconds:g} seconds")
        except Exception:  # a mistake of ours; uvicorn would close the connection over it
            logger.exception("a prediction failed")
            return _error(500, "the server failed, as its log describes")

    async def _answered(request: Request, output: str) -> Response:
        content = await read_picture_file(request, limits.upload)
        return await _unless_gone(request, _predicted(content, output))

    async def _predicted(content: bytes, output: str) -> Response:
        loop = asyncio.get_running_loop()
        read = partial(decode, content, limits.pixels, exif_orientation)
        prepared = await loop.run_in_executor(pool, _prepare, read)
        try:
            result = await asyncio.wrap_future(batcher.submit(prepared, prepared.kind))
        except UserError as error:
            tell(str(error))  # it may name files of this machine
            raise Refusal(422, "the model does not take a picture of this shape") from error
        return await loop.run_in_executor(pool, _respond, result, read, output)

    def _prepare(read: Callable[[], Any]) -> Prepared:
        try:
            return service.prepare(read())
        except TooSmall as error:
            raise Refusal(422, str(error)) from error

    def _respond(result: np.ndarray, read: Callable[[], Any], output: str) -> Response:
        answer = service.answer(result, read)
        if output != "json":
            return Response(answer.pictures[output](), media_type="image/png")
        pictures = {
            name: base64.b64encode(draw()).decode() for name, draw in answer.pictures.items()
        }
        return JSONResponse({**answer.values, **pictures})

    @app.api_route("/", methods=READ, include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.api_route("/healthz", methods=READ, include_in_schema=False)
    async def alive() -> dict:
        return {"alive": True}

    @app.api_route("/readyz", methods=READ, include_in_schema=False)
    async def ready() -> Response:
        is_ready = batcher.is_ready
        content = {"ready": is_ready, "model": model, "outputs": ["json", *service.pictures]}
        return JSONResponse(content, 200 if is_ready else 503)

    @app.api_route("/metrics", methods=READ, include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def no_such(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        refused = f"{path} takes no {request.method}" if error.status_code == 405 else f"no {path}"
        return _error(error.status_code, f"{refused}: POST a picture to /predict", error.headers)

    return app


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    headers = {**(headers or {}), **HEADERS.get(status, {})}
    return JSONResponse({"error": message}, status, headers)


async def _unless_gone(request: Request, work: Awaitable[Found]) -> Found:
    """The work's result; the work is cancelled when the client goes away.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client of a request that was read has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
