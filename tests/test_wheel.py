"""The built wheel, in an environment that has the libraries and no checkout."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from commands import ROOT, environment

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the programs of an environment into which pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    run(*build, "--wheel-dir", folder / "dist", ROOT, cwd=folder)
    venv.create(folder / "venv", with_pip=True)
    (packages,) = (folder / "venv" / "lib").glob("*/site-packages")
    # The libraries of this environment, but not what its own .pth files add, which is the checkout.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = (folder / "dist").iterdir()
    programs = folder / "venv" / "bin"
    run(programs / "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel, cwd=folder)
    return programs


def run(*command, cwd: Path, code: int = 0) -> str:
    env = environment()
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        env.pop(name, None)
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_package_and_its_groups_are_those_of_the_wheel(installed, tmp_path):
    code = (
        "import studyloom.config.compose as c; "
        "print(c.__file__, c.GROUPS, *sorted(p.name for p in c.GROUPS.iterdir()))"
    )
    where, groups, *names = run(installed / "python", "-c", code, cwd=tmp_path).split()
    for path in (where, groups):
        assert Path(path).is_relative_to(installed.parent)
    assert names == sorted(path.name for path in (ROOT / "conf").iterdir())


def test_in_an_empty_folder_a_new_study_ends_with_a_winner_and_a_report(installed, tmp_path):
    run(installed / "studyloom", "new", "mine", cwd=tmp_path)
    said = run(installed / "python", "-m", "studies.mine", cwd=tmp_path)
    assert "20 of 20 trials" in said
    assert "test      winner accuracy 0." in said
    assert {"winner.yaml", "winner.pt", "report.html"} <= {
        path.name for path in (tmp_path / "runs" / "mine").iterdir()
    }
