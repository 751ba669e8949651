"""The words of `studyloom tune`: what is searched, what is passed, and the baseline."""

import argparse
import importlib.util
import shlex

import pytest
from scripts_to_tune import LINES, copy_scripts

from studyloom.commands.tuning import tune
from studyloom.config.values import flatten
from studyloom.errors import ConfigError
from studyloom.extras.integrations import command
from studyloom.extras.tune.command_line import OWN_OPTIONS, parse_search, parse_test
from studyloom.extras.tune.search import KINDS, RESERVED
from studyloom.extras.tune.value_ranges import Values, parse_values
from studyloom.space.language import KEYS_BY_KIND
from studyloom.space.rule import read_space

RUNNING = [name for name in LINES if name != "constant"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = copy_scripts(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def parse(words, metric="loss", direction="minimize", **settings):
    return parse_search(shlex.split(words), metric=metric, direction=direction, **settings)


def errors_of(words, **settings):
    with pytest.raises(ConfigError) as raised:
        parse(words, **settings)
    return str(raised.value)


@pytest.mark.parametrize("name", RUNNING)
def test_a_script_is_searched_from_one_line_with_its_own_defaults(project, name):
    line = LINES[name]
    config = parse(line.words, line.metric, line.direction).search.to_config()
    assert config["objective"]["run"] == line.run
    assert config["objective"].get("flags", {}) == line.flags
    params = {}
    for key, value in flatten(config["space"]["params"]):
        path, _, part = key.rpartition(".")
        if part == "default":
            params[path] = value
    assert params == line.baseline


def test_a_config_file_of_a_configurator_sets_the_baseline(project):
    (project / "small.py").write_text("n_layer = 3\n")
    line, *_ = parse("configured.py small.py --n_layer=2:12 --learning_rate=1e-4:1e-2").notes
    assert "n_layer=3 (small.py, line 1), learning_rate=0.0006 (configured.py, line 3)" in line


@pytest.mark.parametrize("name", ["clicked", "typed_app"])
def test_no_package_of_a_script_is_imported_to_read_its_defaults(project, name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", None)
    (project / f"{name}.py").write_text(
        (project / f"{name}.py").read_text() + "\nraise SystemExit('it was executed')\n"
    )
    line = LINES[name]
    assert parse(line.words, line.metric).search.hyperparameters


def test_a_script_without_arguments_is_refused_and_its_constant_named(project):
    error = errors_of(LINES["constant"].words)
    assert "constant.py reads no arguments" in error
    assert "line 3 has LR = 0.1" in error
    assert 'parser.add_argument("--lr", type=float, default=0.1)' in error
    assert "add an argument" in errors_of("constant.py --decay 0.1:0.5")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("16:256", Values("int", (16, 256))),
        ("16:256:16@64", Values("int", (16, 256), step=16, default=64)),
        ("1e-4:1e-1:log", Values("float", (1e-4, 1e-1), log=True)),
        ("1e-4:1:log@1e-3", Values("float", (1e-4, 1.0), log=True, default=1e-3)),
        ("0:1.", Values("float", (0.0, 1.0))),
        ("-1:1", Values("int", (-1, 1))),
        ("0.0:0.5:0.1", Values("float", (0.0, 0.5), step=0.1)),
        ("relu,gelu", Values("choice", ("relu", "gelu"))),
        ("relu,gelu@gelu", Values("choice", ("relu", "gelu"), default="gelu")),
        ("acc@1,acc@5", Values("choice", ("acc@1", "acc@5"))),
        ("1,2,4", Values("choice", (1, 2, 4))),
        ("0.1,1e-2", Values("choice", (0.1, 0.01))),
        ("007,010", Values("choice", ("007", "010"))),
        ("True,False", Values("choice", ("True", "False"))),
    ],
)
def test_a_range_or_list_is_searched(text, values):
    assert parse_values("--x", text) == values


@pytest.mark.parametrize(
    "text",
    ["0.1", "64", "cuda:0", "host:29500", "[1,2]", "{'a':1,'b':2}", "a,", ",a", "a:/b", "1:2:3:4"],
)
def test_any_other_value_is_passed_as_it_is(text):
    assert parse_values("--x", text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("16:9", "the low end of a range must be below its high end 9"),
        ("0.0:1.0:log", "a range with :log must begin above 0"),
        ("1:5:0", "the step of a range must be above 0"),
        ("1:5@x", "the baseline after @ must be a number of kind int"),
        ("64,64", "a list must not have a value twice"),
        ("1.0:1e400", "the ends of a range must be finite"),
        (f"1:{'9' * 5000}", "the ends of a range must be finite"),
    ],
)
def test_a_wrong_range_says_how_it_is_passed_instead(text, reason):
    with pytest.raises(ConfigError, match=reason) as raised:
        parse_values("--ratio", text)
    assert "--fixed ratio" in str(raised.value)


