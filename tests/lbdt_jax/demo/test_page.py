"""The demo page in a browser (Debian's chromium and chromium-driver).

With a trained checkpoint and a clip, the first test also takes the screenshots in docs/; they were made by

    export DEMO_CHECKPOINT=lbdt_jax/pretrained DEMO_CLIP=data/raw/moving_shapes/Release/clips320H/test_00003.mp4
    export DEMO_TEXT='the topmost triangle|the blue square moving up|magenta triangle'
    python -m pytest -n 0 -m slow tests/lbdt_jax/demo/test_page.py -k upload_segment_download
"""

from __future__ import annotations

import contextlib
import http.client
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

SCREENSHOT = {name: os.environ.get(f"DEMO_{name}", "") for name in ("CHECKPOINT", "CLIP", "TEXT")}
TEXT = SCREENSHOT["TEXT"].replace("|", "\n") or "the red dog\na black cat\n\nthe flurbl"
TIMEOUT = 120  # seconds, for anything that is waited for

# Run by Python at its start, as sitecustomize.py: logs every address that the server looks up, connects or sends to.
# Python's audit events don't tell what uvloop does, so its methods are wrapped.
LOG_ADDRESSES = """
import functools, sys
ARGUMENT = {{"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getnameinfo": 0}}
ARGUMENT |= {{"socket." + lookup: 0 for lookup in ("getaddrinfo", "gethostbyname", "gethostbyaddr")}}
def note(address):
    with open({!r}, "a") as file:
        print(address[0] if isinstance(address, tuple) else address, file=file)
def log(event, arguments):
    if event in ARGUMENT and len(arguments) > ARGUMENT[event] and arguments[ARGUMENT[event]] is not None:
        note(arguments[ARGUMENT[event]])
sys.addaudithook(log)
try:
    import uvloop
except ModuleNotFoundError:
    pass
else:
    def logged(method, position, name):
        @functools.wraps(method)
        def call(*arguments, **named):
            note(arguments[position] if len(arguments) > position else named.get(name))
            return method(*arguments, **named)
        return call
    for method, position, name in [
        ("create_connection", 2, "host"), ("getaddrinfo", 1, "host"), ("getnameinfo", 1, "sockaddr"),
        ("sock_connect", 2, "address"), ("create_datagram_endpoint", 3, "remote_addr"),
    ]:
        setattr(uvloop.Loop, method, logged(getattr(uvloop.Loop, method), position, name))
"""

# None of them is there.
PROXIES = {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}


def log_addresses(folder: Path) -> tuple[Path, dict[str, str]]:
    """Makes Python processes with the environment that is returned log addresses to the file that is returned."""
    startup = folder / "startup"
    startup.mkdir()
    (startup / "sitecustomize.py").write_text(LOG_ADDRESSES.format(str(folder / "addresses")))
    return folder / "addresses", {**os.environ, "PYTHONPATH": str(startup)}


