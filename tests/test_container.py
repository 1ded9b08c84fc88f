"""What the image asks of the command, as far as it can be seen outside; tests/image runs the image itself."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.container import filesystem_of
from runner.gpu import explain

Command = Callable[..., subprocess.CompletedProcess[str]]
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
    program = "from runner.gpu import driver_version; print(driver_version())"
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(12, 4)"
