"""The notebooks run on the packaged models; what they showed last is committed, small and without an error.

``pytest tests/programs/test_notebooks.py --full --write-docs`` writes what they show now.
"""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_committed_was_run_from_top_to_bottom(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert {output["output_type"] for output in shown(notebook)} <= {"display_data", "execute_result", "stream"}
    assert "stderr" not in {output.get("name") for output in shown(notebook)}
    assert shown(notebook) and len(text) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path, request, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell["outputs"] = []
    options = {"kernel_name": "python3", "record_timing": False, "resources": {"metadata": {"path": str(FOLDER)}}}
    client = nbclient.NotebookClient(notebook, timeout=1200, **options)
    client.execute()  # raises CellExecutionError, which shows the cell
    assert any("image/jpeg" in output.get("data", {}) for output in shown(notebook)) or path.stem == "train"
    if request.config.getoption("--write-docs"):
        for cell in code_cells(notebook):  # warnings about the reader's own installation
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        nbformat.write(notebook, path)