class Server:
    """The command in a process of its own: an untrained model with small limits, or the one for screenshots."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log, self.temporary = folder / "log", folder / "temporary"
        self.addresses, environment = log_addresses(folder)
        self.checkpoint = SCREENSHOT["CHECKPOINT"] or str(write_checkpoint(folder / "untrained"))
        self.temporary.mkdir()
        command = [sys.executable, "-m", "lbdt_jax.demo", f"--checkpoint={self.checkpoint}"]
        command += [f"--port={self.address.partition(':')[2]}"]
        command += [] if SCREENSHOT["CHECKPOINT"] else ["--max_seconds=2", "--max_megabytes=0.2"]
        environment |= {
            **PROXIES,
            "TMPDIR": str(self.temporary),
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),  # as tests/conftest.py
        }
        with self.log.open("w") as log:
            # The page ignores a hang-up if these tests do, as under nohup.
            hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            signal.signal(signal.SIGHUP, hang_up)
        started = monotonic()
        while "Open http" not in self.log.read_text():
            if self.process.poll() is not None or monotonic() - started >= TIMEOUT:
                self.process.kill()
                raise AssertionError(f"the server did not start:\n{self.log.read_text()}")
            sleep(0.2)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=30)
        # Whatever the tests did: no error, no connection to other machines, no file left behind.
        assert "Traceback" not in self.log.read_text(), self.log.read_text()
        assert set(self.addresses.read_text().split()) <= {"127.0.0.1", "localhost", "0.0.0.0"}
        assert not list(self.temporary.iterdir())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    try:
        yield running
    finally:
        running.stop()


class Visitor:
    """A browser with the page open."""

    def __init__(self, address: str, downloads: Path) -> None:
        from selenium import webdriver  # only the slow tests need it

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
        self.find("#submit")

    def find(self, selector: str, attribute: str = "", other_than: str | None = None) -> WebElement:
        """Waits for a visible element and, if an attribute is given, until its value differs from `other_than`."""
        started = monotonic()
        while monotonic() - started < TIMEOUT:
            for element in self.driver.find_elements("css selector", selector):
                if element.is_displayed() and (not attribute or element.get_attribute(attribute) != other_than):
                    return element
            sleep(0.1)
        raise AssertionError(f"{selector} {attribute} did not appear:\n{self.text()}")

    def wait_for_text(self, *patterns: str) -> str:
        """Waits until the page's text matches all patterns, and returns it."""
        started = monotonic()
        while not all(re.search(pattern, self.text()) for pattern in patterns):
            assert monotonic() - started < TIMEOUT, f"{patterns} did not appear:\n{self.text()}"
            sleep(0.1)
        return self.text()

    def text(self) -> str:
        return str(self.driver.execute_script("return document.body.innerText"))

    def upload(self, clip: Path) -> None:
        self.driver.find_element("css selector", "#clip input[type=file]").send_keys(str(clip))

    def type(self, text: str) -> None:
        field = self.find("#sentences textarea")
        field.clear()
        field.send_keys(text)

    def segment(self, text: str) -> None:
        self.type(text)
        self.find("#submit").click()

    def image(self, selector: str) -> Image.Image:
        """The file of an <img>, fetched from the server."""
        with urllib.request.urlopen(self.find(f"{selector} img").get_attribute("src")) as response:
            return Image.open(io.BytesIO(response.read()))

    def screenshot(self, name: str, top_element: str) -> None:
        """Saves the page from an element on to docs/, if a model for screenshots is given."""
        if not SCREENSHOT["CHECKPOINT"]:
            return
        height = self.driver.execute_script("return document.querySelector('.gradio-container').scrollHeight")
        self.driver.set_window_size(1120, height + 150)
        self.driver.execute_script(
            "const v = document.querySelector('video'); v.pause(); v.currentTime = v.duration / 2"
        )
        sleep(1)  # until it is drawn
        top = max(0, self.find(top_element).rect["y"] - 20)
        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as page:
            page.crop((0, top, page.width, page.height)).convert("RGB").save(ROOT / "docs" / name, optimize=True)


@pytest.fixture
def visitors(server: Server, tmp_path: Path) -> Iterator[tuple[Visitor, Visitor]]:
    opened: list[Visitor] = []
    try:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            opened.append(Visitor(server.address, tmp_path / name))
        yield opened[0], opened[1]
    finally:
        for visitor in opened:
            visitor.driver.quit()


@pytest.fixture
def visitor(server: Server, tmp_path: Path) -> Iterator[Visitor]:
    (tmp_path / "downloads").mkdir()
    opened = Visitor(server.address, tmp_path / "downloads")
    try:
        yield opened
    finally:
        opened.driver.quit()


