"""The page in a real browser, Debian's chromium and chromium-driver: upload, ask, see, download, and what is refused.

With a trained checkpoint and a clip, the first test also takes the pictures in docs/; they were made by

    export DEMO_CHECKPOINT=lbdt_jax/moving_shapes DEMO_CLIP=data/raw/moving_shapes/Release/clips320H/test_00003.mp4
    export DEMO_TEXT='the topmost triangle|the blue square moving up|magenta triangle'
    python -m pytest -n 0 -m slow tests/test_demo_page.py -k upload_ask_see_download
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

import numpy as np
import pytest
from demo_files import write_checkpoint, write_clip
from paths import ROOT
from PIL import Image

from lbdt_jax.inference.video import open_clip

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.slow

REAL = {name: os.environ.get(f"DEMO_{name}", "") for name in ("CHECKPOINT", "CLIP", "TEXT")}
TEXT = REAL["TEXT"].replace("|", "\n") or "the red dog\na black cat\n\nthe flurbl"
SECONDS = 120  # for whatever is waited for

# Python runs it first: every address that the server looks up or connects to.
WATCH = """
import sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[0]
        with open({!r}, "a") as file:
            print(address[0] if isinstance(address, tuple) else address, file=file)
sys.addaudithook(note)
"""


class Server:
    """The command, serving an untrained model (or a real one) with small limits."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log, self.addresses, self.temporary = folder / "log", folder / "addresses", folder / "temporary"
        self.checkpoint = REAL["CHECKPOINT"] or str(write_checkpoint(folder / "untrained"))
        self.temporary.mkdir()
        (folder / "watch").mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH.format(str(self.addresses)))
        command = [sys.executable, "-m", "lbdt_jax.demo", f"--checkpoint={self.checkpoint}"]
        command += [f"--port={self.address.partition(':')[2]}"]
        command += [] if REAL["CHECKPOINT"] else ["--max_seconds=2", "--max_megabytes=0.2"]
        environment = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": str(folder / "watch")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        started = monotonic()
        while "Open http" not in self.log.read_text():
            assert self.process.poll() is None and monotonic() - started < SECONDS, self.log.read_text()
            sleep(0.2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    try:
        yield running
    finally:
        running.stop()
    # Whatever was asked: nothing broke, nothing was asked of other machines, nothing is left.
    assert "Traceback" not in running.log.read_text(), running.log.read_text()
    assert set(running.addresses.read_text().split()) <= {"127.0.0.1", "localhost", "0.0.0.0"}
    assert not list(running.temporary.iterdir())


class Visitor:
    """A person with a browser of their own."""

    def __init__(self, address: str, downloads: Path) -> None:
        from selenium import webdriver  # the default suite does without

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        flags += "disable-component-update disable-sync hide-scrollbars window-size=1200,1000"
        for flag in flags.split():
            options.add_argument(f"--{flag}")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver: Chrome = webdriver.Chrome(options, service)
        self.address, self.downloads = f"http://{address}/", downloads
        self.driver.get(self.address)
        self.find("#ask")

    def find(self, selector: str, attribute: str = "", other_than: str | None = None) -> WebElement:
        """Waits for an element that is seen, and until an attribute of it differs from what it was."""
        started = monotonic()
        while monotonic() - started < SECONDS:
            for element in self.driver.find_elements("css selector", selector):
                if element.is_displayed() and (not attribute or element.get_attribute(attribute) != other_than):
                    return element
            sleep(0.1)
        raise AssertionError(f"{selector} {attribute} did not come:\n{self.text()}")

    def read(self, *patterns: str) -> str:
        """Waits until the page's text holds all of some expressions."""
        started = monotonic()
        while not all(re.search(pattern, self.text()) for pattern in patterns):
            assert monotonic() - started < SECONDS, f"{patterns} did not come:\n{self.text()}"
            sleep(0.1)
        return self.text()

    def text(self) -> str:
        return str(self.driver.execute_script("return document.body.innerText"))

    def choose(self, clip: Path) -> None:
        self.driver.find_element("css selector", "#clip input[type=file]").send_keys(str(clip))

    def type(self, text: str) -> None:
        field = self.find("#text textarea")
        field.clear()
        field.send_keys(text)

    def ask(self, text: str) -> None:
        self.type(text)
        self.find("#ask").click()

    def picture(self, selector: str) -> Image.Image:
        """The file behind an <img>, as the server gives it."""
        with urllib.request.urlopen(self.find(f"{selector} img").get_attribute("src")) as response:
            return Image.open(io.BytesIO(response.read()))

    def photograph(self, name: str, below: str) -> None:
        """Takes the page from an element on, for docs/, if a real model is asked."""
        if not REAL["CHECKPOINT"]:
            return
        height = self.driver.execute_script("return document.querySelector('.gradio-container').scrollHeight")
        self.driver.set_window_size(1120, height + 150)
        self.driver.execute_script(
            "const v = document.querySelector('video'); v.pause(); v.currentTime = v.duration / 2"
        )
        sleep(1)  # to be drawn
        top = max(0, self.find(below).rect["y"] - 20)
        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as page:
            page.crop((0, top, page.width, page.height)).convert("RGB").save(ROOT / "docs" / name, optimize=True)


@pytest.fixture
def visitors(server: Server, tmp_path: Path) -> Iterator[tuple[Visitor, Visitor]]:
    both: list[Visitor] = []
    try:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            both.append(Visitor(server.address, tmp_path / name))
        yield both[0], both[1]
    finally:
        for each in both:
            each.driver.quit()


@pytest.fixture
def visitor(server: Server, tmp_path: Path) -> Iterator[Visitor]:
    (tmp_path / "downloads").mkdir()
    one = Visitor(server.address, tmp_path / "downloads")
    try:
        yield one
    finally:
        one.driver.quit()


def test_upload_ask_see_download(server: Server, visitor: Visitor, tmp_path: Path) -> None:
    clip = Path(REAL["CLIP"]) if REAL["CLIP"] else write_clip(tmp_path / "my <b>clip.mp4")
    frames = [frame for _, frame in open_clip(clip)]
    sentences = [line for line in TEXT.splitlines() if line]
    visitor.choose(clip)
    visitor.read(rf"{len(frames)} frames, \d\.\d s")
    with visitor.picture("#preview") as first:
        assert np.abs(np.asarray(first, int) - frames[0]).mean() < 4  # lossy

    visitor.ask(TEXT)
    middle = len(frames) // 2
    visitor.read(f"{len(frames)} frames asked about", f"In frame {middle}, at", *sentences)
    # The overlay plays, and comes round to its beginning.
    script = "const v = document.querySelector('#video video'); return v && [v.videoWidth, v.currentTime, v.error]"
    visitor.find("#video video")
    times = []
    while len(times) < 3 or times[-1] > times[-2] or times[-1] == 0:
        width, time, error = visitor.driver.execute_script(script)
        assert error is None and len(times) < 200
        times.append(time)
        sleep(0.1)
    assert width >= 512
    visitor.photograph("page.png", "#title")

    # The slider turns the frames, each with its masks and confidences.
    with visitor.picture("#picture") as shown:
        before = np.asarray(shown, int)
    source = visitor.find("#picture img").get_attribute("src")
    visitor.find("#slider input[type=range]").send_keys("\ue012\ue012")  # two to the left
    read = visitor.read(f"In frame {middle - 2}, at")
    visitor.find("#picture img", "src", source)
    with visitor.picture("#picture") as shown:
        turned = np.asarray(shown, int)
    assert turned.shape == before.shape and np.abs(turned - before).mean() > 1

    # The attention over the words, for this frame and another sentence.
    visitor.driver.find_elements("css selector", "#sentence label")[1].click()
    visitor.find("#explain").click()
    with visitor.picture("#sheet") as sheet:
        assert sheet.width > 1000
    visitor.photograph("page_attention.png", "#attended")

    visitor.find("#download").click()
    started = monotonic()
    while not (zips := list(visitor.downloads.glob("*.zip"))):
        assert monotonic() - started < SECONDS
        sleep(0.1)
    with zipfile.ZipFile(zips[0]) as archive:
        names = set(archive.namelist())
        lines = [json.loads(line) for line in archive.read("masks.jsonl").splitlines()]
        settings = json.loads(archive.read("settings.json"))
    assert {"overlay.mp4", "contact_sheet.png", "masks.jsonl", "settings.json"} < names
    assert len(lines) == len(frames) * len(sentences) == len(names) - 4
    assert settings["text"] == sentences and "/" not in settings["video"] + settings["checkpoint"]
    for line in lines:
        if line["frame"] == middle - 2:
            assert (f"{line['confidence']:.2f}" if line["confidence"] else "nothing") in read

    # Nothing of the server's own is shown or given, and the browser was sent nowhere else.
    assert str(server.temporary) not in visitor.text() and "/tmp" not in visitor.text()
    hidden = [*server.temporary.rglob("clip"), *server.temporary.rglob("masks.jsonl"), Path("/etc/passwd")]
    hidden += [next(path for path in Path(server.checkpoint).rglob("*") if path.is_file()), ROOT / "README.md"]
    assert len(hidden) >= 5
    for path in hidden:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{visitor.address}gradio_api/file={urllib.parse.quote(str(path))}")
    for entry in visitor.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            assert message["params"]["request"]["url"].startswith((visitor.address, "data:", "blob:"))


def test_two_at_once(visitors: tuple[Visitor, Visitor], tmp_path: Path) -> None:
    for visitor, name in zip(visitors, ("one", "two"), strict=True):
        visitor.choose(write_clip(tmp_path / f"{name}.mp4", range(40)))
        visitor.read("40 frames")
    for visitor, text in zip(visitors, ("the red dog", "a black cat"), strict=True):
        visitor.type(text)
    for visitor in visitors:
        visitor.find("#ask").click()
    assert "queue: 1/1" in visitors[1].read(r"queue: \d")
    for visitor, name, text in zip(visitors, ("one", "two"), ("the red dog", "a black cat"), strict=True):
        visitor.read(f"{name}.mp4: 40 frames asked about", r"nothing|0\.\d\d", text)
        visitor.find("#picture img")
    assert visitors[0].find("#picture img").get_attribute("src") != visitors[1].find("#picture img").get_attribute(
        "src"
    )


def test_what_is_refused(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("nothing to see")
    (tmp_path / "large.mp4").write_bytes(bytes(300_000))
    write_clip(tmp_path / "long.mp4", range(60))
    write_clip(tmp_path / "good.mp4")
    visitor.ask("the red dog")
    visitor.read("Choose a clip first.")
    for name, message in [
        ("notes.mp4", "notes.mp4 is no video that this page can read"),
        ("long.mp4", "long.mp4 is too long: this page takes clips of up to 2 seconds"),
        ("large.mp4", "exceed the maximum allowed size"),
    ]:
        visitor.driver.refresh()
        visitor.find("#ask")
        visitor.choose(tmp_path / name)
        visitor.read(message)
    visitor.driver.refresh()
    visitor.find("#ask")
    visitor.choose(tmp_path / "good.mp4")
    visitor.read("good.mp4: 64 x 48 pixels, 6 frames")
    for text, message in [
        ("\n", "Type a sentence"),
        ("那只狗", "The model knows no word of “那只狗”"),
        ("<i>flurbl</i>", "knows no word of “<i>flurbl</i>”"),
        ("the dog\n" * 8, "These are 8 sentences. This page takes 7"),
    ]:
        visitor.ask(text)
        visitor.read(re.escape(message))
    assert "Traceback" not in visitor.text() and "/tmp" not in visitor.text()
    visitor.ask("the red dog")  # and after all that
    visitor.read("6 frames asked about")


@pytest.mark.parametrize("fault", ["no checkpoint", "port taken"])
def test_the_command_says_what_is_wrong(server: Server, fault: str) -> None:
    checkpoint, message = server.checkpoint, "Can't serve the page"
    if fault == "no checkpoint":
        checkpoint, message = "no/such/folder", "No checkpoint"
    port = server.address.partition(":")[2] if fault == "port taken" else "7860"
    command = [sys.executable, "-m", "lbdt_jax.demo", f"--checkpoint={checkpoint}", f"--port={port}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
