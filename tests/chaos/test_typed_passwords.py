"""Passwords that are typed: real commands and workers, their files, their output, and `ps`."""

import pytest
import sqlalchemy
from commands import CANARY
from runs import Run, kill

pytestmark = pytest.mark.chaos


def everything_in(url):
    """The text of all rows of a PostgreSQL database."""
    address = sqlalchemy.make_url(url)
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        tables = sqlalchemy.inspect(connection).get_table_names()
        return "\n".join(
            row
            for table in tables
            for row in connection.execute(sqlalchemy.text(f'SELECT t::text FROM "{table}" t'))
            .scalars()
            .all()
        )


@pytest.fixture
def run(tmp_path, postgres_url):
    run = Run(tmp_path / "run", postgres_url)
    run.overrides = tuple(each for each in run.overrides if not each.startswith("storage="))
    del run.environment["STUDYLOOM_STORAGE"]
    yield run
    kill(run.processes())


@pytest.mark.parametrize(
    "form", ["++storage={url: 'URL', deadline: 60}", "storage.url=${oc.decode:\"'URL'\"}"]
)
def test_a_typed_password_is_in_no_file_no_output_no_process_and_no_row(run, form):
    def look():
        assert len(run.processes()) >= 3, "which looks for it in their command lines"
        assert run.workers()

    winner = ("winner.enabled=true", "winner.seeds=1")
    printed = run.end(run.at_work(form.replace("URL", run.url), *winner, meanwhile=look), 0)
    assert "***" in printed
    run.name = "next"
    begun = run.start(
        *("study.name=next", "study.trials=2", "space=lr", f"study.from='{run.url}#mnist'"),
        f"storage.url={run.url}",
        f"run_dir={run.folder}/next",
    )
    assert "next: 2 of 2 trials" in run.end(begun, 0)
    assert "next" in (rows := everything_in(run.url))
    assert CANARY not in rows
