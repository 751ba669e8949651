"""Passwords on a command line: whatever form Hydra takes, none of them is written or shown."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from studyloom.config.passwords import move_passwords
from studyloom.errors import ConfigError

PASSWORD = "hunter2"
URL = f"postgresql://user:{PASSWORD}@host/name"
FROM = f"{URL}#mine"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name in ("STUDYLOOM_STORAGE", "STUDYLOOM_FROM", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "before")  # so that all are restored
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


@pytest.mark.parametrize("typed", [*FORMS, *STARTS])
def test_a_password_leaves_the_command_line_and_reaches_the_study(typed):
    (moved,) = move_passwords([typed])
    assert PASSWORD not in moved
    override = OverridesParser.create().parse_override(moved)
    value = OmegaConf.create({"value": override.value()}).value
    if OmegaConf.is_dict(value):
        value = value.get("url") or value.get("from")
    assert value == (FORMS | STARTS)[typed]
    assert override.key_or_group == typed.lstrip("+").partition("=")[0]


@pytest.mark.parametrize(
    "typed",
    [
        "storage.url='${oc.env:THEIRS}'",
        "storage.url=postgresql://user:${oc.env:PART}@host/name?password=${oc.env:PART}",
        "storage.url=sqlite:///a/b.db",
        "+storage={url: 'sqlite:///a.db', deadline: 3}",
        "study.from=runs/mnist",
        "study.enqueue=[{a.b:'x:y'}]",
        f"model.words={PASSWORD}",
    ],
)
def test_an_override_without_one_stays_as_it_was_typed(typed):
    assert move_passwords([typed]) == [typed]


def test_what_stands_beside_a_password_stays():
    typed = f"""++storage={{url: '{URL}', file: 'it\\'s', deadline: 2.5, x: [1, null, true]}}"""
    (moved,) = move_passwords([typed])
    value = OverridesParser.create().parse_override(moved).value()
    assert value == {
        "url": "${oc.env:STUDYLOOM_STORAGE}",
        "file": "it's",
        "deadline": 2.5,
        "x": [1, None, True],
    }


REFUSED = [
    f"storage={URL}",
    f"storage.ulr={URL}",
    f"+storage.ulr={URL}",
    f"storage.url=[{URL}]",
    f"storage.url={URL},{URL}",
    f"storage.url=choice('{URL}')",
    f"storage={{urls: ['{URL}']}}",
    f"storage.url=postgresql://user:{PASSWORD}@${{params.host}}/name",
    f"storage.url=${{oc.env:NO_SUCH_VARIABLE}}?password={PASSWORD}",
    f"storage.url={{a: '{URL}'",
    f"storage@other={URL}",
    f"study.enqueue=['{URL}']",
]


@pytest.mark.parametrize("typed", REFUSED)
def test_a_form_that_cannot_be_moved_is_refused_with_the_way_out(typed):
    with pytest.raises(ConfigError, match=r"STUDYLOOM_STORAGE.*in the environment") as caught:
        move_passwords(["study.trials=3", typed])
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "typed", [f"~storage.url={URL}", f"storage.url={URL} x", f"-storage={URL}"]
)
def test_what_hydra_will_refuse_is_moved_too(typed):
    try:
        shown = move_passwords([typed])
    except ConfigError as error:
        shown = error.mistakes
    assert PASSWORD not in " ".join(shown)


def test_all_that_cannot_be_moved_is_told_at_once(command, capsys, tmp_path):
    assert command(*REFUSED[:3], "run_dir=run") == 2
    printed = capsys.readouterr()
    assert printed.err.count("error: storage") == 3
    assert PASSWORD not in printed.out + printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("typed", [f"storage.url=x({URL}", f"model={URL}"])
def test_an_error_that_shows_an_override_masks_its_password(command, capsys, typed):
    assert command(typed) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert PASSWORD not in printed.out + printed.err


def test_no_file_of_hydra_holds_it(command, tmp_path):
    typed = next(form for form in FORMS if form.startswith("++storage={"))
    cfg, composer = command(typed, "run_dir=run")
    assert cfg.storage.url == URL
    assert cfg.storage.deadline == 5
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "oc.env:STUDYLOOM_STORAGE" in written
    assert PASSWORD not in written + str(composer)
