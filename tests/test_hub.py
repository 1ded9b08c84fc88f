"""A Hub that refuses, fails, breaks off or says nothing: a sentence with what it answered, no hang, no half a model."""

import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Command, refused

MODEL = "acme/tiny"
COMMIT = "a" * 40
SECONDS = 60
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def status(code: int) -> Answer:
    """Nothing but a status."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", "0")
        request.send_header("Retry-After", "0")  # else its client waits for half a minute in all
        request.end_headers()

    return answer


def silence(request: http.server.BaseHTTPRequestHandler) -> None:
    """Not a byte, for longer than anybody waits."""
    request.server.over.wait(SECONDS)  # type: ignore[attr-defined]


def hang_up(request: http.server.BaseHTTPRequestHandler) -> None:
    """The connection ends without an answer."""
    request.close_connection = True


def login_page(request: http.server.BaseHTTPRequestHandler) -> None:
    """What the network of a hotel answers, whatever is asked."""
    send(request, b"<html>Welcome! Please log in.</html>", len(b"<html>Welcome! Please log in.</html>"))


def send(request: http.server.BaseHTTPRequestHandler, content: bytes, length: int) -> None:
    """A file of the Hub, of which it says that it has this length."""
    request.send_response(200)
    for name, value in {
        "Content-Length": str(length),
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:40]}"',
        "X-Repo-Commit": COMMIT,
    }.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(content)


class Hub(http.server.ThreadingHTTPServer):
    """Serves the files of a folder as one model, with a fault for some of them, or for all."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        """Listen on some port of this machine."""
        super().__init__(("127.0.0.1", 0), Request)
        self.folder, self.faults, self.over = folder, dict[str, Answer](), threading.Event()


class Request(http.server.BaseHTTPRequestHandler):
    """One question to the Hub."""

    server: Hub

    def do_GET(self) -> None:
        """A file, its head, or what the fault says."""
        name = self.path.partition("/resolve/")[2].partition("/")[2].partition("?")[0]
        if fault := self.server.faults.get(name) or self.server.faults.get("*"):
            fault(self)
        elif name and (self.server.folder / name).is_file():
            content = (self.server.folder / name).read_bytes()
            send(self, content, len(content))
        elif name:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            status(404)(self)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(checkpoints: dict[str, Path]) -> Iterator[Hub]:
    """A server on this machine with the tiny Llama."""
    server = Hub(checkpoints["llama"])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(hub: Hub, degrade: Command, tmp_path: Path) -> Command:
    """The command with a model of that Hub and an empty cache."""
    env = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
    }
    return lambda *arguments: degrade("--set", f"model.id='{MODEL}'", "--sweep", "gauss", *arguments, env=env)


def cut(request: http.server.BaseHTTPRequestHandler) -> None:
    """Half a file, then nothing."""
    content = (request.server.folder / "model.safetensors").read_bytes()  # type: ignore[attr-defined]
    send(request, content[: len(content) // 2], len(content))
    request.close_connection = True


@pytest.mark.slow
def test_a_model_from_the_hub(fetch: Command, hub: Hub) -> None:
    """A Hub that works; and once it is gone, the cache does."""
    run = fetch()
    assert run.returncode == 0, run.stderr
    hub.faults["*"] = hang_up
    again = fetch("--set", "run.n_rep=3")
    assert again.returncode == 0, again.stderr
    assert "what is in the cache must do" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(401), ["the Hub answered 401", "HF_TOKEN"]),
        (status(403), ["the Hub answered 403", "HF_TOKEN"]),
        (status(404), ["the Hub answered 404", "no such model"]),
        (status(429), ["the Hub answered 429", "too many requests"]),
        (status(500), ["the Hub answered 500", "try again later"]),
        (silence, ["not in the cache", "cannot be reached"]),
        (hang_up, ["not in the cache", "cannot be reached"]),
        (login_page, [MODEL]),
    ],
    ids=["401", "403", "404", "429", "500", "silence", "hang-up", "login-page"],
)
def test_a_hub_that_does_not_give(fetch: Command, hub: Hub, fault: Answer, words: list[str]) -> None:
    """What it answered is said; nobody waits for ever."""
    hub.faults["*"] = fault
    started = time.monotonic()
    refused(fetch(), 3, "model.id", MODEL, *words)
    assert time.monotonic() - started < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [(status(500), ["the Hub answered 500"]), (status(429), ["the Hub answered 429"]), (cut, [MODEL])],
    ids=["500", "429", "cut"],
)
def test_weights_that_do_not_come(fetch: Command, hub: Hub, fault: Answer, words: list[str]) -> None:
    """Half a model is never used; the next run fetches the rest."""
    hub.faults["model.safetensors"] = fault
    refused(fetch(), 3, "model.id", *words)
    del hub.faults["model.safetensors"]
    run = fetch()
    assert run.returncode == 0, run.stderr
