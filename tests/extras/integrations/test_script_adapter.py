"""A script as the objective: named values in its lines, their steps, and what an error shows."""

import math
import sys
import time

import pytest
from omegaconf import OmegaConf

from studyloom.errors import CommandFailed
from studyloom.extras.integrations.printed_values import (
    NamedValueReader,
    find_named_numbers,
    find_steps,
    suggest_name,
)
from studyloom.extras.integrations.script import Script, ScriptOutput


@pytest.fixture
def config(tmp_path):
    def make(metric="val_acc", **params):
        sections = {"run_dir": str(tmp_path / "run"), "objective": {"metric": metric}}
        return OmegaConf.create({**sections, "params": params})

    return make


def read(*lines, metric="val_acc", **patterns):
    """The values that are reported for some lines, by step."""
    reports = []
    settings = {"value": "", "step": None} | patterns
    output = ScriptOutput(
        report=lambda value, step: reports.append((step, value)), metric=metric, **settings
    )
    for line in lines:
        output.read_line(line)
    output.end()
    return reports


@pytest.mark.parametrize(
    "line",
    [
        "val_acc=0.93",
        "val_acc: 0.93",
        "loss 0.2, val_acc 0.93 (best 0.95)",
        "{'loss': 0.2, 'val_acc': 0.93, 'epoch': 1.0}",
        '{"loss": 0.2, "val_acc": 0.93}',
        "val_acc = tensor(0.93, device='cuda:0')",
        "│ val_acc │ 0.93 │",
        "\x1b[1mval_acc\x1b[0m: \x1b[32m0.93\x1b[0m",
        "train_acc=0.1 val_acc=0.5 val_acc=0.93",
        "val_acc -> 0.93.",
        "{'loss': '0.2', 'val_acc': '0.93'}",
        "10/10 ━━━ 1s 10ms/step - loss: 0.2 - val_acc: 0.93",
        "Epoch 2: 100%|███| 10/10 [00:00<00:00, 95.1it/s, v_num=0, val_acc=0.93]",
    ],
)
def test_a_named_value_is_found(line):
    assert NamedValueReader("val_acc").read(line).text == "0.93"


@pytest.mark.parametrize("text", ["nan", "-inf", "NaN", "Infinity", "-Infinity"])
def test_a_value_that_is_not_finite_is_found_as_python_and_json_write_it(text):
    for line in (
        f"val_acc {text}",
        f'{{"val_acc": {text}, "epoch": 2}}',
        f"tensor(val_acc={text})",
    ):
        assert NamedValueReader("val_acc").read(line).text == text
    assert NamedValueReader("val_acc").read("val_acc Infinitely good") is None


@pytest.mark.parametrize(
    "line",
    [
        "best_val_acc=0.93",
        "Best val_acc: 0.93",
        "val_acc_top5=0.93",
        "eval/val_acc=0.93",
        "val_acc took 12ms",
        "val_acc",
        "the val_acc was not computed",
    ],
)
def test_another_name_or_no_number_is_none(line):
    assert NamedValueReader("val_acc").read(line) is None


def test_a_name_may_have_blanks():
    reader = NamedValueReader("val loss")
    assert reader.read("step 250: train loss 2.5, val loss 2.75").text == "2.75"
    assert reader.read("step 250: train loss 2.5") is None


SIMILAR = ["val_acc", "val acc", "Val-Acc", "VAL_ACC", "valAcc"]


@pytest.mark.parametrize("printed", SIMILAR)
@pytest.mark.parametrize("name", SIMILAR)
def test_names_may_differ_in_blanks_underscores_hyphens_and_case(name, printed):
    assert NamedValueReader(name).read(f"loss=0.2 {printed}=0.93").text == "0.93"
    assert read(f"| epoch | {printed} |", "| 1 | 0.93 |", metric=name) == [(1, 0.93)]
    assert NamedValueReader(name).read(f"best {printed}=0.93") is None
    assert NamedValueReader(name).read("val/acc=0.93") is None


def test_a_similar_name_does_not_count_beside_the_name_itself():
    assert NamedValueReader("val_acc").read("val_acc=0.93, Val Acc=0.5").text == "0.93"
    reader = NamedValueReader("loss")
    assert reader.read("Loss 0.5").text == "0.5"
    assert reader.read("loss 0.25").text == "0.25"
    assert reader.read("Loss 0.5") is None
    table = ["| epoch | Loss | loss |", "| 1 | 0.5 | 0.25 |", "Loss 0.5"]
    assert read(*table, metric="loss") == [(1, 0.25)]


def test_a_name_of_underscores_is_similar_to_itself_only():
    assert NamedValueReader("_").read("loss 0.5") is None
    assert NamedValueReader("_").read("_ 0.5").text == "0.5"


