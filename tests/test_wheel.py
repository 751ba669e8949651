"""The built package, and its wheel in an environment that has the libraries and no checkout."""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from commands import ROOT, environment, shows_test

pytestmark = pytest.mark.wheel
LARGEST = 1_900_000  # bytes of the wheel; 710,000 are of the digits


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution and the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of the programs of an environment into which pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder / "venv", with_pip=True)
    (packages,) = (folder / "venv" / "lib").glob("*/site-packages")
    # The libraries of this environment, but not what its own .pth files add, which is the checkout.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    programs = folder / "venv" / "bin"
    install = (programs / "pip", "install", "--quiet", "--force-reinstall", "--no-deps")
    run(*install, built[1], cwd=folder)
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


def test_the_source_distribution_builds_the_same_wheel_byte_for_byte(built, tmp_path):
    source, wheel = built
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index")
    run(*build, "--no-build-isolation", "--wheel-dir", tmp_path, source, cwd=tmp_path)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_is_small_and_has_the_license_of_its_data(built):
    assert built[1].stat().st_size <= LARGEST
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith("/METADATA"))
        (notice,) = (wheel.read(name).decode() for name in names if name.endswith("/NOTICE"))
    assert "\nLicense-Expression: MIT AND CC-BY-SA-3.0\n" in metadata
    folder = "studyloom/assets/"
    data = {name for name in names if name.startswith(folder) and name.count("/") == 2}
    assert data == {f"{folder}mnist5k.npz"}
    assert all(name in notice for name in data)


def test_every_config_in_the_wheel_finds_its_module_data_and_options(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {*wheel.namelist()}
        folder = "studyloom/conf/"
        configs = {n: wheel.read(n).decode() for n in names if n.startswith(folder)}
    pages = {name for name in configs if name.count("/") == 2}
    assert f"{folder}mnist.yaml" in pages
    for name, text in configs.items():
        assert "studies." not in text, name
        assert "studyloom:" not in text, name
    for page in pages:
        listed = re.match(r"defaults: \[studyloom, (.+)\]\n", configs[page])[1]
        for group, option in re.findall(r"(\w+): (\w+)", listed):
            assert f"{folder}{group}/{option}.yaml" in names, page


def test_the_package_and_its_groups_come_from_the_wheel(installed, tmp_path):
    code = (
        "import studyloom.config.config_sources as c; "
        "print(c.__file__, c.GROUPS, *sorted(p.name for p in c.GROUPS.iterdir() if p.is_dir()))"
    )
    where, groups, *names = run(installed / "python", "-c", code, cwd=tmp_path).split()
    for path in (where, groups):
        assert Path(path).is_relative_to(installed.parent)
    assert names == sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())


def test_in_an_empty_folder_the_demo_ends_with_a_winner_and_a_report(installed, tmp_path):
    few = ("study.trials=3", "train.epochs=1", "train.samples_per_epoch=512", "winner.top=1")
    said = run(installed / "studyloom", "run", "mnist", *few, cwd=tmp_path)
    assert "mnist: 3 of 3 trials" in said
    assert shows_test(said)
    assert {"winner.yaml", "winner.pt", "report.html"} <= {
        path.name for path in (tmp_path / "runs" / "mnist").iterdir()
    }


def test_in_an_empty_folder_a_new_study_ends_with_a_winner_and_a_report(installed, tmp_path):
    run(installed / "studyloom", "new", "mine", cwd=tmp_path)
    said = run(installed / "python", "-m", "studies.mine", cwd=tmp_path)
    assert "20 of 20 trials" in said
    assert shows_test(said)
    assert {"winner.yaml", "winner.pt", "report.html"} <= {
        path.name for path in (tmp_path / "runs" / "mine").iterdir()
    }
