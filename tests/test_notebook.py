"""The notebook beside this file, cell by cell, as Jupyter executes it."""

import asyncio
import os
import time
import warnings
from pathlib import Path

import pytest
from commands import environment

from studyloom.study.opening import open_study

pytestmark = [pytest.mark.chaos, pytest.mark.nightly]  # Jupyter takes half a minute
NOTEBOOK = Path(__file__).with_name("notebook.ipynb")
LONG = """\
import studyloom
study = studyloom.run(
    "studies/spirals.py",
    overrides=["study.name=long", "train.epochs=100000", "launcher.workers=1"],
)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs, and the output of one more cell that was interrupted."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(JUPYTER_PLATFORM_DIRS="1", IPYTHONDIR=str(folder / "ipython")))
    try:
        with warnings.catch_warnings():  # of Jupyter's own
            warnings.simplefilter("ignore")
            client = nbclient.NotebookClient(
                notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
            )
            interrupted = asyncio.run(execute(client, folder))
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return notebook.cells, interrupted


async def execute(client, folder):
    """Executes all cells, and then one that takes long, interrupted while it shows progress.

    Returns:
        The name of the exception, what the cell showed before and after, and the slots held.
    """
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell

    cells = client.nb.cells
    async with client.async_setup_kernel():
        for index, cell in enumerate(cells):
            await client.async_execute_cell(cell, index)
        cells.append(cell := new_code_cell(LONG))
        running = asyncio.create_task(client.async_execute_cell(cell, len(cells) - 1))
        end = time.monotonic() + 120
        while "search: 0 of" not in (before := html_of(cell)) and not running.done():
            assert time.monotonic() < end, before
            await asyncio.sleep(0.1)
        await client.km.interrupt_kernel()
        with pytest.raises(CellExecutionError) as caught:
            await running
    stored = open_study(f"sqlite:///{folder}/runs/long/study.db", "long")
    held = stored.ledger.counts()["held"]
    stored.close()
    return caught.value.ename, before, html_of(cell), held


def html_of(cell):
    shown = [output.get("data", {}) for output in cell.outputs]
    return "".join(data.get("text/html", "") for data in shown)


def outputs(cells, source):
    """The outputs of the cell that begins with a text, by MIME type."""
    cell = next(cell for cell in cells if cell.source.startswith(source))
    return [output.get("data", {}) for output in cell.outputs]


def test_a_notebook_shows_its_study_trials_plots_and_predictions(executed):
    shown = outputs(executed[0], "study = studyloom.run")
    assert "spirals: 4 of 4 trials" in shown[-1]["text/html"]
    (frame,) = outputs(executed[0], "study.trials")
    assert 'class="dataframe"' in frame["text/html"]
    assert "params.model.width" in frame["text/html"]
    for source in ("from optuna.visualization", "import plotly"):
        figure = outputs(executed[0], source)[-1]
        assert figure["application/vnd.plotly.v1+json"]["data"]
    (accuracy,) = outputs(executed[0], "from studies.spirals import load")
    assert 0.3 < float(accuracy["text/plain"]) <= 1.0


def test_a_cell_shows_progress_and_an_interrupt_releases_its_trial(executed):
    _, (name, before, after, held) = executed
    assert name == "KeyboardInterrupt"
    assert "search: 0 of" in before
    assert "search: 0 of" not in after
    assert held == 0