@pytest.mark.parametrize(
    "lines",
    [
        ["epoch  loss  val_acc", "-----  ----  -------", "    1   0.5     0.93"],
        ["| epoch | loss | val_acc |", "|---|---|---|", "| 1 | 0.5 | 0.93 |"],
        ["epoch,loss,val_acc", "1,0.5,0.93"],
        ["  Epoch   GPU_mem   val_acc", "    1/3      2.1G      0.93"],
        ["epoch\tloss\tval_acc\ttime", "1\t0.5\t0.93\t0:03"],
        ["┃ epoch ┃ loss ┃ val_acc ┃", "│ 1 │ 0.5 │ 0.93 │"],
    ],
)
def test_a_table_has_its_names_in_a_header(lines):
    assert read(*lines) == [(1, 0.93)]


def test_a_sentence_is_no_row_of_a_table():
    assert read("loss  val_acc", "epoch 2", "2 workers") == []


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("Epoch 3: ", 3),
        ("Epoch: [3][10/50]", 3),
        ("Epoch 003/100 -", 3),
        ("'epoch': 3.0,", 3),
        ("epoch=3 step=700", 3),
        ("global_step: 3", 3),
        ("iteration 3 |", 3),
        ("Namespace(epochs=9, num_epoch=8, step_size=7) epoch 3", 3),
    ],
)
def test_the_step_is_the_number_after_epoch_step_or_iter(line, step):
    assert read(f"{line} val_acc=0.5") == [(step, 0.5)]
    assert read(line, "val_acc=0.5") == [(step, 0.5)]


def test_many_blanks_after_the_word_of_a_step_cost_no_time():
    began = time.perf_counter()
    assert find_steps(f"epoch{' ' * 3000}x step{' ' * 3000}x iter{' ' * 3000}:{' ' * 3000}[ 4") == {
        "iter": 4
    }
    assert time.perf_counter() - began < 10  # it took minutes, with the cube of the blanks


def test_a_long_word_of_many_names_costs_no_time():
    began = time.perf_counter()
    assert find_named_numbers(f"@loss 0.2, hits@k: 0.5, {'a@' * 20_000}b") == {
        "loss": "0.2",
        "hits@k": "0.5",
    }
    assert time.perf_counter() - began < 5  # it took a minute, with the square of the length


def test_values_without_a_step_are_counted():
    assert read("val_acc=0.1", "val_acc=0.2", "epoch 9", "val_acc=0.3") == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
    ]


def test_the_last_value_of_a_step_counts():
    lines = [f"epoch {epoch} val_acc=0.{epoch}{part}" for epoch in (1, 2) for part in (1, 2, 3)]
    assert read(*lines) == [(1, 0.13), (2, 0.23)]
    assert read("val_acc=0.1", "val_acc=0.2", step="(epoch)") == []


def test_a_value_is_reported_once_no_other_one_of_its_step_is_expected():
    reports = []
    output = ScriptOutput("", None, lambda *report: reports.append(report), metric="loss")
    output.read_line("epoch 1 loss=0.5")
    assert reports == [], "the epoch may have another value"
    output.read_line("epoch 2")
    assert reports == [(0.5, 1)]
    output.read_line("loss=0.4")
    assert reports == [(0.5, 1), (0.4, 2)], "one value an epoch"
    output.read_line("final loss=0.3")
    assert (reports[2:], output.last_value) == ([], 0.3)


def test_steps_that_an_attempt_from_scratch_repeats_are_reported_once():
    reports = []
    output = ScriptOutput("", None, lambda *report: reports.append(report), metric="loss")
    for line in ("epoch 1 loss=5", "epoch 2 loss=4", "epoch 3 loss=3"):
        output.read_line(line)
    output.begin_attempt()
    for line in ("epoch 1 loss=5", "epoch 2 loss=4", "epoch 3 loss=3", "epoch 4 loss=2"):
        output.read_line(line)
    output.end()
    assert reports == [(5.0, 1), (4.0, 2), (3.0, 3), (2.0, 4)]


def test_patterns_may_find_the_value_and_the_step():
    lines = ["round 3 >> 0.5 <<", "round 4 >> 0.6 <<"]
    assert read(*lines, value=r">> (\S+) <<", step=r"round (\d+)") == [(3, 0.5), (4, 0.6)]
    assert read(*lines, value=r">> (?P<value>\S+) <<") == [(1, 0.5), (2, 0.6)]


def error_of(*lines, metric="val_acc", value=""):
    output = ScriptOutput(value, None, lambda *report: None, metric=metric)
    for line in lines:
        output.read_line(line)
    return str(output.make_error_without_value())


