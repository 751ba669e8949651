"""A command as the objective: what it is told, what is read of it, and that nothing is left."""

import functools
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from live_processes import imitate_killpg_of_macos, wait_for_zombie
from omegaconf import OmegaConf
from projects import COMMAND, SCRIPT, STEP, VALUE, write_project
from toys import Never, Signal, define_own_loop, validate_search

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.definition.prepare import load_data
from studyloom.errors import CommandFailed, ConfigError
from studyloom.extras.integrations import command as command_module
from studyloom.extras.integrations.command import Command
from studyloom.processes import is_alive
from studyloom.space.language import parse_space
from studyloom.storage.attributes import RESUMED
from studyloom.storage.opening import create_study
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

STUDY = f"""
defaults:
  [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, space: none, _self_]
study: {{name: own}}
{COMMAND}"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = write_project(tmp_path / "project", {"main.py": SCRIPT, "conf/own.yaml": STUDY})
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ask(project):
    return functools.partial(define_own_loop, project / "conf")


@pytest.fixture
def config(tmp_path):
    return lambda **params: OmegaConf.create({"run_dir": str(tmp_path / "run"), "params": params})


def says(text, value=r"v=(\S+)", step=None):
    """A command of Python code."""
    return Command(f"{sys.executable} -c '{text}'", value, step)


def errors_of(definition):
    try:
        validate_search(definition, load_data(definition.config))
    except ConfigError as error:
        return error.errors
    return []


def test_values_are_reported_by_step_and_the_last_is_the_trials_value(project, config, make_run):
    command, run = Command("python main.py --lr {lr}", VALUE, STEP), make_run()
    value = command(config(lr=0.05), run)
    assert [step for step, _ in run.reports] == [1, 2, 3, 4, 5, 6]
    assert run.reports[-1][1] == value
    assert (run.dir / "last.json").exists()
    assert "python main.py --lr 0.05" in Path(config().run_dir, "logs/trial-3.log").read_text()


def test_a_step_is_in_the_line_or_an_earlier_one_or_values_are_counted(config, make_run):
    text = 'print("v=9\\nepoch 0 v=5\\nv=6\\nepoch 2\\nother\\nv=4\\nepoch 1 v=3")'
    run = make_run()
    assert says(text, step=r"(e)poch (?P<step>\d+)")(config(), run) == 4.0
    assert run.reports == [(0, 5.0), (2, 4.0)], "each once"
    run = make_run()
    (run.dir / "checkpoint").touch()
    assert says('for v in (3, 2, 1): print("v=%d" % v)')(config(), run) == 1.0
    assert run.reports == [(1, 3.0), (2, 2.0), (3, 1.0)]
    names = {path.name for path in run.dir.iterdir()}
    assert names == {".output", ".work"}, "it begins anew, as the counting does"


def test_values_from_before_a_kill_are_kept_and_not_reported_again(config, make_run):
    text = 'for i in (1, 2, 3): print("epoch %d v=%d" % (i, i))'
    run = make_run()
    (run.dir / ".output").write_text("epoch 1 v=1\nepoch 2 v=2.5\nepoch 3 v=0.00")
    assert says(text, step=r"epoch (\d+)")(config(), run) == 3.0
    assert run.reports == [(1, 1.0), (2, 2.5), (3, 3.0)]
    finished = make_run()
    assert says('print("finished already")', step=r"epoch (\d+)")(config(), finished) == 3.0


def test_a_command_gets_seed_trial_and_folder_and_each_value_as_one_word(
    config, make_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run, names = make_run(), "STUDYLOOM_SEED STUDYLOOM_TRIAL STUDYLOOM_CHECKPOINT_DIR"
    code = (
        f'import os, sys; print(sys.argv[1:], *(os.environ[n] for n in "{names}".split()), "v=1")'
    )
    command = Command(f"{sys.executable} -c '{code}' {{one}} pre={{two}} {{no}}", r"v=(\S+)")
    words = {"one": "$(touch x) '; touch x; '\"", "two": "{seed} *\n--flag", "no": ""}
    command(config(**words), run)
    told = [words["one"], f"pre={words['two']}", ""]
    assert f"{told} 7 3 {run.dir} v=1" in (tmp_path / "run/logs/trial-3.log").read_text()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("visible", "count"), [([], 1), (["4", "7"], 2)])
def test_gpus_in_a_command_is_the_number_that_the_worker_sees(
    config, make_run, monkeypatch, visible, count
):
    monkeypatch.setattr(command_module, "visible_gpus", lambda: visible)
    assert says('print("v={gpus}")')(config(), make_run()) == count


def test_a_command_without_a_value_fails_with_its_last_lines(config, make_run):
    for text, words in (
        ('print("lost")', "objective.value found nothing, with the pattern v=.*; the last"),
        ("pass", "it printed nothing"),
        ('print("v=lots")', "objective.value found 'lots', which is not a valid number"),
        ('import sys; sys.exit("bad rate")', "ended with exit code 1; the last lines .* bad rate"),
    ):
        with pytest.raises(CommandFailed, match=words):
            says(text)(config(), make_run())


def test_an_endless_line_and_much_output_take_little_memory(config, make_run):
    text = 'import sys; [sys.stdout.write("x" * 1000000) for _ in range(5)]; print("v=1")'
    tracemalloc.start()
    assert says(text)(config(), make_run()) == 1.0
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_the_process_group_ends_when_a_report_raises_even_without_sigterm(
    config, make_run, monkeypatch
):
    """And a session of its own."""
    monkeypatch.setattr(command_module, "SECONDS_TO_END", 0.2)
    text = (
        "import os, signal, subprocess, sys, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        'kids = [subprocess.Popen(["sleep", "1000"], start_new_session=s) for s in (0, 1)]; '
        'print("pids", os.getpid(), *(k.pid for k in kids)); print("v=1"); time.sleep(1000)'
    )

    class Pruned(Exception): ...

    class Run(type(make_run())):
        def __call__(self, value, step):
            raise Pruned

    with pytest.raises(Pruned):
        says(text)(config(), Run(make_run().dir))
    log = Path(config().run_dir, "logs/trial-3.log").read_text().splitlines()
    pids = [int(word) for word in log[1].split()[1:]]
    assert len(pids) == 3
    until(lambda: not any(map(is_alive, pids)))


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_command_that_is_a_zombie_has_ended_as_on_macos(tmp_path, monkeypatch):
    imitate_killpg_of_macos(monkeypatch)
    with command_module.run_process(["true"], {}, tmp_path / "output") as (process, _):
        wait_for_zombie(process.pid)
    assert process.returncode is not None


@pytest.mark.chaos
def test_a_command_ends_when_the_process_that_runs_it_is_killed(tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from studyloom.extras.integrations.command import run_process\n"
        "command = ['sleep', '1000']\n"
        "with run_process(command, dict(os.environ), Path(sys.argv[1])) as (process, _):\n"
        "    print(process.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "output"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until(lambda: not is_alive(pid))


def test_a_valid_study_has_command_patterns_and_script_in_its_definition(ask):
    definition = ask()
    assert errors_of(definition) == []
    (mistake,) = errors_of(ask("objective.test=posixpath.join"))
    assert mistake.startswith("objective.test: a command returns no network to test")
    identity = definition.identity("")
    assert identity["objective.run"] == "python main.py --lr {lr} --seed {seed}"
    assert {"objective.value", "objective.step", "code.main.py"} <= {*identity}
    Path("main.py").write_text("# a comment\n" + Path("main.py").read_text())
    assert ask().identity("") == identity
    Path("main.py").write_text(Path("main.py").read_text().replace("range(50)", "range(51)"))
    assert ask().identity("")["code.main.py"] != identity["code.main.py"]


def test_the_key_keep_is_not_part_of_the_definition(ask):
    assert ask("+objective.keep=true").identity("") == ask().identity("")
    assert ask("+objective.cwd=project").identity("") != ask().identity("")


def test_the_notes_of_a_command_are_among_the_notes_of_the_study(ask):
    words = "each trial runs in its own folder, which is removed when the trial ends; "
    assert words + "objective.keep=true keeps it" in ask().notes(TrainingData())
    assert ask("+objective.cwd=project").notes(TrainingData()) == []


@pytest.mark.parametrize("finds_files", [True, False])
def test_a_note_says_whether_a_resumed_command_finds_its_files(
    ask, sqlite_url, tmp_path, caplog, finds_files
):
    """Without steps its files are removed, and it starts again from the beginning."""
    caplog.set_level("INFO")
    definition = ask() if finds_files else ask("objective.step=null")
    stored = create_study(
        sqlite_url, "own", definition.identity(""), 1, objectives=definition.objectives
    )
    stage = Stage("search", stored, definition, Strategy(definition), 1)

    def work(stopping):
        Worker(stage, TrainingData(), stopping, tmp_path / "checkpoints").run()

    work(Signal(2))
    stored.ledger.claim("w", 1, 60.0)
    stored.ledger.record_death("w", "it was killed")
    work(Never())
    words = "runs its command again, in the same folder" if finds_files else "starts again from the"
    assert f"trial 0 {words}" in caplog.text
    assert ("from the beginning" in caplog.text) is not finds_files
    (trial,) = stored.trials()
    assert trial.user_attrs[RESUMED].get("has_files", False) is finds_files
    assert [*trial.intermediate_values] == [1, 2, 3, 4, 5, 6]


GOOD = {"run": "python main.py --lr {lr}", "value": r"v=(\S+)", "step": r"e=(\d+)"}
WRONG = {
    "a placeholder that is misspelt": (
        {"run": "python main.py --lr {lt}"},
        ["there is no value for {lt}", "did you mean lr?", "no place for it; write {lr} there"],
    ),
    "a program that is not there": ({"run": "pyhton x.py {lr}"}, ["program pyhton cannot be run"]),
    "no command": ({"run": 3}, ["objective.run must be a command", "got 3"]),
    "several at once": (
        {"value": "(v", "step": "(a)(b)", "run": "nothing {lr}"},
        ["objective.value must be a regular", "objective.step: (a)(b) must have a group (?P<step>"],
    ),
    "a folder and no step": (
        {"step": None, "run": "python main.py {lr} {checkpoint_dir}"},
        ["objective.step must be set"],
    ),
    "a parameter that the command is not told": (
        {"params": {"lr": 0.1, "depth": 2}, "space": {"params": {"depth": {"int": [1, 3]}}}},
        ["space.params.depth: it would change nothing", "write {depth} there"],
    ),
    "a name of ours": ({"params": {"seed": 1, "lr": 1}}, ["params.seed: {seed} is reserved"]),
}


def test_an_error_is_reported_before_trial_0(project, config):
    usual = {"params": {"lr": 0.1}, "space": {"params": {"lr": {"float": [0, 1]}}}} | GOOD
    for wrong, words in WRONG.values():
        given = usual | wrong
        space, params = parse_space(given.pop("space"), lambda group: []), given.pop("params")
        told = "\n".join(Command(**given).check(config(**params), space))
        assert [word for word in words if word not in told] == [], told
