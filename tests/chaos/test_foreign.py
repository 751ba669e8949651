"""Random configs from elsewhere: whatever they say, nothing outside of the study is touched."""

import os
from collections import Counter

import pytest
from attacks import ATTACKS, SECRET, write
from commands import QUICK, study
from hostile_configs import layouts
from hypothesis import HealthCheck, Phase, given, settings
from sandbox import Sandbox

pytestmark = pytest.mark.chaos
CONFIGS = int(os.environ.get("STUDYLOOM_CONFIGS", "600"))
SETTINGS = settings(
    max_examples=CONFIGS,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def sandbox(tmp_path):
    sandbox = Sandbox(tmp_path)
    yield sandbox
    sandbox.close()


def test_no_canary_is_touched_whatever_a_config_says(sandbox):
    counts = Counter()

    @SETTINGS
    @given(layouts())
    def attack(layout):
        seen = sandbox.run(layout)
        counts["composed" if seen.composed else "refused"] += 1
        assert seen.touched == [], (layout, seen.printed)

    attack()
    assert counts.total() >= CONFIGS
    assert counts["composed"] >= CONFIGS // 50, "most are refused, but what is composed matters too"


def test_without_the_check_canaries_are_touched(tmp_path):
    """The fuzzer can fail: with the check switched off, it finds what gets out at once."""
    sandbox = Sandbox(tmp_path, checked=False)
    touched = Counter()

    @settings(SETTINGS, max_examples=100, phases=[Phase.generate])
    @given(layouts())
    def attack(layout):
        touched.update(words.split()[0] for words in sandbox.run(layout).touched)

    attack()
    sandbox.close()
    assert touched.total() >= 8, touched
    assert len(touched) >= 3, "files, folders and what is used later"


REAL = [
    *("job_logging with a factory", "hydra_logging with a factory", "a handler that writes a file"),
    *("an environment variable", "the folder of Hydra's files", "a callback from a second file"),
    *("storage.url", "the environment in a second file"),
]


@pytest.mark.parametrize("attack", REAL)
def test_a_real_command_refuses_an_attack_and_writes_nothing(tmp_path, attack):
    out = tmp_path / "out"
    out.mkdir()
    theirs = write(tmp_path / "theirs", ATTACKS[attack], out)
    (work := tmp_path / "work").mkdir()
    named = ("--config-dir", str(theirs), "--config-name", "evil")
    done = study(*named, *QUICK, "study.trials=1", cwd=work, SECRET=SECRET)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert [*out.iterdir(), *work.iterdir()] == []


def test_with_consent_a_real_command_uses_their_database(tmp_path):
    theirs = write(tmp_path / "theirs", ATTACKS["storage.url"], tmp_path)
    named = ("--config-dir", str(theirs), "--config-name", "evil", "trust=[storage]")
    done = study(*named, *QUICK, "study.trials=1", "launcher.workers=1", f"run_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.db").exists()
