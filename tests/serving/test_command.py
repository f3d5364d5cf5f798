"""serve.py: mistakes, and its beginning and end as a process."""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image
from servers import started

from mindtwins.commands import serve
from mindtwins.config import ServeConfig, parse_config
from mindtwins.errors import UserError
from mindtwins.serving.server import listen, url_of

PATIENCE = 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ckpt_path is missing: say which model with --ckpt_path or --pretrained, or"),
        (["--ckpt_path", "none.ckpt"], "none.ckpt does not exist"),
        (["--onnx_path", "none.onnx"], "none.onnx does not exist"),
        (["--ckpt_path", "{}/classifier.onnx"], "cannot load .*classifier.onnx"),
        (["--onnx_path", "{}/classifier.ckpt"], "classifier.ckpt was not exported by MindTwins"),
        (
            ["--ckpt_path", "{}/classifier.ckpt", "--onnx_path", "{}/classifier.onnx"],
            "contradict each other",
        ),
        (["--onnx_path", "x.onnx", "--host", "no such host"], "host 'no such host' is no address"),
        (["--onnx_path", "x.onnx", "--host", "192.0.2.1"], "cannot listen at port 0 of 192.0.2.1"),
        (["--onnx_path", "x.onnx", "--port", "65536"], "--port must be at most 65535, not 65536"),
        (["--onnx_path", "x.onnx", "--max_batch", "0"], "--max_batch must be at least 1, not 0"),
        (["--onnx_path", "x.onnx", "--max_uploads", "1"], "did you mean '--max_upload_mb'"),
        (["--onnx_path", "x.onnx", "--images", "a.jpg"], "unknown flag '--images'"),
    ],
)
def test_mistakes(words, message, models):
    port = [] if "--port" in words else ["--port", "0"]
    with pytest.raises(UserError, match=message):
        serve.main([*port, *(word.format(models) for word in words)])


def test_a_port_in_use(models):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        message = f"port {port} of 127.0.0.1 is in use: stop what listens there, or give another"
        with pytest.raises(UserError, match=message):
            serve.main(["--onnx_path", str(models / "classifier.onnx"), "--port", str(port)])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
def test_addresses(host):
    with listen(host, 0) as listener:
        url = url_of(listener)
        port = listener.getsockname()[1]
        shown = {"localhost": "127.0.0.1", "::1": "[::1]"}.get(host, host)
        assert url in (f"http://{shown}:{port}", f"http://[::1]:{port}")


def test_without_the_packages(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "mindtwins.serving.app", None)
    monkeypatch.delattr("mindtwins.serving.app", raising=False)
    with pytest.raises(UserError, match="pip install fastapi uvicorn python-multipart prometheus"):
        serve.main(["--onnx_path", str(models / "classifier.onnx")])


def test_a_server_s_pixels_have_a_limit_of_their_own():
    config = parse_config(ServeConfig, ["--onnx_path", "x.onnx"], "")
    assert config.max_pixels == 50_000_000 and config.top_k == 5
    assert parse_config(ServeConfig, ["--max_pixels", "7"], "").max_pixels == 7


def test_a_model_that_cannot_be_built_ends_the_server(models):
    """As one sentence, although it comes from another thread."""
    words = ["--ckpt_path", str(models / "classifier.ckpt"), "--num_classes", "7", "--port", "0"]
    with pytest.raises(UserError, match=r"classifier\.ckpt is a checkpoint of num_classes 10"):
        serve.main(words)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_accepted_is_answered_at_the_end(models, tmp_path, number):
    """Requests wait for others to come, and a signal comes instead."""
    picture = tmp_path / "x.png"
    Image.effect_noise((80, 70), 50).save(picture)
    words = ("--onnx_path", models / "classifier.onnx", "--max_batch", 64, "--max_wait_ms", 3000)
    with started(tmp_path, *words) as server:
        post = {
            "url": f"{server.url}/predict",
            "content": picture.read_bytes(),
            "timeout": PATIENCE,
        }
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(httpx.post, **post) for _ in range(20)]
            while "mindtwins_requests_open 20.0" not in httpx.get(f"{server.url}/metrics").text:
                time.sleep(0.02)
            assert server.stop(number) == 128 + number
            answers = [future.result() for future in waiting]
        assert [answer.status_code for answer in answers] == [200] * 20
        assert len({answer.text for answer in answers}) == 1
        assert server.errors.read_text() == "interrupted\n"
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)


@pytest.mark.slow
def test_a_second_signal_waits_for_nothing(models, tmp_path):
    picture = tmp_path / "x.png"
    Image.effect_noise((80, 70), 50).save(picture)
    words = ("--onnx_path", models / "classifier.onnx", "--max_wait_ms", 1000 * PATIENCE)
    with started(tmp_path, *words) as server, ThreadPoolExecutor(1) as pool:
        post = {"url": f"{server.url}/predict", "content": picture.read_bytes()}
        waiting = pool.submit(httpx.post, **post, timeout=PATIENCE)
        while "mindtwins_queue_depth 1.0" not in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        # It has heard of the first when it takes no more connections.
        with pytest.raises(httpx.ConnectError):
            while True:
                httpx.get(f"{server.url}/healthz")
        assert server.process.poll() is None
        begun = time.monotonic()
        assert server.stop(signal.SIGINT) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < PATIENCE / 2
        assert server.errors.read_text() == "interrupted\n"
        with pytest.raises(httpx.HTTPError):
            waiting.result()
