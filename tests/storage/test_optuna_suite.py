"""Optuna's own tests of storages, on ours: those that it installs, and those of its sources."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import optuna
import optuna_modes
import pytest
import sqlalchemy
from commands import ROOT
from optuna.testing.pytest_storages import StorageTestCase

pytestmark = pytest.mark.nightly
# What differs, and why.
DIFFERS = {
    # It would take its locks, its deadline and what it knows of a call along. Each process opens
    # the database for itself, from the URL.
    "test_pickle_storage",
}
# The tests of Optuna's sources that take every kind of storage. Not those of heartbeats, which
# nothing turns on here, because leases take their place.
FILE = "tests/storages_tests/test_storages.py"


@pytest.fixture(scope="module")
def database(postgres_server, database_names):
    """The URL of a new, empty database, in the environment too."""
    name = next(database_names)
    address = sqlalchemy.make_url(postgres_server).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(
        address, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = address.set(database=name).render_as_string(hide_password=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTUNA_TESTS_DATABASE", url)
        yield url


@pytest.fixture
def storage(request, database):
    with optuna_modes.StorageSupplier(request.param) as storage:
        yield storage


@pytest.mark.parametrize("storage", optuna_modes.MODES, indirect=True)
class TestLaws(StorageTestCase):
    """The laws that Optuna publishes for storages of others."""

    def test_pickle_storage(self, storage):
        with pytest.raises((TypeError, AttributeError)):
            super().test_pickle_storage(storage)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The sources of the installed release, if the package index can be reached."""
    folder = tmp_path_factory.mktemp("sources")
    wanted = f"optuna=={optuna.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "optuna"]
    try:
        subprocess.run(
            [*command, "-d", folder, wanted], check=True, capture_output=True, timeout=90
        )
    except subprocess.SubprocessError:
        pytest.skip(f"the sources of {wanted} cannot be had here")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    sources = folder / f"optuna-{optuna.__version__}"
    if not (sources / FILE).exists():
        pytest.skip(f"the sources of {wanted} have no {FILE}")
    return sources


def test_the_tests_of_its_sources_pass(sources, database):
    results = sources / "results.xml"
    (sources / "pytest.ini").write_text("[pytest]\n")
    options = ("--rootdir", str(sources), "-c", "pytest.ini", "-p", "optuna_modes")
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={results}", FILE]
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "src")])
    environment = os.environ | {"PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True)
    cases = list(ElementTree.parse(results).iter("testcase"))
    failed = {case.get("name") for case in cases if {"failure", "error"} & {e.tag for e in case}}
    assert {name.partition("[")[0] for name in failed} == DIFFERS, done.stdout[-8000:]
    for mode in optuna_modes.MODES:
        assert sum(f"[{mode}" in case.get("name") for case in cases) > 40
