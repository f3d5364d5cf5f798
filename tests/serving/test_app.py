"""Limits, refusals and numbers of the web application, with a model that waits to be told."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import httpx
import numpy as np
import pytest
from PIL import Image

from mindtwins.data.decode import limit_pixels
from mindtwins.errors import UserError
from mindtwins.serving.app import Limits, create_app
from mindtwins.serving.batching import Batcher
from mindtwins.serving.metrics import Metrics
from mindtwins.serving.service import Answer, Prepared, TooSmall

PATIENCE = 30
LIMITS = Limits(queue=8, upload=100_000, pixels=1_000_000, seconds=PATIENCE)


@dataclass
class Stub:
    """Tells the level of a gray picture; computes when `may_go` is set."""

    pictures: ClassVar = ("labels",)
    may_go: threading.Event = field(default_factory=threading.Event)
    is_busy: threading.Event = field(default_factory=threading.Event)
    computed: list[int] = field(default_factory=list)

    def prepare(self, picture: Image.Image) -> Prepared:
        if picture.width < 4:
            raise TooSmall("4 pixels are needed")
        return Prepared((np.asarray(picture, np.float32),))

    def compute(self, batch: list[Prepared]) -> list[np.ndarray]:
        self.is_busy.set()
        assert self.may_go.wait(PATIENCE)
        levels = [int(prepared.arrays[0].max()) for prepared in batch]
        self.computed += levels
        if 13 in levels:
            raise ZeroDivisionError("thirteen")
        if 14 in levels:
            raise UserError("/secret/model.onnx takes no such picture")
        return [np.array(level) for level in levels]

    def answer(self, result: np.ndarray, read: Callable[[], Image.Image]) -> Answer:
        level = int(result)
        return Answer({"level": level}, {"labels": lambda: b"PNG %d %d" % (level, read().width)})


@pytest.fixture
def stub() -> Stub:
    stub = Stub()
    stub.may_go.set()
    return stub


@pytest.fixture
def serve(stub: Stub, running: Callable) -> Callable:
    """Serve the stub within some limits."""

    def serve(limits: Limits = LIMITS, start: Callable | None = None, **how):
        limit_pixels(limits.pixels)
        metrics = Metrics()
        batcher = Batcher(
            start or (lambda: stub.compute),
            max_batch=4,
            max_wait=0,
            observe=metrics.batch_size.observe,
        )
        return running(
            create_app(stub, batcher, metrics, limits, model="stub", workers=2, **how),
            is_ready=start is None,
        )

    return serve


@pytest.fixture
def client(serve: Callable) -> Iterator[httpx.Client]:
    with serve() as client:
        yield client


def picture(level: int = 7, size: tuple[int, int] = (8, 8), form: str = "png", **how) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(stream, format=form, **how)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it has so many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def numbers(client: httpx.Client) -> dict[str, float]:
    """The metrics by name and labels."""
    lines = client.get("/metrics").text.splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def error(response: httpx.Response, status: int) -> str:
    """The message of a refusal, which is one sentence in JSON."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert set(content) == {"error"}
    assert "\n" not in content["error"] and content["error"]
    return content["error"]


def test_a_picture_as_body_and_in_a_form(client):
    assert client.post("/predict", content=picture(9)).json()["level"] == 9
    files = {"image": ("x.png", picture(200), "image/png")}
    assert client.post("/predict", files=files).json()["level"] == 200
    # curl's --data-binary says that it is a form of another kind.
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/predict", content=picture(3), headers=headers).json()["level"] == 3


def test_pictures_of_an_answer(client):
    answer = client.post("/predict", content=picture(9)).json()
    assert answer == {"level": 9, "labels": "UE5HIDkgOA=="}  # base64 of what follows
    response = client.post("/predict?output=labels", content=picture(9))
    assert response.content == b"PNG 9 8" and response.headers["content-type"] == "image/png"
    message = error(client.post("/predict?output=overlay", content=picture(9)), 400)
    assert message == "output is 'overlay', but must be one of json, labels"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "there is no picture: send one as the body, or as form field image"),
        (b"hello", 415, "this is no picture that can be read here (.*BMP.*WEBP)"),
        (picture(form="jpeg", size=(300, 300))[:900], 415, "the picture is damaged (.*)"),
        (picture(size=(300, 300))[:-40], 415, "the picture is damaged (.*)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "this is no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "this is no picture"),
        (bomb(20_000, 20_000), 413, "the picture has more than 1000000 pixels"),
        (bomb(1001, 1000), 413, "the picture has more than 1000000 pixels"),
        (b"\0" * 100_001, 413, "the request is larger than 0.1 MB"),
        (picture(size=(3, 3)), 422, "4 pixels are needed"),
        (picture(14), 422, "the model does not take a picture of this shape"),
        (picture(13), 500, "the server failed, as its log describes"),
    ],
)
def test_refusals(client, content, status, message):
    found = error(client.post("/predict", content=content), status)
    assert re.match(message.replace("(", r"\(").replace(")", r"\)"), found), found
    # Whatever it was, the server goes on.
    assert client.post("/predict", content=picture(5)).json()["level"] == 5


