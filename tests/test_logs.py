"""What reaches the console and the log file: progress, and nothing that harms a terminal or gives a secret away."""

import logging
import os
from pathlib import Path

import pytest

from runner.cli_console import Progress, log_file
from runner.errors import SetupError
from runner.run_plan import Condition, PendingCondition

CONDITION = Condition(
    sweep="gauss", method="mult_gauss", group="mlp_only", level=0.5, level_index=1, repeat_index=0, seed=7
)


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="runner")


def test_progress_counts_conditions_records_and_tokens(caplog: pytest.LogCaptureFixture) -> None:
    """After two of three prompts no condition is done; after the third one is."""
    with Progress([PendingCondition(CONDITION, (0, 1, 2))]) as meter:
        meter.batch_done(
            [CONDITION] * 2, [{"tokens": 30, "output": "one"}, {"tokens": 10, "output": "two"}], seconds=2.0
        )
        meter.show()
        meter.batch_done([CONDITION], [{"tokens": 20, "output": "three"}], seconds=1.0)
        meter.show()
    assert "0 of 1 conditions, 2 of 3 records, 20 tokens/s" in caplog.text
    assert "1 of 1 conditions, 3 of 3 records, 20 tokens/s, 0:00:00 left" in caplog.text
    assert "gauss 0.5 repeat 0 | one" in caplog.text


def test_a_model_cannot_reach_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """Control codes in what a damaged model says are shown as spaces."""
    with Progress([PendingCondition(CONDITION, (0,))]) as meter:
        meter.batch_done([CONDITION], [{"tokens": 1, "output": "\x1b[2Jgone\x07 \x9b31m\u202ered"}], seconds=1.0)
    said = next(record.getMessage() for record in caplog.records if "repeat 0 |" in record.getMessage())
    assert said.isprintable(), said


def test_the_log_file_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is blotted out wherever it would be written; the name of the file holds what a name can hold."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with log_file(tmp_path / "logs", "ablation|google/gemma|tiny"):
        logging.getLogger("runner.test").warning("héllo %s", "hf_secret")
    (path,) = (tmp_path / "logs").iterdir()
    assert path.name.startswith("ablation_google_gemma_tiny_")
    assert path.read_text(encoding="utf-8").endswith("WARNING runner.test: héllo ***\n")


def test_a_folder_that_takes_no_log(tmp_path: Path) -> None:
    """A logs folder that is a file is a sentence, not a traceback."""
    (tmp_path / "logs").write_text("mine")
    with pytest.raises(SetupError, match="no log can be written"), log_file(tmp_path / "logs", "x"):
        pass


def test_a_disk_that_is_full_in_mid_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that the log cannot take are told of once, and the run goes on."""
    with log_file(tmp_path, "x"):
        log = next(one for one in logging.getLogger().handlers if str(tmp_path) in getattr(one, "baseFilename", ""))
        assert isinstance(log, logging.FileHandler)
        with Path("/dev/full").open("w") as full:
            os.dup2(full.fileno(), log.stream.fileno())
        for _ in range(2):
            logging.getLogger("runner.test").warning("a line")
    assert caplog.text.count("cannot be written: No space left on device. The run goes on") == 1
    assert "Traceback" not in capsys.readouterr().err
