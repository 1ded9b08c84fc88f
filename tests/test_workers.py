"""Workers in processes of their own, through the command: the same records however many, whoever is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from operator import itemgetter
from pathlib import Path

import pytest
from forkserver import ForkServer
from helpers import Command, done, records_in, records_so_far
from ray.exceptions import RayError
from records import parse

from runner.env_gpu import visible_gpus
from runner.run_ahead import expected_team
from runner.run_local import LocalProcesses, visible_to
from runner.run_ray import why_gone
from runner.run_team import Asked, Reply, Team
from runner.spec import load_spec

MARK = "PYTEST_CURRENT_TEST"  # whose value is that of one test, and which all that it starts inherits
LONGEST_SECONDS = 300
LEAVES_A_CHILD = """
import subprocess
from runner import run_actor

def leave(_):
    subprocess.Popen(["sleep", "60"], close_fds=False)
    print("left", flush=True)
    raise SystemExit(4)

run_actor.Actor = leave
run_actor.serve({descriptor})
"""


def started() -> dict[int, bytes]:
    """The processes that commands of this test have started, and their command lines."""
    mark, found = f"{MARK}={os.environ[MARK]}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes()
    # The server of all tests, and its forks, have the environment of the first test.
    return {pid: line for pid, line in found.items() if b"forkserver.py" not in line}


def workers() -> list[int]:
    """The processes of workers."""
    return [pid for pid, line in started().items() if b"degrade worker" in line]


def wait_for(what: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait until something is so, as long as a process runs."""
    limit = time.monotonic() + LONGEST_SECONDS
    while not what():
        assert time.monotonic() < limit, "it does not happen"
        assert process is None or process.poll() is None, process and process.communicate()[1]
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No process of ours outlives the command for long, however that ended."""
    yield
    wait_for(lambda: not started())


@pytest.fixture
def running(forks: ForkServer, study: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """The command with two workers, in a session of its own; `running()` begins it."""
    begun = []

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        arguments = ("specs/tiny.toml", "--processes", "2", *arguments)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(forks.start(*arguments, cwd=study, start_new_session=True, **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        with process, suppress(ProcessLookupError):
            process.kill()


def are_in_order(study: Path, method: str = "*") -> bool:
    """Whether the files of a method, or all, are in the order of the plan."""
    files = [parse(path) for path in (study / "results").glob(f"outputs_{method}_llama*.json")]
    key = itemgetter("param_group_name", "level_index", "repeat_index", "prompt_id")
    return bool(files) and all(records == sorted(records, key=key) for records in files)


@pytest.mark.slow
def test_four_workers_of_which_one_is_killed_make_the_records_of_one(
    running: Callable[..., "subprocess.Popen[str]"], study: Path, results_of_a_run: Path
) -> None:
    """In the order of the plan, with one log, one progress and one priority; what the worker had is done by another."""
    process = running("--processes", "4")
    wait_for(lambda: records_so_far(study / "results"), process)
    priorities = {os.getpriority(os.PRIO_PROCESS, pid) for pid in (process.pid, *workers())}
    os.kill(workers()[-1], signal.SIGKILL)
    printed, said = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == 0, said
    assert not printed
    assert records_in(study / "results") == records_in(results_of_a_run)
    assert are_in_order(study)
    assert "its process is gone (SIGKILL" in said
    assert said.count("float32 holds 62 distinct values of 64") == 1
    assert "worker 0: " in said
    assert len(priorities) == 1, "on a busy host its workers would wait for others"


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_workers_along_and_a_rerun_goes_on(
    running: Callable[..., "subprocess.Popen[str]"], study: Path, results_of_a_run: Path, degrade: Command
) -> None:
    """Nothing is lost or doubled, and all is put in order; how many workers there are has no influence."""
    process = running()
    wait_for(lambda: records_so_far(study / "results"), process)
    process.kill()
    wait_for(lambda: not started())
    there = records_so_far(study / "results")
    assert 0 < there < len(records_in(results_of_a_run))
    done(degrade("--processes", "1"))
    assert records_in(study / "results") == records_in(results_of_a_run)
    assert are_in_order(study, "mult_gauss")  # the other files are of one worker, in which answers stand as they ended


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_keyboard_ends_all_of_it(
    running: Callable[..., "subprocess.Popen[str]"], study: Path, number: signal.Signals
) -> None:
    """As it ends a run with one worker: every process of the terminal gets the signal, one sentence is said."""
    process = running()
    wait_for(workers if number == signal.SIGTERM else lambda: records_so_far(study / "results"), process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == 128 + number, said
    assert said.count("everything finished is saved") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--processes", "2", "--device", "auto"], 2, "--processes: workers on a CPU"),
        (["--gpus", "2"], 2, "model.device is cpu"),
        (["--gpus-per-model", "2"], 2, "model.device is cpu"),
        (["--gpus", "2", "--gpus-per-model", "3", "--device", "auto"], 2, "3 are more than the 2 of --gpus"),
        (["--processes", "0"], 2, "no whole number above 0"),
        (["--gpus", "2", "--device", "auto"], 3, "2 asked for, 0 GPUs found"),
        (["--processes", "2", "--ray-address", "localhost:1"], 3, "--ray-address: nobody answers at localhost:1"),
        (["--ray-address", "ray://localhost:1"], 2, "--ray-address: 'ray://localhost:1' is neither auto nor"),
    ],
)
def test_workers_that_cannot_be_had_are_refused(degrade: Command, arguments: list[str], code: int, words: str) -> None:
    """Before anything is loaded."""
    run = degrade(*arguments)
    assert run.returncode == code, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_what_is_wrong_with_the_prompts_is_said_while_workers_start(degrade: Command) -> None:
    """In the same words as with one worker; those that have begun to start are ended."""
    arguments = ("--set", "generation.max_new_tokens=120")
    said = [degrade("--processes", number, *arguments) for number in ("1", "2")]
    assert [run.returncode for run in said] == [2, 2]
    one, two = (run.stderr.splitlines()[-1] for run in said)
    assert one == two
    assert "do not hold a prompt of" in two


def test_one_process_is_this_process(degrade: Command, study: Path, results_of_a_run: Path) -> None:
    """Without others."""
    run = done(degrade("--processes", "1"))
    assert "workers load the model" not in run.stderr
    assert records_in(study / "results") == records_in(results_of_a_run)


@pytest.mark.slow
def test_processes_that_began_before_the_run_knew_what_is_left_end_where_they_have_nothing_to_do(
    degrade: Command, finished: Path, results_of_a_run: Path
) -> None:
    """All four where every record is there, two of them where two damaged models are left."""
    assert "nothing to do" in done(degrade("--processes", "4")).stderr
    for path in (finished / "results").glob("outputs_uni_quant_*"):
        path.unlink()
    assert "2 workers load the model" in done(degrade("--processes", "4")).stderr
    assert records_in(finished / "results") == records_in(results_of_a_run)


@pytest.mark.parametrize(
    ("asked", "device", "chosen", "expected"),
    [
        (Asked(), "cpu", None, None),
        (Asked(processes=2), "cpu", None, (2, 0)),
        (Asked(processes=99), "cpu", None, (12, 0)),  # as many as the spec has conditions
        (Asked(), "auto", None, (4, 1)),
        (Asked(), "cuda", "2,3", (2, 1)),
        (Asked(), "auto", "3", None),
        (Asked(), "auto", "", None),
        (Asked(), "cuda:1", None, None),
        (Asked(gpus=1), "auto", None, None),
        (Asked(gpus=3), "auto", None, (3, 1)),
        (Asked(gpus_per_model=2), "auto", None, (2, 2)),
        (Asked(gpus_per_model=3), "auto", None, None),
        (Asked(gpus=9), "auto", None, (4, 1)),  # what is asked for is refused later
        (Asked(ray_address="auto"), "auto", None, None),
    ],
)
def test_the_team_is_known_before_torch_is_imported(
    asked: Asked,
    device: str,
    chosen: str | None,
    expected: tuple[int, int] | None,
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the command line, and from the GPUs that the system shows: four here."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (study / name).touch()
    monkeypatch.setattr("runner.run_ahead.visible_gpus", lambda: visible_gpus(study))
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    team = expected_team(asked, load_spec(study / "specs" / "tiny.toml").on(device))
    assert (team and (team.workers, team.gpus_per_model)) == expected


def test_a_grid_whose_curves_the_model_decides_has_work_for_all(study: Path) -> None:
    """How many layers there are is not known yet."""
    spec = load_spec(study / "specs" / "tiny.toml", ['sweeps.0.each="layer"'])
    assert spec.needs_layers
    assert expected_team(Asked(processes=20), spec) == Team(workers=20, most=20, gpus_per_model=0)


def test_a_team_holds_another_on_the_same_devices_that_is_no_larger() -> None:
    """Whose processes can then do the work."""
    four = Team(workers=4, most=4, gpus_per_model=1)
    assert four.holds(Team(workers=2, most=9, gpus_per_model=1))
    assert not four.holds(Team(workers=5, most=9, gpus_per_model=1))
    assert not four.holds(Team(workers=2, most=2, gpus_per_model=2))
    assert not four.holds(Team(workers=2, most=2, gpus_per_model=0))
    assert not four.holds(Team(workers=None, most=2, gpus_per_model=1, address="auto"))


def test_a_host_on_which_no_worker_can_begin_says_why() -> None:
    """Above all that degrade is missing there."""
    told = (
        "The actor died because of an error raised in its creation task, ray::Actor.__init__() (pid=1)\n"
        "  File \"actor.py\", line 7, in __init__\nModuleNotFoundError: No module named 'runner'"
    )
    assert why_gone(RayError(told)) == "its process cannot begin: ModuleNotFoundError: No module named 'runner'"
    assert why_gone(RayError("The actor died unexpectedly")) == "its process is gone (RayError)"


@pytest.fixture
def programmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], LocalProcesses]]:
    """One process with another program than a worker's: `programmed("import os; os.abort()")`."""
    with ExitStack() as ends:

        def begin(program: str) -> LocalProcesses:
            monkeypatch.setattr("runner.run_local.PROGRAM", program)
            return ends.enter_context(LocalProcesses(Team(workers=1, most=1, gpus_per_model=0)))

        yield begin


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import no_such_package", "exit code 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("import os; os.abort()", "SIGABRT"),
        ("print('z' * 5_000_000 + chr(7)); exit(3)", "exit code 3: " + "z" * 300),
        (
            LEAVES_A_CHILD,
            "exit code 4: left",
        ),
    ],
)
def test_a_process_that_cannot_go_on_says_why(
    programmed: Callable[[str], LocalProcesses], program: str, said: str
) -> None:
    """In the words that it printed last, as the reply to every call, also to those after its end."""
    processes = programmed(program)
    for _ in range(2):
        processes.begin("digest", ["attn_only"])
        processes.send(0, "facts")
        replies = list[Reply]()
        while not replies:
            replies = processes.replies(LONGEST_SECONDS)
        assert [str(reply.error) for reply in replies] == [f"its process is gone ({said})"]
    for pid, line in started().items():
        if line.startswith(b"sleep"):
            os.kill(pid, signal.SIGKILL)