def test_a_picture_of_as_many_pixels_as_allowed(client):
    assert client.post("/predict", content=picture(6, (1000, 1000))).json()["level"] == 6


def test_an_upload_without_length_is_cut_off(client):
    """The limit holds for what comes, too: most of this is never sent."""
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100_000):
            sent += 10_000
            yield b"x" * 10_000

    try:
        message = error(client.post("/predict", content=chunks()), 413)
        assert message == "the request is larger than 0.1 MB"
    except httpx.WriteError:  # the connection was closed before it was read
        pass
    assert sent < 100_000_000
    assert numbers(client)['mindtwins_requests_total{status="413"}'] == 1


@pytest.mark.parametrize(
    "head", [b"Content-Length: 500001", b"Content-Length: 100001\r\nExpect: 100-continue"]
)
def test_a_stated_length_is_refused_before_it_comes(client, head):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as stream:
        stream.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        stream.settimeout(PATIENCE)
        assert b" 413 " in stream.recv(1000)


@pytest.mark.parametrize(
    ("form", "content_type", "message"),
    [
        (b"", "multipart/form-data", "the form cannot be read"),
        (b"nonsense", "multipart/form-data; boundary=x", "the form cannot be read"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "there is no picture"),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            "there is no picture",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nA\r\n'
            b"--x--\r\n",
            "multipart/form-data; boundary=x",
            "there is no picture",
        ),
    ],
)
def test_forms_without_a_picture(client, form, content_type, message):
    response = client.post("/predict", content=form, headers={"Content-Type": content_type})
    assert error(response, 400).startswith(message)


def test_names_in_a_form_do_not_matter(client):
    for name in ("x" * 3000, "../../etc/passwd", "", "海.png", "%2e%2e%2f"):
        files = {"image": (name, picture(4), "text/html")}
        response = client.post("/predict", files=files)
        # A part without a name is no file.
        assert response.status_code == (200 if name else 400), name
    files = {"image": ("x" * 90_000, picture(4), "image/png")}
    assert "form cannot be read" in error(client.post("/predict", files=files), 400)


def test_paths_and_methods(client):
    assert error(client.get("/nothing"), 404) == "no /nothing: POST a picture to /predict"
    assert "/predict takes no GET" in error(client.get("/predict"), 405)
    assert client.get("/predict").headers["allow"] == "POST"
    assert "/ takes no POST" in error(client.post("/", content=b"x"), 405)
    for path in ("/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.html", "/docs", "/%00"):
        assert client.get(path).status_code == 404, path
    for path in ("/", "/healthz", "/readyz", "/metrics"):
        answer, head = client.get(path), client.head(path)
        assert answer.status_code == head.status_code == 200
        assert head.content == b"" and answer.content


def test_the_page_needs_nothing_from_elsewhere(client):
    """And works below any path: what it asks for is beside it."""
    response = client.get("/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http" not in response.text
    assert re.findall(r'fetch\("([^"]+)"', response.text) == ["predict", "readyz"]
    assert "access-control-allow-origin" not in response.headers


def test_the_schema_says_what_is_taken(client):
    schema = client.get("/openapi.json").json()
    assert list(schema["paths"]) == ["/predict"]
    content = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"image/*", "multipart/form-data"}