def test_upload_segment_download(server: Server, visitor: Visitor, tmp_path: Path) -> None:
    clip = Path(SCREENSHOT["CLIP"]) if SCREENSHOT["CLIP"] else write_clip(tmp_path / "my <b>clip.mp4")
    frames = [frame for _, frame in open_clip(clip)]
    sentences = [line for line in TEXT.splitlines() if line]
    visitor.upload(clip)
    visitor.wait_for_text(rf"{len(frames)} frames, \d\.\d s")
    with visitor.image("#preview") as first_frame:
        assert np.abs(np.asarray(first_frame, int) - frames[0]).mean() < 4  # lossy

    visitor.segment(TEXT)
    middle = len(frames) // 2
    visitor.wait_for_text(f"{len(frames)} frames segmented", f"Frame {middle}, ", *sentences)
    # The video plays, in a loop.
    script = "const v = document.querySelector('#video video'); return v && [v.videoWidth, v.currentTime, v.error]"
    visitor.find("#video video")
    times = []
    while len(times) < 3 or times[-1] > times[-2] or times[-1] == 0:
        width, time, error = visitor.driver.execute_script(script)
        assert error is None and len(times) < 200
        times.append(time)
        sleep(0.1)
    assert width >= 512
    visitor.screenshot("page.png", "#title")

    # The slider changes the frame, its masks and its confidences.
    with visitor.image("#frame") as image:
        before = np.asarray(image, int)
    source = visitor.find("#frame img").get_attribute("src")
    visitor.find("#slider input[type=range]").send_keys("\ue012\ue012")  # the left arrow, twice
    text = visitor.wait_for_text(f"Frame {middle - 2}, ")
    visitor.find("#frame img", "src", source)
    with visitor.image("#frame") as image:
        after = np.asarray(image, int)
    assert after.shape == before.shape and np.abs(after - before).mean() > 1

    # The attention for this frame and another sentence.
    visitor.driver.find_elements("css selector", "#sentence label")[1].click()
    visitor.find("#explain").click()
    with visitor.image("#attention") as image:
        assert image.width > 1000
    visitor.screenshot("page_attention.png", "#attention-title")

    visitor.find("#download").click()
    started = monotonic()
    while not (zips := list(visitor.downloads.glob("*.zip"))):
        assert monotonic() - started < TIMEOUT
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
            assert (f"{line['confidence']:.2f}" if line["confidence"] else "no mask") in text

    # No path or private file of the server is visible, and the browser contacted no other server.
    assert str(server.temporary) not in visitor.text() and "/tmp" not in visitor.text()
    private = [*server.temporary.rglob("clip"), *server.temporary.rglob("masks.jsonl"), Path("/etc/passwd")]
    private += [next(path for path in Path(server.checkpoint).rglob("*") if path.is_file()), ROOT / "README.md"]
    assert len(private) >= 5
    for path in private:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{visitor.address}gradio_api/file={urllib.parse.quote(str(path))}")
    for entry in visitor.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            assert message["params"]["request"]["url"].startswith((visitor.address, "data:", "blob:"))


def test_two_visitors_at_once(visitors: tuple[Visitor, Visitor], tmp_path: Path) -> None:
    for visitor, name in zip(visitors, ("one", "two"), strict=True):
        visitor.upload(write_clip(tmp_path / f"{name}.mp4", range(40)))
        visitor.wait_for_text("40 frames")
    for visitor, text in zip(visitors, ("the red dog", "a black cat"), strict=True):
        visitor.type(text)
    for visitor in visitors:
        visitor.find("#submit").click()
    assert "queue: 1/1" in visitors[1].wait_for_text(r"queue: \d")
    for visitor, name, text in zip(visitors, ("one", "two"), ("the red dog", "a black cat"), strict=True):
        visitor.wait_for_text(f"{name}.mp4: 40 frames segmented", r"no mask|0\.\d\d", text)
        visitor.find("#frame img")
    assert visitors[0].find("#frame img").get_attribute("src") != visitors[1].find("#frame img").get_attribute("src")