def test_all_errors_come_at_once(project):
    error = errors_of("typed.py --lr 1:0 --width 0.5:1.5 --epochs 5:5")
    assert "--lr 1:0: the low end" in error
    assert "--width 0.5:1.5 is a range of floats, and typed.py takes an integer" in error
    assert "--epochs 5:5: the low end" in error


def test_a_fixed_argument_is_passed_as_it_is(project):
    search = parse(
        "typed.py --lr 0.1:0.5 --ratio 16:9 --tags=a,b", fixed=["ratio", "--tags"]
    ).search
    assert search.command[-3:] == ["--ratio", "16:9", "--tags=a,b"]


@pytest.mark.parametrize("words", ["--trials 8", "--trials=8", "--trials 8:16"])
def test_an_option_of_studyloom_after_the_script_is_refused(project, words):
    expected = (
        "--trials is an option of studyloom tune: put it before typed.py; if typed.py has it too, "
        "put --fixed trials there"
    )
    assert expected in errors_of(f"typed.py --lr 0.1:0.5 {words}")
    assert "put it before torchrun; if typed.py has" in errors_of(
        f"torchrun --standalone typed.py --lr 0.1:0.5 {words}"
    )
    search = parse("typed.py --lr 0.1:0.5 --trials 8", fixed=["trials"]).search
    assert search.command[-2:] == ["--trials", "8"]


@pytest.mark.parametrize(
    "source",
    [
        "import argparse\nparser.add_argument('--lr')\nparser.add_argument('--trials')\n",
        "import argparse\nparser.add_argument('--lr')\nparser.add_argument('--trials-max')\n",
        "import sys\nprint(sys.argv)\n",
        "import argparse\nparser.add_argument('--other')\nparser = library.extend(parser)\n",
    ],
    ids=["declared", "abbreviated", "unknown parser", "declared elsewhere"],
)
def test_an_option_that_a_script_may_have_is_passed_to_it(project, source):
    (project / "own.py").write_text(source)
    assert parse("own.py --lr 0.1:0.5 --trials 8").search.command[-2:] == ["--trials", "8"]


def test_the_options_of_studyloom_are_known_by_their_names():
    parser = argparse.ArgumentParser(add_help=False)
    for add_argument in tune.arguments:
        add_argument(parser)
    options = [word for word in parser.format_usage().split() if "--" in word]
    assert {option.strip("[](") for option in options} == {*OWN_OPTIONS}


def test_braces_and_interpolations_of_other_arguments_stay_text(project):
    search = parse("typed.py --lr 0.1:0.5 --format {lr} --home ${HOME}").search
    assert search.command[-4:] == ["--format", "{{lr}}", "--home", "${{HOME}}"]
    assert search.to_config()["objective"]["run"].endswith(r"--format {{lr}} --home '\${{HOME}}'")


@pytest.mark.parametrize("text", ["-1.0:1.0", "0.5,-1e-5"])
def test_a_negative_value_stands_in_the_word_of_its_option(project, text):
    assert parse(f"typed.py --shift {text}").search.command[-1] == "--shift={shift}"


SHORT = {
    "argparse": ("import argparse\nparser.add_argument('-x', type=float)\n", ["-x={x}"]),
    "click": ("import click\n@click.option('-x', type=float)\ndef f(x): ...\n", ["-x", "{x}"]),
    "unknown": ("import sys\nprint(sys.argv)\n", ["-x", "{x}"]),
}


@pytest.mark.parametrize("kind", SHORT)
def test_a_negative_value_of_a_short_option_suits_its_parser(project, kind):
    source, words = SHORT[kind]
    (project / "short.py").write_text(source)
    parsed = parse("short.py -x -1e-5:1e-5")
    assert parsed.search.command[2:] == words
    note = (
        "-x gets a negative value as the next word, which some programs take for an option; "
        "-x=-1e-5:1e-5 gives it in one word"
    )
    assert (note in parsed.notes) == (kind == "unknown")
    assert parse("short.py -x=-1e-5:1e-5").search.command[2:] == ["-x={x}"]
    assert note not in parse("short.py -x 1e-5:1e-4").notes


