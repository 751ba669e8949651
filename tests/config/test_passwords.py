"""Passwords on a command line: whatever form Hydra takes, none of them is written or shown."""

import sys
from pathlib import Path

import pytest

PASSWORD = "hunter2"
URL = f"postgresql://user:{PASSWORD}@host/name"
FROM = f"{URL}#mine"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name in ("STUDYLOOM_STORAGE", "STUDYLOOM_FROM"):
        monkeypatch.setenv(name, "before")  # so that both are restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("THEIRS", URL)
    monkeypatch.setenv("PART", PASSWORD)


# What is typed, and what the study then gets.
FORMS = {
    f"storage.url={URL}": URL,
    f"++storage.url={URL}": URL,
    f"storage.url='{URL}'": URL,
    f'++storage.url="{URL}"': URL,
    f"storage={{url: '{URL}'}}": URL,
    f"+storage={{url: '{URL}'}}": URL,
    f'++storage={{url:"{URL}",deadline:5}}': URL,
    f"storage.url=str('{URL}')": URL,
    f"storage.url=${{oc.decode:\"'{URL}'\"}}": URL,
    f"storage.url=${{oc.env:NO_SUCH_VARIABLE,{URL}}}": URL,
    f"storage.url='${{oc.env:NO_SUCH_VARIABLE,\"{URL}\"}}'": URL,
    "storage.url=${oc.env:THEIRS}": URL,
    "storage.url=postgresql://user:${oc.env:PART}@host/name": URL,
    f"storage.url=postgresql://user:{PASSWORD}\\,x@host/name": URL.replace("2@", "2,x@"),
    f"storage.url=postgresql://user:{PASSWORD}=x@host/name": URL.replace("2@", "2=x@"),
    f"storage.url=postgresql://user:{PASSWORD}{{@host/name": URL.replace("2@", "2{@"),
    f"storage.url=postgresql://user@host/name?sslpassword={PASSWORD}": (
        f"postgresql://user@host/name?sslpassword={PASSWORD}"
    ),
    f"storage.url='postgresql://user@host/name?sslmode=require&password={PASSWORD}'": (
        f"postgresql://user@host/name?sslmode=require&password={PASSWORD}"
    ),
}
STARTS = {
    f"study.from={FROM}": FROM,
    f"study.from='{FROM}'": FROM,
    f"++study.from={FROM}": FROM,
    f"study={{from: '{FROM}'}}": FROM,
    f"++study={{from: '{FROM}', top: 3}}": FROM,
    f"study.from=${{oc.decode:\"'{FROM}'\"}}": FROM,
}


def written(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("typed", [*FORMS, *STARTS])
def test_a_password_reaches_the_study_and_no_file(command, tmp_path, capsys, typed):
    cfg, composer = command(typed, "run_dir=run")
    if typed in FORMS:
        assert cfg.storage.url == FORMS[typed]
    else:
        assert cfg.study["from"] == STARTS[typed]
    assert PASSWORD not in written(tmp_path)
    assert PASSWORD not in str(composer)
    assert PASSWORD not in " ".join(sys.argv)
    printed = capsys.readouterr()
    assert PASSWORD not in printed.out + printed.err


@pytest.mark.parametrize(
    "typed",
    [
        f"~storage.url={URL}",
        f"+storage.url={URL}",
        f"storage.url={URL} x",
        f"storage.url=${{oc.env:THEIRS}}//user:{PASSWORD}@host/name",
        f"storage.url=${{oc.env:NO_SUCH_VARIABLE}}?password={PASSWORD}",
        f"storage={URL}",
        f"storage.ulr={URL}",
        f"+storage.ulr={URL}",
        f"storage.url=[{URL}]",
        f"storage.url=[{URL},{URL}]",
        f"storage.url={URL},{URL}",
        f"storage.url=choice('{URL}')",
        f"storage={{urls: ['{URL}']}}",
        f"storage.url=postgresql://user:{PASSWORD}@${{params.host}}/name",
        f"storage.url={{a: '{URL}'",
        f"study.enqueue=['{URL}']",
        f"-storage.url={URL}",
    ],
)
def test_a_password_in_a_form_that_is_refused_is_not_shown(command, tmp_path, capsys, typed):
    ended = command(typed, "run_dir=run")
    printed = capsys.readouterr()
    assert PASSWORD not in printed.out + printed.err
    assert PASSWORD not in written(tmp_path)
    composes = typed.startswith("~") or typed.endswith(" x") or "THEIRS" in typed
    assert ended == 2 or composes, (ended, printed)
    assert "Traceback" not in printed.err