def test_invalid_input_is_rejected(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("nothing to see")
    (tmp_path / "large.mp4").write_bytes(bytes(300_000))
    write_clip(tmp_path / "long.mp4", range(60))
    write_clip(tmp_path / "good.mp4")
    visitor.segment("the red dog")
    visitor.wait_for_text("Choose a clip first.")
    for name, message in [
        ("notes.mp4", "notes.mp4 is not a video"),
        ("long.mp4", "long.mp4 is too long. The limits are 2 seconds"),
        ("large.mp4", "exceed the maximum allowed size"),
    ]:
        visitor.driver.refresh()
        visitor.find("#submit")
        visitor.upload(tmp_path / name)
        visitor.wait_for_text(message)
    visitor.driver.refresh()
    visitor.find("#submit")
    visitor.upload(tmp_path / "good.mp4")
    visitor.wait_for_text("good.mp4: 64 x 48 pixels, 6 frames")
    for text, message in [
        ("\n", "Type a sentence"),
        ("那只狗", "The model knows no word of “那只狗”"),
        ("<i>flurbl</i>", "knows no word of “<i>flurbl</i>”"),
        ("the dog\n" * 8, "There are 8 sentences. The limit is 7"),
    ]:
        visitor.segment(text)
        visitor.wait_for_text(re.escape(message))
    assert "Traceback" not in visitor.text() and "/tmp" not in visitor.text()
    visitor.segment("the red dog")  # still works
    visitor.wait_for_text("6 frames segmented")


@pytest.mark.parametrize("fault", ["no checkpoint", "port taken"])
def test_the_command_reports_errors(server: Server, fault: str) -> None:
    checkpoint, message = server.checkpoint, "Can't serve the page"
    if fault == "no checkpoint":
        checkpoint, message = "no/such/folder", "No checkpoint"
    port = server.address.partition(":")[2] if fault == "port taken" else "7860"
    command = [sys.executable, "-m", "lbdt_jax.demo", f"--checkpoint={checkpoint}", f"--port={port}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_hang_up_ends_the_running_request_and_deletes_all_files(tmp_path: Path) -> None:
    running = Server(tmp_path)
    clip = write_clip(tmp_path / "long.mp4", range(48))
    body = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n%s'
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "150000"}
    with contextlib.closing(http.client.HTTPConnection(running.address)) as broken:
        broken.putrequest("POST", "/gradio_api/upload")
        for name, value in headers.items():
            broken.putheader(name, value)
        broken.endheaders(body % b"broken off")
    whole = body % clip.read_bytes() + b"\r\n--b--\r\n"
    del headers["Content-Length"]
    (path,) = json.loads(post(running, "upload", whole, headers))
    event = {"fn_index": 2 if SCREENSHOT["CHECKPOINT"] else 1, "session_hash": "a"}
    event["data"] = [{"path": path}, "the red dog\n" * 7, None]
    post(running, "queue/join", json.dumps(event).encode(), {"Content-Type": "application/json"})
    started = monotonic()
    while not list(running.temporary.rglob("masks.jsonl")):
        assert monotonic() - started < TIMEOUT
        sleep(0.05)
    running.stop(signal.SIGHUP)


def post(server: Server, route: str, body: bytes, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(f"http://{server.address}/gradio_api/{route}", body, headers)
    with urllib.request.urlopen(request) as response:
        return bytes(response.read())


@pytest.mark.parametrize("runner", ["asyncio.run", "uvloop.run"])
def test_no_connection_goes_unnoticed(runner: str, tmp_path: Path) -> None:
    addresses, environment = log_addresses(tmp_path)
    script = f"""
import asyncio
try:
    import uvloop
except ModuleNotFoundError:
    uvloop = asyncio
async def main():
    loop = asyncio.get_running_loop()
    for call in (loop.create_connection(asyncio.Protocol, "127.0.0.2", 9), loop.getaddrinfo("127.0.0.3", 9),
                 loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.4", 9))):
        try:
            await call
        except OSError:
            pass
{runner}(main())
"""
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert {"127.0.0.2", "127.0.0.3", "127.0.0.4"} <= set(addresses.read_text().split())
