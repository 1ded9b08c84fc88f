"""A Hub that refuses, fails, breaks off or says nothing: a sentence with what it answered, no hang, no half a model."""

import hashlib
import http.server
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import make_study
from forkserver import ForkServer
from helpers import Command, assert_nowhere, done, refused

pytestmark = pytest.mark.slow

COMMIT = "a" * 40
SECONDS = 60
TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"  # noqa: S105 - a token that opens nothing
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Answer:
    """Nothing but a status and headers."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", "0")
        request.send_header("Retry-After", "0")  # else its client waits for half a minute in all
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
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


def cut(request: http.server.BaseHTTPRequestHandler) -> None:
    """Half a file, then nothing."""
    content = (request.server.folder / "model.safetensors").read_bytes()  # type: ignore[attr-defined]
    send(request, content[: len(content) // 2], len(content))
    request.close_connection = True


class Hub(http.server.ThreadingHTTPServer):
    """Serves the files of a folder as any model, with faults for paths that hold one text and end in another."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        """Listen on some port of this machine."""
        super().__init__(("127.0.0.1", 0), Request)
        self.folder, self.faults, self.over = folder, dict[tuple[str, str], Answer](), threading.Event()


class Request(http.server.BaseHTTPRequestHandler):
    """One question to the Hub."""

    server: Hub

    def do_GET(self) -> None:
        """A file, its head, or what the fault says."""
        path = self.path.partition("?")[0]
        name = path.partition("/resolve/")[2].partition("/")[2]
        faults = self.server.faults.items()
        if fault := next((fault for (model, end), fault in faults if model in path and path.endswith(end)), None):
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


# By the name of the model that is asked for: what the Hub answers, and what is said then.
NOT_GIVEN = {
    "401": (status(401), ["the Hub answered 401", "HF_TOKEN"]),
    "403": (status(403), ["the Hub answered 403", "HF_TOKEN"]),
    "404": (status(404), ["the Hub answered 404", "no such model"]),
    "429": (status(429), ["the Hub answered 429", "too many requests"]),
    "500": (status(500), ["the Hub answered 500", "try again later"]),
    "login-page": (login_page, ["acme/login-page"]),
}
# The same, of the file of the weights alone.
WEIGHTS = {
    "weights-500": (status(500), ["the Hub answered 500"]),
    "weights-429": (status(429), ["the Hub answered 429"]),
    "weights-cut": (cut, ["acme/weights-cut"]),
}
GATED = status(401, X_Error_Code="GatedRepo", X_Error_Message="Access to model google/gemma-3-4b-it is restricted.")


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that is empty at first."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def online(hub: Hub, home: Path) -> Iterator[ForkServer]:
    """A server whose forks know that Hub: where it is and where the cache is, is read when libraries are imported."""
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    env = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    server = ForkServer(env=env | {"HF_TOKEN": ""})
    yield server
    server.close()


def arguments(model: str) -> list[str]:
    """Those of a command with a model of the Hub."""
    return ["specs/tiny.toml", "--set", f"model.id='acme/{model}'", "--sweep", "gauss"]


Ended = tuple[subprocess.CompletedProcess[str], Path]


@pytest.fixture(scope="module")
def ended(
    hub: Hub, online: ForkServer, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Ended]:
    """The commands of all faults, at once: most of their time they wait, to ask the Hub again; and their folders."""
    begun, found = {}, {}
    for model, (fault, _) in (NOT_GIVEN | WEIGHTS).items():
        hub.faults[f"/acme/{model}", "" if model in NOT_GIVEN else "model.safetensors"] = fault
        folder = make_study(tmp_path_factory.mktemp(model), checkpoints["llama"])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun[model] = online.start(*arguments(model), cwd=folder, **pipes), folder
    for model, (process, folder) in begun.items():
        out, err = process.communicate(timeout=SECONDS)
        found[model] = subprocess.CompletedProcess(process.args, process.returncode, out, err), folder
    hub.faults.clear()
    return found


@pytest.fixture
def away(hub: Hub) -> Iterator[Callable[[Answer], None]]:
    """What makes the whole Hub answer like this, until the test ends."""
    yield lambda fault: hub.faults.update({("", ""): fault})
    hub.faults.clear()


def test_a_model_from_the_hub(online: ForkServer, away: Callable[[Answer], None], study: Path) -> None:
    """A Hub that works; and once it is gone, the cache does."""
    done(online.run(*arguments("tiny"), cwd=study))
    away(hang_up)
    again = done(online.run(*arguments("tiny"), "--set", "run.n_rep=3", cwd=study))
    assert "what is in the cache must do" in again.stderr


@pytest.mark.parametrize("model", NOT_GIVEN)
def test_a_hub_that_does_not_give(ended: dict[str, Ended], model: str) -> None:
    """What it answered is said; nobody waits for ever."""
    refused(ended[model][0], 3, "model.id", f"acme/{model}", *NOT_GIVEN[model][1])


@pytest.mark.parametrize("fault", [silence, hang_up])
def test_a_hub_that_is_not_there(
    online: ForkServer, away: Callable[[Answer], None], study: Path, fault: Answer
) -> None:
    """Nobody waits for ever."""
    away(fault)
    started = time.monotonic()
    refused(online.run(*arguments("none"), cwd=study), 3, "model.id", "not in the cache", "cannot be reached")
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("model", WEIGHTS)
def test_weights_that_do_not_come(ended: dict[str, Ended], online: ForkServer, model: str) -> None:
    """Half a model is never used; the next run fetches the rest."""
    run, folder = ended[model]
    refused(run, 3, "model.id", *WEIGHTS[model][1])
    done(online.run(*arguments(model), cwd=folder))


@pytest.mark.parametrize(("token", "words"), [("", ["HF_TOKEN is not set"]), (TOKEN, ["this HF_TOKEN has no access"])])
def test_gated_model(
    online: ForkServer, away: Callable[[Answer], None], home: Path, study: Path, token: str, words: list[str]
) -> None:
    """A gated model without access says what to accept and what to set, and no file keeps the token."""
    away(GATED)
    run = online.run("dreams_it", "--log-level", "DEBUG", cwd=study, env={"HF_TOKEN": token})
    refused(run, 3, "google/gemma-3-4b-it", "gated", "https://huggingface.co/google/gemma-3-4b-it", *words)
    assert_nowhere(TOKEN, run, study)
    assert_nowhere(TOKEN, run, home)


def test_unreachable_hub(degrade: Command, tmp_path: Path) -> None:
    """Without network and without a cached model the message says so."""
    refused(degrade(spec="dreams_it", env={"HF_HOME": str(tmp_path / "hub")}), 3, "google/gemma-3-4b-it", "cache")
