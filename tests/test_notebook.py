"""The notebook that ships runs as it stands, and finds what it found when it was written."""

from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "results" / "samples"


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    """Executed in its own folder it ends at the same table of thresholds that it shows."""
    import nbformat  # here, for the sake of those who run quick tests only
    from nbclient import NotebookClient

    notebook = nbformat.read(SAMPLES / "thresholds.ipynb", as_version=4)
    shown = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert "threshold" in shown
    assert "compared" in shown
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(SAMPLES)}}).execute()
    assert notebook.cells[-1].outputs[-1]["data"]["text/plain"] == shown