def test_an_error_without_a_value_shows_names_numbers_and_the_last_lines():
    assert error_of("Epoch 3", "train loss 0.31, valid_acc: 0.93", "done") == (
        "the script printed no value of val_acc (did you mean valid_acc?); it printed Epoch 3, "
        "train loss 0.31, valid_acc 0.93; the last lines that the command printed: Epoch 3 | train "
        "loss 0.31, valid_acc: 0.93 | done; name a value that it prints, or find it by a regular "
        "expression (--value)"
    )
    assert "no value of val_acc; numbers without a name: 0.93, 12; the" in error_of(">> 0.93 [12]")
    assert "it printed nothing" in error_of()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("val_accuracy", "val acc"),  # not test accuracy, which is closer
        ("validation_acc", "val acc"),
        ("accuracy", "train accuracy"),
        ("test_accurcy", "test accuracy"),
        ("tes_accuracy", "train accuracy"),
    ],
)
def test_the_test_set_is_suggested_to_those_only_who_name_it(name, suggestion):
    names = ["test accuracy", "Test Acc", "train accuracy", "train acc", "val acc", "val loss"]
    assert suggest_name(name, names) == f"did you mean {suggestion}?"
    assert suggest_name("val_accuracy", ["test accuracy"]) == ""


def test_a_printed_namespace_is_not_listed_among_the_values():
    error = error_of("Namespace(lr=0.1, width=64, acc=1)", "valid acc: 0.93")
    assert "(did you mean valid acc?); it printed valid acc 0.93; the last" in error


def test_a_script_gets_its_values_and_flags(config, make_run):
    script = Script(
        f"{sys.executable} -c 'import sys; print(sys.argv, \"val_acc=0.5\")' {{lr}} {{amp}} {{bn}}",
        flags={"amp": ["--amp"], "bn": ["--bn", "--no-bn"]},
    )
    run = make_run()
    assert script(config(lr=0.1, amp=True, bn=True), run) == 0.5
    assert "'0.1', '--amp', '--bn'" in (run.dir / ".output").read_text()
    assert script(config(lr=0.1, amp=False, bn=False), run) == 0.5
    assert "['-c', '0.1', '--no-bn']" in (run.dir / ".output").read_text()


def test_a_script_that_counts_its_values_starts_from_scratch(config, make_run):
    code = (
        'import os; print("val_acc=0.5"); '
        'print("old" if os.path.exists("state") else "new"); open("state", "w")'
    )
    run = make_run()
    script = Script(f"{sys.executable} -c '{code}'")
    script(config(), run)
    run.reports.clear()
    script(config(), run)
    assert run.reports == [(1, 0.5)]
    assert "old" not in (run.dir / ".output").read_text()


def test_values_with_few_digits_are_named(config, make_run):
    run = make_run()
    code = 'for n in range(3): print("epoch %d val_acc=%.2f" % (n, n / 7))'
    Script(f"{sys.executable} -c '{code}'")(config(), run)
    assert run.warnings == [
        "val_acc is printed with fewer than 3 digits, so that trials may tie; print more digits"
    ]


def test_a_script_that_prints_no_value_fails(config, make_run):
    with pytest.raises(CommandFailed, match=r"\(did you mean acc\?\); it printed acc 0\.5"):
        Script(f"""{sys.executable} -c 'print("acc=0.5")'""")(config(), make_run())


def print_by_python(text):
    return f"{sys.executable} -c 'print(\"{text}\")'"


@pytest.mark.parametrize("test_value", ["test_acc", r"test_acc=(\S+)"])
def test_a_training_after_the_search_keeps_the_value_on_the_test_set(config, make_run, test_value):
    script = Script(print_by_python("val_acc=0.5 test_acc=0.25"), test_value=test_value)
    run = make_run()
    assert script(config(), run) == 0.5
    assert math.isnan(run.kept["test"].value), "the search does not see it"
    run.stage = "final-training"
    assert script(config(), run) == 0.5
    assert run.kept["test"].state_dict() == {"value": 0.25}
    assert script.untested is None


@pytest.mark.parametrize(("printed", "test_value"), [("val_acc=0.75", ""), ("x=0.75", "x")])
def test_another_program_may_print_the_value_on_the_test_set(config, make_run, printed, test_value):
    run = make_run()
    run.stage = "re-evaluation"
    script = Script(
        print_by_python("val_acc=0.5"), test_value=test_value, test_run=print_by_python(printed)
    )
    assert script(config(), run) == 0.5
    assert run.kept["test"].value == 0.75


def test_a_training_without_the_value_on_the_test_set_fails(config, make_run):
    run = make_run()
    run.stage = "final-training"
    with pytest.raises(CommandFailed, match="is the value on the test set, test_acc; the last"):
        Script(print_by_python("val_acc=0.5"), test_value="test_acc")(config(), run)


@pytest.mark.parametrize(
    ("run", "enabled", "count"),
    [("python x.py --seed 5", True, 1), ("python x.py --seed {seed}", True, 0), ("x", False, 0)],
)
def test_a_script_without_the_seed_of_its_trial_is_noted(run, enabled, count):
    config = OmegaConf.create({"winner": {"enabled": enabled}})
    notes = [note for note in Script(run).notes(config) if "new seeds change nothing" in note]
    assert len(notes) == count
