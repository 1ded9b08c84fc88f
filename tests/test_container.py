"""What the image asks of the command, as far as it can be seen outside; tests/image runs the image itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Command

from runner.env_container import filesystem_of, memory_limit, read_token
from runner.env_gpu import explain
from runner.errors import SetupError

MOUNTS = """\
22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/a
23 22 0:21 / /proc rw - proc proc rw
24 22 8:1 /home/me/results /results rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 8:1 /x /my\\040results rw - xfs /dev/sda1 rw
26 22 0:30 / /results/scratch rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/results", "ext4"),
        ("/results/deep/er", "ext4"),
        ("/results/scratch/x", "tmpfs"),
        ("/results2", "overlay"),
        ("/my results", "xfs"),
        ("/app", "overlay"),
    ],
)
def test_where_results_lie(path: str, type_: str) -> None:
    """The longest mount point that holds a folder decides."""
    assert filesystem_of(Path(path), MOUNTS) == type_


def test_the_root_may_be_hidden() -> None:
    """Of two mounts on one point the later one counts."""
    assert filesystem_of(Path("/app"), "1 0 0:1 / / rw - rootfs rootfs rw\n" + MOUNTS) == "overlay"


def test_a_token_from_a_file(degrade: Command, tmp_path: Path) -> None:
    """HF_TOKEN_FILE gives a token that is kept as secret as HF_TOKEN itself; a file without one is an error."""
    token = "hf_" + "0123456789" * 3
    file = tmp_path / "token.secret"
    file.write_text(token + "\n")
    wrong = degrade("--set", f"model.id='{token}/x y'", env={"HF_TOKEN_FILE": str(file)})
    assert wrong.returncode == 2
    assert token not in wrong.stderr
    assert "***/x y" in wrong.stderr
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "directory"), (Path("/dev/null"), "empty")):
        failed = degrade(env={"HF_TOKEN_FILE": str(path), "HF_TOKEN": ""})
        assert (failed.returncode, words in failed.stderr) == (3, True), failed.stderr
        assert "HF_TOKEN_FILE" in failed.stderr


BARE = "hf_" + "7" * 30


@pytest.mark.parametrize("text", [f"{BARE}\r\n", f"  {BARE} ", f'"{BARE}"', f"'{BARE}'\n", f"\ufeff{BARE}"])
@pytest.mark.parametrize("by_file", [False, True])
def test_what_copying_leaves_around_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, by_file: bool
) -> None:
    """A carriage return, blanks and quotes are no part of a token, and no header can carry them."""
    (tmp_path / "token").write_bytes(text.encode())
    monkeypatch.setenv("HF_TOKEN", "" if by_file else text)
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "token") if by_file else "")
    read_token()
    assert os.environ["HF_TOKEN"] == BARE


@pytest.mark.parametrize("text", ["hf_7 hf_8", "hf_7\nhf_8", "hf_é", '""', "hf_\x1b7"])
def test_a_token_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What no header can carry is refused without being shown."""
    monkeypatch.setenv("HF_TOKEN", text)
    with pytest.raises(SetupError, match="HF_TOKEN: holds") as caught:
        read_token()
    assert "hf_" not in str(caught.value)


V1 = "9:cpu,cpuacct:/a\n5:memory:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1073741824\n"}, 2**30),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/a/b\n", {"a/memory.max": "2048\n", "a/b/memory.max": "4096\n", "memory.max": "max"}, 2048),
        ("0::/a/b\n", {"a/b/memory.max": "max\n"}, None),
        ("0::/../../host/group\n", {"memory.max": "4096\n"}, 4096),
        (
            V1,
            {"memory/docker/abc/memory.limit_in_bytes": "8192\n", "memory/memory.limit_in_bytes": f"{2**63 - 4096}"},
            8192,
        ),
        (V1, {"memory/memory.limit_in_bytes": "8192\n", "memory.max": "1"}, 8192),
        (V1, {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, None),
        (V1 + "0::/\n", {"memory/memory.limit_in_bytes": "8192\n"}, 8192),
        ("nonsense\n", {}, None),
        (None, {}, None),
    ],
)
def test_the_memory_that_a_container_leaves(
    tmp_path: Path, groups: str | None, files: dict[str, str], limit: int | None
) -> None:
    """Control groups of both versions, those above included, inside a container and outside."""
    (tmp_path / "proc/self").mkdir(parents=True)
    if groups is not None:
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_limit(tmp_path) == limit


@pytest.mark.slow
def test_the_image_wants_a_gpu(degrade: Command) -> None:
    """In the image `auto` does not fall back to the CPU; outside it does, and a dry run needs no GPU anywhere."""
    image = {"DEGRADE_IMAGE": "1", "CUDA_VISIBLE_DEVICES": ""}
    refused = degrade("--device", "auto", env=image)
    assert (refused.returncode, "--gpus all" in refused.stderr) == (3, True), refused.stderr
    plan = degrade("--device", "auto", "--dry-run", env=image)
    assert plan.returncode == 0, plan.stderr
    anywhere = degrade("--device", "auto", env={"CUDA_VISIBLE_DEVICES": ""})
    assert anywhere.returncode == 0, anywhere.stderr


@pytest.mark.parametrize(
    ("driver", "built_for", "words"),
    [
        (None, "13.0", ["no NVIDIA driver", "--gpus all", "toolkit"]),
        (None, None, ["no NVIDIA driver", "--gpus all"]),
        ((12, 4), "13.0", ["too old", "CUDA 12.4", "R580 or newer"]),
        ((13, 1), None, ["without CUDA"]),
        ((13, 1), "13.0", ["CUDA 13.1", "CUDA_VISIBLE_DEVICES"]),
    ],
)
def test_why_there_is_no_gpu(driver: tuple[int, int] | None, built_for: str | None, words: list[str]) -> None:
    """A missing driver, an old one, another PyTorch and hidden GPUs are told apart, with the way out."""
    said = explain(driver, built_for)
    assert [word for word in [*words, "--device cpu"] if word not in said] == [], said


def test_the_driver_is_asked(tmp_path: Path) -> None:
    """The version comes from the driver's own library, here one that answers 12040."""
    source = tmp_path / "driver.c"
    source.write_text("int cuDriverGetVersion(int *version) { *version = 12040; return 0; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    program = "from runner.env_gpu import driver_version; print(driver_version())"
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(12, 4)"
