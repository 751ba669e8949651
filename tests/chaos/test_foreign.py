"""Random configs from elsewhere: whatever they say, nothing outside of the study is touched."""

import time
from collections import Counter

import pytest
from hostile import layouts
from hypothesis import HealthCheck, Phase, given, settings
from sandbox import Sandbox

pytestmark = pytest.mark.chaos
CONFIGS = 200
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


def test_no_canary_is_touched_in_5000_configs(sandbox):
    counts = Counter()
    began = time.monotonic()

    @SETTINGS
    @given(layouts())
    def attack(layout):
        seen = sandbox.run(layout)
        counts["composed" if seen.composed else "refused"] += 1
        assert seen.touched == [], (layout, seen.printed)

    attack()
    print(counts, time.monotonic() - began)
    assert counts.total() >= CONFIGS
    assert counts["composed"] >= CONFIGS // 50, "most are refused, but what is composed matters too"