def test_connections_are_kept(client):
    """Also after a refusal whose body was read; a client sends many pictures over one."""
    stream = socket.create_connection((client.base_url.host, client.base_url.port))
    with stream, stream.makefile("rb") as answers:
        stream.settimeout(PATIENCE)
        for body in (picture(1), b"no picture", picture(2)):
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            stream.sendall(head.encode() + body)
            status = answers.readline()
            length = 0
            while (line := answers.readline().lower()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            answer = json.loads(answers.read(length))
            assert (b"200" in status) == ("level" in answer)


def test_a_full_queue_refuses_and_says_when_to_come_again(client, stub):
    stub.may_go.clear()
    with ThreadPoolExecutor(LIMITS.queue) as pool:
        accepted = [
            pool.submit(client.post, "/predict", content=picture(level))
            for level in range(20, 20 + LIMITS.queue)
        ]
        wait_until(lambda: numbers(client)["mindtwins_requests_open"] == LIMITS.queue)
        refused = client.post("/predict", content=picture(1))
        assert error(refused, 503) == "8 requests wait already"
        assert refused.headers["retry-after"] == "1"
        # Who only asks how it is gets an answer all the while.
        assert client.get("/healthz").json() == {"alive": True}
        stub.may_go.set()
        levels = [future.result().json()["level"] for future in accepted]
    assert levels == list(range(20, 20 + LIMITS.queue))
    assert client.post("/predict", content=picture(1)).status_code == 200


def test_a_model_that_is_not_ready_refuses(serve, stub):
    compiled = threading.Event()

    def start():
        assert compiled.wait(PATIENCE)
        return stub.compute

    with serve(start=start) as client:
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
        assert response.status_code == 503 and response.json()["ready"] is False
        refused = client.post("/predict", content=picture(1))
        assert error(refused, 503) == "the model is being compiled"
        assert refused.headers["retry-after"] == "1"
        compiled.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json()["model"] == "stub"
        assert client.post("/predict", content=picture(1)).status_code == 200


def test_a_request_has_an_end(serve, stub):
    """And what waits for the model is not computed for nobody."""
    stub.may_go.clear()
    with serve(Limits(8, 100_000, 1_000_000, seconds=0.5)) as client:
        with ThreadPoolExecutor(2) as pool:
            begun = pool.submit(client.post, "/predict", content=picture(20))
            assert stub.is_busy.wait(PATIENCE)
            waiting = pool.submit(client.post, "/predict", content=picture(21))
            for future in (begun, waiting):
                message = error(future.result(), 504)
                assert message == "there was no answer within 0.5 seconds"
        stub.may_go.set()
        assert client.post("/predict", content=picture(22)).json()["level"] == 22
    assert stub.computed == [20, 22]


def test_slow_uploads_hold_nobody_up(serve):
    with serve(Limits(4, 100_000, 1_000_000, seconds=2)) as client:
        place = (client.base_url.host, client.base_url.port)
        slow = [socket.create_connection(place) for _ in range(3)]
        for stream in slow:
            stream.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nabc")
        wait_until(lambda: numbers(client)["mindtwins_requests_open"] == 3)
        for level in range(10):
            assert client.post("/predict", content=picture(level)).json()["level"] == level
        for stream in slow:
            stream.settimeout(PATIENCE)
            with stream, stream.makefile("rb") as answer:
                assert b" 504 " in answer.read()  # to the end of the connection
        wait_until(lambda: numbers(client)["mindtwins_requests_open"] == 0)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_client_that_goes_away_is_forgotten(client, stub, part):
    """While it uploads, or while it waits for the model."""
    stub.may_go.clear()
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(client.post, "/predict", content=picture(20))
        assert stub.is_busy.wait(PATIENCE)
        body = picture(99)
        with socket.create_connection((client.base_url.host, client.base_url.port)) as stream:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            stream.sendall(head.encode() + body[: int(part * len(body))])
            wait_until(lambda: numbers(client)["mindtwins_requests_open"] == 2)
            if part == 1:
                wait_until(lambda: numbers(client)["mindtwins_queue_depth"] == 1)
        wait_until(lambda: numbers(client)["mindtwins_requests_open"] == 1)
        stub.may_go.set()
        assert begun.result().json()["level"] == 20
    assert client.post("/predict", content=picture(21)).json()["level"] == 21
    assert stub.computed == [20, 21]
    assert numbers(client)['mindtwins_requests_total{status="499"}'] == 1


def test_the_numbers_add_up(client):
    with ThreadPoolExecutor(8) as pool:
        contents = [picture(level) if level % 4 else b"no picture" for level in range(20, 60)]
        found = list(pool.map(lambda content: client.post("/predict", content=content), contents))
    client.get("/nothing")
    there = numbers(client)
    statuses = [response.status_code for response in found]
    assert there['mindtwins_requests_total{status="200"}'] == statuses.count(200)
    assert there['mindtwins_requests_total{status="415"}'] == 10
    assert there.get('mindtwins_requests_total{status="503"}', 0) == statuses.count(503)
    assert there["mindtwins_request_seconds_count"] == 40
    assert there["mindtwins_batch_size_sum"] == statuses.count(200)
    assert there["mindtwins_requests_open"] == there["mindtwins_queue_depth"] == 0
    assert there["mindtwins_ready"] == 1
    assert there["process_resident_memory_bytes"] > 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *(("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png")),
        *(("I;16", "png"), ("CMYK", "jpeg"), ("L", "jpeg"), ("P", "gif"), ("RGB", "webp")),
        *(("RGB", "bmp"), ("F", "tiff"), ("RGB", "ppm"), ("YCbCr", "jpeg"), ("RGB", "jpeg2000")),
    ],
)
def test_pictures_of_all_kinds(client, mode, form):
    """Black, whatever way that is written."""
    stream = io.BytesIO()
    black = Image.new("RGB", (8, 8))
    black = black.convert(mode) if mode in ("CMYK", "YCbCr") else Image.new(mode, (8, 8))
    black.save(stream, format=form)
    response = client.post("/predict", content=stream.getvalue())
    assert response.status_code == 200 and response.json()["level"] == 0


def test_of_a_moving_picture_the_first_frame_counts(client):
    frames = [Image.new("L", (8, 8), level) for level in (30, 60, 90)]
    stream = io.BytesIO()
    frames[0].save(stream, format="gif", save_all=True, append_images=frames[1:])
    assert client.post("/predict", content=stream.getvalue()).json()["level"] == 30


@pytest.mark.parametrize(("upright", "width"), [(False, 16), (True, 8)])
def test_orientation_as_the_checkpoint_has_it(serve, upright, width):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = picture(9, (16, 8), "jpeg", exif=exif)
    with serve(exif_orientation=upright) as client:
        answer = client.post("/predict?output=labels", content=content)
    assert answer.content == b"PNG 9 %d" % width
