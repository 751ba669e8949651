"""Optuna's laws for storages of others hold for ours: bare, and with the trial buffer."""

import pytest
import sqlalchemy
from optuna.testing.pytest_storages import StorageTestCase

from studyloom.storage.database import connect
from studyloom.storage.trial_buffer import TrialBuffer

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def backend(request, tmp_path_factory):
    """A database that is made once, and emptied after each test."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('laws')}/study.db"
    else:
        name = next(request.getfixturevalue("database_names"))
        server = request.getfixturevalue("postgres_server")
        address = sqlalchemy.make_url(server).set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        url = address.set(database=name).render_as_string(hide_password=False)
    opened = connect(url, create=True)
    yield opened
    opened.close()


@pytest.fixture(params=["bare", "buffered"])
def storage(request, backend):
    yield backend if request.param == "bare" else TrialBuffer(backend)
    backend.remove_session()
    for study in backend.get_all_studies():
        backend.delete_study(study._study_id)
    backend.remove_session()
    backend.close()  # its connections, which are of this test


class TestLaws(StorageTestCase):
    def test_pickle_storage(self, storage):
        """Differs: each process opens the database for itself, with locks of its own."""
        with pytest.raises((TypeError, AttributeError)):
            super().test_pickle_storage(storage)