def test_a_process_that_reads_nothing_keeps_nobody_waiting(programmed: Callable[[str], LocalProcesses]) -> None:
    """However much it is told; it is given up as one that hangs."""
    processes = programmed("import time; time.sleep(1000)")
    begun = time.monotonic()
    processes.begin("d" * 5_000_000, [])
    processes.send(0, "facts")
    assert processes.replies(0.1) == []
    processes.restart(0)
    processes.stop(0)
    assert time.monotonic() - begun < LONGEST_SECONDS / 10


@pytest.mark.parametrize(
    ("worker", "gpus", "chosen", "shown"),
    [
        (3, 0, None, {}),
        (0, 1, None, {"CUDA_VISIBLE_DEVICES": "0"}),
        (3, 1, None, {"CUDA_VISIBLE_DEVICES": "3"}),
        (1, 2, None, {"CUDA_VISIBLE_DEVICES": "2,3"}),
        (1, 2, "5,1, 7 ,2", {"CUDA_VISIBLE_DEVICES": "7,2"}),
        (1, 1, "GPU-26156598,MIG-fd7a5fe8", {"CUDA_VISIBLE_DEVICES": "MIG-fd7a5fe8"}),
    ],
)
def test_a_worker_sees_its_own_gpus(
    worker: int, gpus: int, chosen: str | None, shown: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that the command sees; no two workers have one in common."""
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_to(worker, gpus) == shown
