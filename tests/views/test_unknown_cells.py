"""A database may come from elsewhere; whatever its cells hold, a view ends with one line."""

import pytest
import sqlalchemy

from studyloom.errors import StorageError
from studyloom.study.opening import open_study
from studyloom.views import doctor
from studyloom.views.comparison import read_studies
from studyloom.views.doctor import agreement, database
from studyloom.views.report import write_report
from studyloom.views.status import read_status

DEEP = "[" * 100_000 + "]" * 100_000
CELLS = {
    "state": ("UPDATE trials SET state = 'ASLEEP'", "ASLEEP"),
    "direction": ("UPDATE study_directions SET direction = 'SIDEWAYS'", "SIDEWAYS"),
    "value": ("UPDATE trial_values SET value_type = 'ODD'", "ODD"),
    "report": ("UPDATE trial_intermediate_values SET intermediate_value_type = 'ODD'", "ODD"),
    "attribute": ("UPDATE trial_user_attributes SET value_json = :deep", "recursion"),
    "slot": ("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'slot'", "property"),
    "question": ("UPDATE study_user_attributes SET value_json = :deep", "recursion"),
    "distribution": ("UPDATE trial_params SET distribution_json = :deep", "recursion"),
    "kind": (
        """UPDATE trial_params SET distribution_json = '{"name": "Odd", "attributes": {}}'""",
        "distribution",
    ),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_that_optuna_does_not_know_is_one_line(kind, half_done, sqlite_url, tmp_path):
    half_done.close()
    change, said = CELLS[kind]
    engine = sqlalchemy.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(change), {"deep": DEEP} if ":deep" in change else {})
    engine.dispose()
    looks = (
        read_status,
        lambda stored: write_report(stored, tmp_path),
        lambda stored: read_studies([(tmp_path / name, stored) for name in "ab"]),
    )
    for look in looks:
        with pytest.raises(StorageError, match=f"a cell .*cannot be read: .*{said}") as told:
            look(open_study(sqlite_url, "toy"))
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 500
    reached, ledgers = database(sqlite_url)
    findings = reached, agreement(ledgers)
    assert all("\n" not in finding.words for finding in findings)
    if kind in ("state", "slot", "question"):  # what the ledger needs
        assert doctor.TODO in {finding.state for finding in findings}
