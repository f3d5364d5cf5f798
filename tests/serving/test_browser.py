"""The page in a real browser, before a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from servers import Server, started

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PATIENCE = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with its driver"),
]

# A file that falls on an element, as the browser's own events tell of it.
DROP = """
const [target, input] = arguments;
const transfer = new DataTransfer();
for (const file of input.files) transfer.items.add(file);
for (const kind of ["dragover", "drop"])
  target.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true}));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800"),
        *(f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def classifier(models, tmp_path_factory) -> Iterator[Server]:
    words = ("--onnx_path", models / "classifier.onnx", "--top_k", 3, "--max_upload_mb", 0.5)
    with started(tmp_path_factory.mktemp("classifier"), *words) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(photographs, tmp_path_factory) -> Path:
    """Of a photograph, as china.jpg and flower.png, and a text that is called a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    photographs[0].save(folder / "china.jpg")
    photographs[1].resize((320, 214)).save(folder / "flower.png")
    (folder / "notes.jpg").write_text("no picture")
    Image.effect_noise((900, 900), 90).save(folder / "large.png")
    return folder


def choose(browser: webdriver.Chrome, path: Path) -> None:
    browser.find_element(By.ID, "file").send_keys(str(path))


def status(browser: webdriver.Chrome, beginning: str) -> str:
    """What the page says, as soon as it begins so."""
    line = browser.find_element(By.ID, "status")
    WebDriverWait(browser, PATIENCE).until(lambda _: line.text.startswith(beginning), line.text)
    return line.text


def rows(browser: webdriver.Chrome) -> list[list[str]]:
    """The texts of the rows, and the widths of their bars."""
    found = browser.find_elements(By.CSS_SELECTOR, "#classes li")
    return [
        [span.text for span in row.find_elements(By.TAG_NAME, "span")]
        + [row.find_element(By.CLASS_NAME, "bar").get_attribute("style")]
        for row in found
    ]


def is_loaded(browser: webdriver.Chrome) -> bool:
    """Whether the picture of the page is there and decoded."""
    picture = browser.find_element(By.ID, "picture")
    script = "return arguments[0].complete && arguments[0].naturalWidth > 0"
    WebDriverWait(browser, PATIENCE).until(lambda _: browser.execute_script(script, picture))
    return picture.is_displayed()


def expected_rows(url: str, path: Path) -> list[tuple[str, str, float]]:
    answer = httpx.post(f"{url}/predict", content=path.read_bytes()).json()
    parts = answer.get("shares") or dict(zip(answer["names"], answer["probabilities"], strict=True))
    return [(name, f"{100 * part:.1f} %", 100 * part) for name, part in parts.items()]


def check_rows(browser: webdriver.Chrome, url: str, path: Path) -> None:
    expected = expected_rows(url, path)
    found = rows(browser)
    assert [tuple(row[:2]) for row in found] == [row[:2] for row in expected]
    for row, (_, _, percent) in zip(found, expected, strict=True):
        width = row[2].removeprefix("width: ").removesuffix("%;")
        assert float(width) == pytest.approx(percent, abs=1e-3)


def test_classes_are_bars(browser, classifier, pictures):
    browser.get(classifier.url)
    WebDriverWait(browser, PATIENCE).until(
        lambda _: browser.find_element(By.ID, "model").text == "svt_tiny"
    )
    choose(browser, pictures / "china.jpg")
    assert status(browser, "china.jpg: ").endswith(" ms")
    assert is_loaded(browser)
    check_rows(browser, classifier.url, pictures / "china.jpg")
    assert len(rows(browser)) == 3
    # Another one, which is dropped: the field only holds it, and what it tells of that is lost.
    field = browser.find_element(By.ID, "file")
    browser.execute_script(
        "arguments[0].addEventListener('change', e => e.stopImmediatePropagation(), "
        "{capture: true, once: true})",
        browser.find_element(By.TAG_NAME, "body"),
    )
    choose(browser, pictures / "flower.png")
    assert field.get_property("files") and status(browser, "china.jpg: ")
    browser.execute_script(DROP, browser.find_element(By.ID, "drop"), field)
    status(browser, "flower.png: ")
    assert is_loaded(browser)
    check_rows(browser, classifier.url, pictures / "flower.png")
    assert browser.get_log("browser") == []


def test_refusals_are_told_in_words(browser, classifier, pictures):
    browser.get(classifier.url)
    choose(browser, pictures / "notes.jpg")
    line = status(browser, "No answer for notes.jpg: this is no picture that can be read here")
    assert line.endswith(".")
    assert not browser.find_element(By.ID, "found").is_displayed()
    assert "wrong" in browser.find_element(By.ID, "status").get_attribute("class")
    choose(browser, pictures / "large.png")
    status(browser, "No answer for large.png: the request is larger than 0.5 MB.")
    choose(browser, pictures / "china.jpg")
    status(browser, "china.jpg: ")
    assert browser.find_element(By.ID, "found").is_displayed()


def test_a_name_is_never_code(browser, classifier, pictures):
    name = "<img src=x onerror=document.title='broken'>.jpg"
    path = pictures / name
    path.write_bytes((pictures / "china.jpg").read_bytes())
    browser.get(classifier.url)
    choose(browser, path)
    assert status(browser, name)
    assert browser.title == "MindTwins"


def test_an_overlay(browser, models, pictures, tmp_path):
    """Of classes with numbers for names, which have an order of their own in JavaScript."""
    (tmp_path / "names.txt").write_text("tree\n" + "".join(f"{i}\n" for i in range(10)))
    words = ("--onnx_path", models / "segmentor.onnx", "--class_names", tmp_path / "names.txt")
    with started(tmp_path, *words) as server:
        browser.get(server.url)
        choose(browser, pictures / "flower.png")
        status(browser, "flower.png: ")
        assert is_loaded(browser)
        check_rows(browser, server.url, pictures / "flower.png")
        names = [name for name, *_ in expected_rows(server.url, pictures / "flower.png")]
        assert names != sorted(names)
        picture = browser.find_element(By.ID, "picture")
        assert picture.get_attribute("alt") == "the classes over flower.png"
        # The legend is on its right.
        assert int(picture.get_property("naturalWidth")) > 320
        assert server.stop() == 143
    choose(browser, pictures / "china.jpg")
    status(browser, "The server did not answer: is it still running?")
