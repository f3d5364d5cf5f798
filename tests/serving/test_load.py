"""A hundred clients at once, for a minute."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from servers import Server, started

CLIENTS = 100
SECONDS = 60
# Of what is resident at 10 s and at the end of the minute. One batch of pictures, say.
GROWTH_ALLOWED = 24e6


@pytest.mark.endurance
@pytest.mark.parametrize(
    ("file", "queue"), [("classifier.onnx", 128), ("classifier.ckpt", 128), ("classifier.onnx", 60)]
)
def test_load(models, photographs, tmp_path, file, queue):
    """No answer is lost or wrong, memory is flat, and only a full queue refuses."""
    flag = "--onnx_path" if file.endswith("onnx") else "--ckpt_path"
    pictures = write_pictures(photographs, tmp_path)
    with started(tmp_path, flag, models / file, "--max_queue", queue) as server:
        expected = [
            httpx.post(f"{server.url}/predict", content=content).json() for content in pictures
        ]
        report = asyncio.run(load(server, pictures, expected))
        metrics = httpx.get(f"{server.url}/metrics").text
        assert server.stop() == 143 and server.errors.read_text() == "interrupted\n"
    sizes = re.findall(r"^mindtwins_batch_size_(?:sum|count) (\S+)", metrics, re.MULTILINE)
    print(f"\n{file}, queue {queue}: {json.dumps(report)}, batches {sizes}")
    assert set(report["statuses"]) <= {"200", "503"}
    assert f'mindtwins_requests_total{{status="200"}} {report["statuses"]["200"] + 40}.0' in metrics
    assert "mindtwins_requests_open 0.0" in metrics
    # Each client has one request at a time: a queue with room for all of them is never full.
    assert ("503" in report["statuses"]) == (queue < CLIENTS)
    assert report["wrong"] == 0
    assert report["resident_at_end"] - report["resident_at_10_s"] < GROWTH_ALLOWED


def write_pictures(photographs: list[Image.Image], folder: Path) -> list[bytes]:
    """Forty different JPEG files of 240 x 200 pixels."""
    rng = np.random.default_rng(0)
    contents = []
    for number in range(40):
        left, top = int(rng.integers(0, 400)), int(rng.integers(0, 220))
        path = folder / f"{number}.jpg"
        photographs[number % 2].crop((left, top, left + 240, top + 200)).save(path)
        contents.append(path.read_bytes())
    return contents


async def load(server: Server, pictures: list[bytes], expected: list[dict]) -> dict:
    """What the clients saw, and the resident memory of the server's process in bytes."""
    process = psutil.Process(server.process.pid)
    statuses: Counter[str] = Counter()
    seconds: list[float] = []
    wrong = 0
    begun = time.monotonic()

    async def client(number: int) -> None:
        nonlocal wrong
        rng = np.random.default_rng(number)
        streams = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        while time.monotonic() - begun < SECONDS:
            chosen = int(rng.integers(len(pictures)))
            asked = time.monotonic()
            status, answer = await post(*streams, pictures[chosen])
            statuses[str(status)] += 1
            if status == 200:
                seconds.append(time.monotonic() - asked)
                wrong += not is_same(answer, expected[chosen])
            else:
                await asyncio.sleep(1)  # as Retry-After says
        streams[1].close()

    async def resident_after(wait: float) -> int:
        await asyncio.sleep(wait)
        return process.memory_info().rss

    clients = asyncio.gather(*(client(number) for number in range(CLIENTS)))
    early = await resident_after(10)
    late = await resident_after(SECONDS - 11)
    await clients
    seconds.sort()
    return {
        "statuses": dict(statuses),
        "wrong": wrong,
        "per_second": round(statuses["200"] / SECONDS, 1),
        "median_s": round(seconds[len(seconds) // 2], 3),
        "p99_s": round(seconds[math.ceil(0.99 * len(seconds)) - 1], 3),
        "longest_s": round(seconds[-1], 3),
        "resident_at_10_s": early,
        "resident_at_end": late,
    }


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes
) -> tuple[int, dict]:
    """Status and answer; by hand, because a client library takes more time than the server."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
    headers = dict(line.split(": ", 1) for line in lines if line)
    return int(status.split()[1]), json.loads(
        await reader.readexactly(int(headers["content-length"]))
    )


def is_same(found: dict, expected: dict) -> bool:
    """Whether an answer is that of the picture alone, up to the rounding of a batch."""
    return found["classes"] == expected["classes"] and np.allclose(
        found["probabilities"], expected["probabilities"], rtol=0, atol=1e-5
    )
