"""A database may come from elsewhere; whatever its cells hold, a view ends with one line."""

import io
import json

import optuna
import pytest
import sqlalchemy
from optuna.trial import create_trial

from studyloom.errors import StorageError
from studyloom.storage.attributes import (
    EPOCHS,
    NOT_KEPT,
    PLANNED_EPOCHS,
    PROVENANCE,
    RESUMED,
    RUNGS,
    STANDARD_ERROR,
    TIMES,
    WARNINGS,
    has_attribute_type,
)
from studyloom.storage.opening import open_study
from studyloom.storage.trial_tables import as_csv, trial_rows
from studyloom.views import doctor
from studyloom.views.comparison import read_studies, render
from studyloom.views.consoles import make_console
from studyloom.views.doctor import check_agreement, check_database
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report import write_report
from studyloom.views.terminal import print_trials, render_status

DEEP = "[" * 100_000 + "]" * 100_000
CELLS = {
    "state": ("UPDATE trials SET state = 'ASLEEP'", "ASLEEP"),
    "direction": ("UPDATE study_directions SET direction = 'SIDEWAYS'", "SIDEWAYS"),
    "value": ("UPDATE trial_values SET value_type = 'ODD'", "ODD"),
    "number": ("UPDATE trial_values SET value = 'abc'", "could not convert"),
    "no number": ("UPDATE trial_values SET value = NULL", "a number is missing"),
    "parameter": (
        "UPDATE trial_params SET param_value = 'abc'",
        "could not convert",
    ),
    "begin": ("UPDATE trials SET datetime_start = 'abc'", "isoformat"),
    "report": ("UPDATE trial_intermediate_values SET intermediate_value_type = 'ODD'", "ODD"),
    "attribute": ("UPDATE trial_user_attributes SET value_json = :deep", "recursion"),
    "slot": ("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'slot'", "property"),
    "definition": ("UPDATE study_user_attributes SET value_json = :deep", "recursion"),
    "distribution": ("UPDATE trial_params SET distribution_json = :deep", "recursion"),
    "kind": (
        """UPDATE trial_params SET distribution_json = '{"name": "Odd", "attributes": {}}'""",
        "distribution",
    ),
}


# Of attributes that studyloom reads, what it has not written.
WRONG = (7, ["abc"], {"value": ["abc"]})
READ = (
    EPOCHS,
    TIMES,
    PROVENANCE,
    RUNGS,
    STANDARD_ERROR,
    RESUMED,
    PLANNED_EPOCHS,
    NOT_KEPT,
    WARNINGS,
)


def looks_at(run_dir):
    """All that is shown of a study."""
    return (
        lambda stored: make_console(io.StringIO()).print(
            render_status(ProgressReader(stored).status(), 80)
        ),
        lambda stored: print_trials(stored, make_console(io.StringIO())),
        lambda stored: as_csv(trial_rows(stored)),
        lambda stored: write_report(stored, run_dir),
        lambda stored: render(read_studies([(run_dir / name, stored) for name in "ab"])),
    )


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_an_attribute_of_another_type_counts_as_missing(value, half_done, sqlite_url, tmp_path):
    half_done.close()
    engine = sqlalchemy.create_engine(sqlite_url)
    change = "INSERT OR REPLACE INTO trial_user_attributes (trial_id, key, value_json) "
    change += "SELECT trial_id, :key, :value FROM trials"
    with engine.begin() as connection:
        rows = [{"key": key, "value": json.dumps(value)} for key in READ]
        connection.execute(sqlalchemy.text(change), rows)
    engine.dispose()
    stored = open_study(sqlite_url, "toy")
    for look in looks_at(tmp_path):
        look(stored)
    trial = stored.trials()[1]
    assert trial.value == 0.9
    assert {*trial.user_attrs} & {*READ} == {key for key in READ if has_attribute_type(key, value)}
    assert TIMES not in trial.user_attrs
    stored.close()


def test_a_resumption_fits_only_with_fields_of_their_types():
    resumed = {"epoch": None, "deaths": 1, "death": "it was killed"}
    assert has_attribute_type(RESUMED, resumed)
    assert has_attribute_type(RESUMED, {**resumed, "has_files": True})
    assert not has_attribute_type(RESUMED, {**resumed, "has_files": "yes"})


@pytest.mark.parametrize("names", ["true", "5", "[1]", "[]", '["a", "b"]', '{"a": 1}'])
def test_names_of_metrics_of_another_type_count_as_missing(names, half_done, sqlite_url, tmp_path):
    half_done.close()
    engine = sqlalchemy.create_engine(sqlite_url)
    change = "UPDATE study_system_attributes SET value_json = :names WHERE key LIKE '%metric_names'"
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.text(change), {"names": names}).rowcount == 1
    engine.dispose()
    stored = open_study(sqlite_url, "toy")
    for look in looks_at(tmp_path):
        look(stored)
    assert [objective.name for objective in stored.objectives] == ["value"]
    stored.close()


def test_attributes_of_another_program_remain_unchanged(sqlite_url):
    study = optuna.create_study(storage=sqlite_url, study_name="plain")
    study.add_trial(create_trial(value=1.0, user_attrs={"epochs": 20, "times": "many"}))
    stored = open_study(sqlite_url, "plain")
    assert stored.optuna.trials[0].user_attrs == {"epochs": 20, "times": "many"}
    stored.close()


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_that_optuna_cannot_read_is_reported_in_one_line(
    kind, half_done, sqlite_url, tmp_path
):
    half_done.close()
    change, said = CELLS[kind]
    engine = sqlalchemy.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(change), {"deep": DEEP} if ":deep" in change else {})
    engine.dispose()
    for look in looks_at(tmp_path):
        with pytest.raises(StorageError, match=f"a cell .*cannot be read: .*{said}") as told:
            look(open_study(sqlite_url, "toy"))
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 500
    connection, ledgers = check_database(sqlite_url)
    findings = connection, check_agreement(ledgers)
    assert all("\n" not in finding.message for finding in findings)
    if kind in ("state", "slot", "definition"):  # what the ledger needs
        assert doctor.TODO in {finding.state for finding in findings}