def test_argparse_and_click_read_a_negative_value_as_it_is_written():
    parser = argparse.ArgumentParser()
    parser.add_argument("-x", type=float)
    assert parser.parse_args(["-x=-1e-05"]).x == -1e-5
    click = pytest.importorskip("click")
    option = click.Option(["-x"], type=float)
    command = click.Command("short", params=[option], callback=lambda x: x)
    assert command.main(["-x", "-1e-05"], standalone_mode=False) == -1e-5


def test_the_baseline_is_typed_or_declared_or_in_the_middle(project):
    line, *_ = parse("typed.py --lr 1e-4:1e-1:log@0.02 --width 16:256 --new 1e-4:1e-2:log").notes
    assert line == (
        "baseline  lr=0.02, width=64 (typed.py, line 7), "
        "new=0.001 (the middle, since typed.py shows no default)"
    )
    line, *_ = parse("typed.py --lr 0.01:0.1 --epochs 4:8:4").notes
    assert "lr=0.01 (the nearest to the default 0.001, which is outside)" in line
    assert "epochs=4 (the nearest to the default 3, which is outside)" in line
    line, *_ = parse("chosen.py --activation relu,tanh").notes
    assert "activation=relu (the default gelu is not in the list)" in line


def test_a_range_of_integers_for_a_float_is_noted(project):
    _, note = parse("typed.py --lr 0:1").notes
    assert note == (
        "--lr 0:1 gives integers only, and typed.py takes a float (typed.py, line 6); 0.0:1 gives "
        "every number"
    )


def test_a_seed_is_neither_searched_nor_changed_if_it_is_given(project):
    assert "the seed is no hyperparameter" in errors_of("typed.py --seed 1:5")
    search = parse("typed.py --lr 0.1:0.5 --seed 5").search
    assert search.command == ["python", "typed.py", "--lr", "{lr}", "--seed", "5"]


def test_names_that_a_command_reserves_get_another_name(project):
    assert RESERVED == command.RESERVED
    search = parse("typed.py --gpus 1,2 --trial 1:2 --model a,b --model.width 1:2").search
    names = [hyperparameter.name for hyperparameter in search.hyperparameters]
    assert names == ["gpus_", "trial_", "model", "model_width_"]


def test_names_of_kinds_of_ranges_get_another_name(project):
    assert {*KINDS} == {*KEYS_BY_KIND}
    config = parse("typed.py --choice a,b --float 1:2 model.list=1:2 model.width=1:2").search
    space = read_space(config.to_config()["space"]["params"], lambda group: [])
    assert {node.name for node in space.nodes} == {
        "choice_",
        "float_",
        "model.list_",
        "model.width",
    }


@pytest.mark.parametrize(
    ("words", "prefix"),
    [
        ("-m typed --lr 0.1:0.5", "python -m typed"),
        ("python -u typed.py --lr 0.1:0.5", "python -u typed.py"),
        ("accelerate launch -m typed --lr 0.1:0.5", "accelerate launch -m typed"),
        ("./train --lr 0.1:0.5 --model typed.py", "./train"),
    ],
)
def test_the_program_is_a_module_a_launcher_or_any_executable(project, words, prefix):
    search = parse(words).search
    assert " ".join(search.command).startswith(prefix)
    assert "{lr}" in search.command
    assert search.name == ("train" if prefix == "./train" else "typed")


def test_a_missing_script_or_range_is_named(project):
    assert "none.py: there is no such file" in errors_of("none.py --lr 0.1:0.5")
    assert "none of the arguments of typed.py has a range" in errors_of("typed.py --lr 0.1")
    assert "needs a program" in errors_of("")
    assert "must follow the name of an argument" in errors_of("typed.py 0.1:0.5 --lr 1e-3:1e-1")


def test_the_winner_is_tested_by_a_value_a_program_or_both(project):
    assert parse_test(["test_acc"]).value == "test_acc"
    assert parse_test([r"test acc (\S+)"]).value == r"test acc (\S+)"
    test = parse_test(["typed.py --lr {lr}", "test_acc"])
    assert test.command == ("python", "typed.py", "--lr", "{lr}")
    assert test.value == "test_acc"
    assert parse_test([r"the model's acc (\S+)"]).value == r"the model's acc (\S+)"
    with pytest.raises(ConfigError, match="--test b: may be given twice, with a program"):
        parse_test(["a", "b"])
