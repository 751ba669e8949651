"""`studyloom doctor --gpu`: the checks on the GPUs here, or on two pretended ones."""

import pytest
import torch

from studyloom.cli import main
from studyloom.extras import gpu
from studyloom.worker.local import visible_gpus


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    names = ("0", "1")
    device = "cpu"
    if torch.cuda.is_available():
        names = visible_gpus()
        device = "cuda:0"
    return gpu.Gpus(tuple(names), torch.device(device), tmp_path_factory.mktemp("gpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("check", gpu.CHECKS, ids=lambda check: check.__name__)
def test_a_study_keeps_its_promises_on_a_gpu(check, cards):
    try:
        print(check(cards))
    except gpu.NotPossible as error:
        pytest.skip(str(error))


def test_each_check_is_a_row_and_a_failed_one_does_not_end_the_others(
    monkeypatch, tmp_path, capsys
):
    def needs_two(cards):
        return str(cards.first(2))

    def fails(cards):
        raise AssertionError("a | b\n\x1b[2J")

    def holds(cards):
        return "seen"

    monkeypatch.setattr(gpu, "CHECKS", (needs_two, fails, holds))
    monkeypatch.setattr(gpu, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows = gpu.show()
    assert [row["state"] for row in rows] == ["not possible here", "failed", "ok"]
    out = capsys.readouterr().out
    assert "| needs two | not possible here | 0.0 | it needs 2 GPUs |" in out
    assert "\x1b" not in out
    assert out.splitlines()[-1] == "| holds | ok | 0.0 | seen |"
    assert out.count("\n| ") == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gets_an_error_at_once(capsys):
    assert main(["doctor", "--gpu"]) == 2
    assert "can use no GPU here" in capsys.readouterr().err
