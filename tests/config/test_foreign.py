"""A config from elsewhere is data: what it may set, and what it may not reach."""

import os

import pytest
from attacks import ATTACKS, SECRET, write


@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.delenv("LD_PRELOAD", raising=False)


@pytest.fixture
def foreign(tmp_path_factory, out):
    """Writes a folder of somebody else's."""
    return lambda files: write(tmp_path_factory.mktemp("theirs") / "conf", files, out)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_before_anything_is_composed(
    command, capsys, tmp_path, foreign, out, attack
):
    seen = []
    ended = command(
        *("--config-dir", str(foreign(ATTACKS[attack])), "--config-name", "evil"),
        task=lambda cfg: seen.append((dict(os.environ), cfg.params)),
    )
    printed = capsys.readouterr()
    print(
        "RED",
        attack,
        "|",
        ended if isinstance(ended, int) else "composed",
        [str(p.relative_to(out)) for p in out.rglob("*")],
        "LD" if seen and "LD_PRELOAD" in seen[0][0] else "",
        SECRET in "".join(p.read_text() for p in tmp_path.rglob("*.yaml")),
        printed.err[:150],
    )
    assert ended == 2
    assert "error: " in printed.err
    assert SECRET not in printed.err + printed.out
    assert list(out.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
