"""What a cell of a notebook shows; and the notebook beside this file, as Jupyter executes it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from commands import environment
from live_processes import until

import studyloom
from studyloom.storage.opening import open_study
from studyloom.views import live_display

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")
LONG = """\
import studyloom
study = studyloom.run(
    "studies/spirals.py",
    overrides=["study.name=long", "train.epochs=100000", "launcher.workers=1"],
)
"""


OPTUNA_IN_NOTEBOOK = """
import sys, types
sys.modules["ipykernel.zmqshell"] = types.ModuleType("zmqshell")
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: object()
sys.modules["ipywidgets"] = None
import studyloom
try:
    {call}
except studyloom.ConfigError:
    pass
assert "tqdm.autonotebook" in sys.modules
"""


@pytest.mark.parametrize(
    "call",
    ["studyloom.search", pytest.param("studyloom.run('none.yaml')", marks=pytest.mark.chaos)],
)
def test_a_notebook_without_ipywidgets_shows_no_warning_of_tqdm(call):
    code = OPTUNA_IN_NOTEBOOK.format(call=call)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


# A kernel that is this process


class ZMQInteractiveShell:
    """By this name of IPython's shell a console knows that it prints into a notebook."""


class Cell(list):
    """The outputs of a cell: for each what it has shown, one after the other, by MIME type."""

    def display(self, content, *, raw, display_id):
        assert raw
        assert display_id
        self.append(Output([content]))
        return self[-1]

    @property
    def lines(self):
        """The lines that stay in the only output."""
        (output,) = self
        return output[-1]["text/plain"].strip().splitlines()

    def has_shown(self, words):
        return any(words in content["text/html"] for output in self for content in output)


class Output(list):
    def update(self, content, *, raw):
        assert raw
        self.append(content)


@pytest.fixture
def cell(monkeypatch):
    """The outputs of a cell that this process runs."""
    display = pytest.importorskip("IPython.display")
    outputs = Cell()
    monkeypatch.setattr(display, "display", outputs.display)
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(live_display, "LIVE_INTERVAL", 0.01)
    during.clear()
    return outputs


during = []  # what `square` calls before it suggests anything, the first one first


def square(trial):
    if during:
        during.pop(0)()
    return trial.suggest_float("x", -1, 1) ** 2


def search_in_cell(run_dir, **options):
    few = {"trials": 3, "workers": 1, "sampler": "random", "winner": {"top": 1, "seeds": 2}}
    return studyloom.search(square, minimize="y", run_dir=run_dir, **few | options)


def test_a_search_in_a_cell_is_one_output_whose_last_lines_are_the_result(cell, tmp_path):
    during.append(lambda: until(lambda: cell.has_shown("search: 0 of 3")))
    search_in_cell(tmp_path).close()
    assert cell.has_shown("square begins: 3 trials to do")
    first, counts, *others = cell.lines
    assert "2 new seeds, untested" in first
    assert counts.startswith("square: 3 of 3 trials – 3 complete, 0 pruned, 0 failed, ")
    assert others[-2:] == [
        f"report    {tmp_path}/report.html",
        "next      run the cell again with trials=6",
    ]
    assert len(others) <= 7, "two lines say that the seed changes nothing"
    assert "winner" in "".join(others)
    assert "begins" not in "".join(others)
    search_in_cell(tmp_path, quiet=True).close()
    assert len(cell) == 1


def test_a_search_that_its_target_has_ended_says_how_the_call_continues(cell, tmp_path):
    search_in_cell(tmp_path, study={"target": 1e6}, winner=False).close()
    *_, call, reason = cell.lines
    assert call == "next      run the cell again with study={'target': None}"
    assert reason.startswith("the search ended after 1 of 3 trials: trial 0 has reached study.")


def test_an_interrupted_cell_resumes_when_it_is_run_again(cell, tmp_path):
    during[:] = [lambda: None, lambda: signal.raise_signal(signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt, match="stopped; run the cell again to resume it"):
        search_in_cell(tmp_path)
    assert cell.lines[-1] == "stopped; run the cell again to resume here"
    assert "1 complete" in cell.lines[1]
    assert not cell.has_shown("command")
    cell.clear()
    search_in_cell(tmp_path).close()
    assert cell.has_shown("square resumes: 2 trials to do")
    assert "3 of 3 trials" in cell.lines[1]


# Jupyter, which takes half a minute


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


@pytest.mark.chaos
@pytest.mark.nightly
def test_a_notebook_shows_its_study_trials_plots_and_predictions(executed):
    searched, shown = filter(None, outputs(executed[0], "study = studyloom.run"))
    lines = searched["text/plain"].strip().splitlines()
    assert lines[0].startswith("spirals: 4 of 4 trials")
    assert len(lines) <= 9, lines
    assert "<svg " in shown["text/html"]
    (winner,) = outputs(executed[0], "study.winner")
    assert "selection gap</td>" in winner["text/html"]
    (frame,) = outputs(executed[0], "study.trials")
    assert 'class="dataframe"' in frame["text/html"]
    assert "params.model.width" in frame["text/html"]
    for source in ("from optuna.visualization", "import plotly"):
        figure = outputs(executed[0], source)[-1]
        assert figure["application/vnd.plotly.v1+json"]["data"]
    (accuracy,) = outputs(executed[0], "from studies.spirals import load")
    assert 0.3 < float(accuracy["text/plain"]) <= 1.0


@pytest.mark.chaos
@pytest.mark.nightly
def test_a_cell_shows_progress_and_an_interrupt_releases_its_trial(executed):
    _, (name, before, after, held) = executed
    assert name == "KeyboardInterrupt"
    assert "search: 0 of" in before
    assert "search: 0 of" not in after
    assert "stopped; run the cell again to resume here" in after
    assert "command" not in after
    assert held == 0
