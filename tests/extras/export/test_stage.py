"""Laws of `studyloom compress`: one command at a time, stopped at any step, a fair test."""

import signal
import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from filelock import FileLock
from reevaluated import MIXED, CountedTest, evaluate_winner, stages_of, work
from torch import nn
from toys import LOOP, ask

from studyloom.errors import ConfigError, Stopped
from studyloom.extras.export import compressor, onnx, variants
from studyloom.extras.export import exported_network as networks
from studyloom.extras.export.compression import compress, compress_winner
from studyloom.extras.export.compressor import LOCK
from studyloom.extras.export.export_errors import CompressError
from studyloom.extras.export.exported_network import Original
from studyloom.extras.export.settings import Settings
from studyloom.storage.command_record import store_result
from studyloom.training.checkpoint import pack_weights
from studyloom.views.consoles import make_console
from studyloom.worker.stopping import Stop

pytestmark = pytest.mark.nightly

# The rule is only about bytes, so that latencies of this machine do not decide.
SMALL = Settings(rule="min bytes", ratios=(), widths=(), repeats=2)
PAGE = ["python", "-m", "studies.mnist"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Stages that have ended, with their result, and the test set."""
    folder, settings = tmp_path_factory.mktemp("stage"), {"top": 2, "seeds": 2}
    stages = stages_of(ask(*MIXED), f"sqlite:///{folder}/study.db", folder, 3, **settings)
    work(stages)
    test = CountedTest()
    store_result(stages.search.stored, evaluate_winner(stages, test, PAGE).in_short())
    yield stages, test
    stages.close()


# The stage


class File(nn.Module):
    """A fake of onnxruntime: `chaos/` tests the real one, which takes seconds."""

    networks: ClassVar = {}

    def __init__(self, content, threads=0):
        super().__init__()
        self.network = self.networks[content]

    def forward(self, inputs):
        return self.network(inputs)

    def run(self, inputs):
        return self.network(torch.from_numpy(inputs)).detach().numpy()

    @classmethod
    def export(cls, original, network, facts, *, quantized):
        content = pack_weights(network.state_dict())
        cls.networks[content] = network
        return cls.quantize(content, None) if quantized else content

    @classmethod
    def quantize(cls, content, inputs):
        cls.networks[content[1:]] = cls.networks[content]
        return content[1:]


@pytest.fixture
def calls(monkeypatch):
    """Counts how often variants are made."""
    calls, make = [], variants.Evaluator.make
    monkeypatch.setattr(variants.Evaluator, "make", lambda *args: calls.append(args) or make(*args))
    monkeypatch.setattr(onnx, "PACKAGES", ())
    for module in (compressor, variants):
        monkeypatch.setattr(module, "OnnxNetwork", File)
        monkeypatch.setattr(module, "export", File.export)
    monkeypatch.setattr(variants, "quantize", File.quantize)
    return calls


def small(ended, settings=SMALL):
    stages, _ = ended
    steps = []
    record = compress_winner(stages.evaluation, settings, steps.append, Stop())
    return record, steps


def test_a_variant_that_cannot_run_is_a_note_and_others_are_measured(ended, calls, monkeypatch):
    run = File.run

    def run_several(self, inputs):
        if len(inputs) == 1 and sum(p.numel() for p in self.network.parameters()) < 400:
            raise CompressError("onnxruntime cannot run the network: one input")
        return run(self, inputs)

    monkeypatch.setattr(File, "run", run_several)
    record, _ = small(ended, replace(SMALL, widths=(0.25,)))
    notes = {row.name: row.note for row in record.variants if row.note is not None}
    assert [*notes] == ["student of 0.25"]
    assert "onnxruntime cannot run the network" in notes["student of 0.25"]
    assert {row.name for row in record.variants} > {"unchanged, fp32", "unchanged, int8"}


def test_the_network_of_a_loop_is_quantized_unchanged(tmp_path, calls, monkeypatch):
    definition = ask(*MIXED, *LOOP, "objective.network=toys.make_network")
    stages = stages_of(definition, f"sqlite:///{tmp_path}/s.db", tmp_path, 2, top=1, seeds=1)
    work(stages)
    evaluate_winner(stages, test := CountedTest(), PAGE)
    record, steps = small((stages, test), replace(SMALL, ratios=(0.5,)))
    assert [row.name for row in record.variants] == ["unchanged, fp32", "unchanged, int8"]
    assert any("no smaller network can be trained" in words for words in steps)
    assert record.test.difference == 0
    assert record.test.value == record.test.original > 0.5
    calls.clear()
    prepared = replace(stages.prepared, definition=ask(*MIXED, *LOOP))
    bare = replace(stages, study=replace(stages.study, prepared=prepared))
    with pytest.raises(CompressError, match=r"name what makes its network as objective\.network"):
        small((bare, test))
    stages.close()
    assert not calls


def test_a_ctrl_c_at_any_step_leaves_the_earlier_files(ended, calls):
    stages, test = ended
    small(ended)
    record, loaded, steps = (stages.run_dir / "winner.onnx.json").read_bytes(), test.loaded, []
    for step in (0, 2):
        with Stop() as stop:

            def say(words, step=step, stop=stop):
                steps.append(words)
                if len(steps) > step:
                    signal.raise_signal(signal.SIGINT)

            steps.clear()
            with pytest.raises(Stopped):
                compress_winner(stages.evaluation, replace(SMALL, calibration=9), say, stop)
        assert len(steps) == step + 1
        assert (stages.run_dir / "winner.onnx.json").read_bytes() == record
    assert test.loaded == loaded


def test_the_second_of_two_commands_waits_for_the_first(ended, calls):
    stages, _ = ended
    settings, results, waits = replace(SMALL, margin=0.125), [], threading.Event()

    def second():
        def say(words):
            if "waiting for it" in words:
                waits.set()

        results.append(compress_winner(stages.evaluation, settings, say, Stop()))

    thread = threading.Thread(target=second)
    with FileLock(stages.run_dir / LOCK):
        thread.start()
        assert waits.wait(30)
        with pytest.MonkeyPatch.context() as patch:  # this one has the lock
            patch.setattr(compressor, "LOCK", "another.lock")
            first = compress_winner(stages.evaluation, settings, lambda words: None, Stop())
    thread.join()
    assert [record.digest for record in results] == [first.digest]
    assert results[0].test.tested_before, "the test set was used once"


def test_an_error_of_a_library_is_named_by_its_class(ended, calls, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    stages, _ = ended
    monkeypatch.setattr(Original, "retrained", fails)
    with pytest.raises(CompressError, match="RuntimeError: out of memory"):
        compress(
            stages.evaluation, ["rule=min bytes", "ratios=[]"], Stop(), make_console(quiet=True)
        )


def test_a_rule_that_no_variant_satisfies_is_refused(ended, calls):
    stages, _ = ended
    words = ["rule=min bytes where bytes < 9", "ratios=[]", "widths=[]", "repeats=1"]
    with pytest.raises(ConfigError, match="rule: no variant satisfies min bytes"):
        compress(stages.evaluation, words, Stop(), make_console(quiet=True))


# Students and their teacher


def test_original_and_student_have_not_seen_the_compared_examples(ended, monkeypatch):
    stages, _ = ended
    jobs, train = [], networks.train_network
    monkeypatch.setattr(
        networks, "train_network", lambda job, part: jobs.append(job) or train(job, part)
    )
    original = Original.retrained(stages.evaluation, 16)
    original.student(0.5)
    assert len(jobs) == 2
    for job in jobs:
        assert torch.equal(job.valid, original.job.valid)
        assert {*job.train.tolist()}.isdisjoint(original.job.valid.tolist())
