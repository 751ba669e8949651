"""The winner of a loop predicts as a network of studyloom does, once its network is known."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import toys
import yaml
from reevaluated import MIXED, SPLIT, CountedTest, evaluate_winner, stages_of, work
from results import result_of, write_winner
from torch import nn
from toys import LOOP, ask

from studyloom import ConfigError, PredictError, load_winner
from studyloom.cli import main
from studyloom.extras.explain import explain
from studyloom.files import mark_trusted
from studyloom.models import MLP
from studyloom.training.checkpoint import pack_weights
from studyloom.views.words import format_prediction
from studyloom.winner.result import InputPrediction, Result

NETWORK = "objective.network=toys.make_network"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a study of a loop that has a section `data`, and its stages."""
    folder = tmp_path_factory.mktemp("loop")
    definition = ask(*MIXED, *LOOP, NETWORK)
    assert definition.identity("x") == ask(*MIXED, *LOOP).identity("x")
    stages = stages_of(definition, f"sqlite:///{folder}/study.db", folder, 2, top=1, seeds=2)
    work(stages)
    command = ["python", "-m", "studies.mnist"]
    evaluate_winner(stages, CountedTest(), command, explain=explain)
    yield folder
    stages.close()


def test_a_loop_predicts_like_its_network_in_python_and_in_the_shell(ended, tmp_path, capsys):
    folder = ended
    with pytest.raises(ConfigError, match=r"toys\.make_network is not among"):
        load_winner(folder).predict(SPLIT.inputs)
    winner = load_winner(folder, trust=["toys", "studyloom.models"])
    network = toys.make_network(winner.config, SPLIT.shape, 10)
    winner.restore(network=network)
    with torch.no_grad():
        expected = network.eval()(SPLIT.inputs).softmax(1)
    prediction = winner.predict(SPLIT.inputs)
    assert torch.equal(prediction.probabilities, expected)
    assert (prediction.classes == SPLIT.targets).float().mean() > 0.5
    for maker in (network, toys.make_network):
        again = load_winner(folder, network=maker).predict(SPLIT.inputs.numpy())
        assert torch.equal(again.classes, prediction.classes)
    np.save(tmp_path / "some.npy", SPLIT.inputs[:5].numpy())
    np.savetxt(tmp_path / "bad.csv", np.ones((2, 3)), delimiter=",")
    command = ("predict", str(folder), str(tmp_path / "some.npy"), "--trust", "toys", "--json")
    assert main([*command, "--code", "tests/helpers"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["label"] for row in rows] == prediction.classes[:5].tolist()


def test_the_network_of_a_loop_is_explained(ended):
    result = Result.load(ended)
    assert (result.tested_by_function_only, result.is_of_loop) == (False, True)
    assert result.data.shape == SPLIT.shape
    assert sum(map(sum, result.confusion)) == result.test.examples == len(SPLIT)
    assert result.explanations.calibration is not None
    assert [row.name for row in result.explanations.groups.rows] == [*map(str, range(10))]


# A loop that loads its data itself


class Pair(nn.Module):
    """A network of two inputs, that gives a map of classes."""

    def __init__(self, width):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, width, 1), nn.Conv2d(1, width, 1)

    def forward(self, left, right):
        return self.left(left) - self.right(right)


def embedded(words=7):
    return nn.Sequential(nn.Embedding(words, 3), nn.Flatten(), nn.Linear(6, 2))


def not_a_network():
    return 3


def write_loop_result(folder, states, network=None, metric="accuracy", **params):
    objective = {"_target_": "mine.train"} | ({"network": network} if network else {})
    config = {"objective": objective, "params": {"lr": 0.1} | params}
    files = {"winner.yaml": yaml.safe_dump(config).encode(), "winner.pt": pack_weights(states)}
    folder.mkdir(exist_ok=True)
    metric = {"name": metric, "direction": "maximize"}
    result_of(untested="not tested", metric=metric).write(folder, files)
    mark_trusted(folder)
    return folder


def test_the_winner_of_a_compiled_loop_predicts_with_the_plain_network(tmp_path):
    layer = nn.Linear(2, 3)
    states = {"net": {f"_orig_mod.{name}": weight for name, weight in layer.state_dict().items()}}
    winner = load_winner(
        write_loop_result(tmp_path / "run", states), network=partial(nn.Linear, 2, 3)
    )
    inputs = torch.randn(4, 2)
    assert torch.equal(winner.predict(inputs).probabilities, layer(inputs).softmax(1))
    restored = nn.Linear(2, 3)
    winner.restore(net=restored)
    assert torch.equal(restored.weight, layer.weight)


def test_arrays_and_lines_of_numbers_are_inputs_without_changes(tmp_path, capsys):
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9, lr=1)
    states = {"net": layer.state_dict(), "optimizer": optimizer.state_dict()}
    section = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    folder = write_loop_result(tmp_path / "run", states, section)
    rows = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    (tmp_path / "rows.csv").write_text("1,2\n3,-4\n")
    np.save(tmp_path / "rows.npy", rows.numpy())
    np.save(tmp_path / "wide.npy", np.ones((2, 3)))
    with torch.no_grad():
        expected = layer(rows).softmax(1)
    assert torch.equal(load_winner(folder).predict(rows).probabilities, expected)
    files = [str(tmp_path / name) for name in ("rows.csv", "rows.npy", "wide.npy")]
    assert main(["predict", str(folder), *files, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in document["predictions"]] == 2 * expected.argmax(1).tolist()
    assert "wide.npy: " in document["errors"][0]
    assert "mat1 and mat2 shapes cannot be multiplied" in document["errors"][0]
    words = write_loop_result(tmp_path / "words", {"net": embedded().state_dict()}, metric="loss")
    ids = np.array([[1, 2], [0, 6]])
    values = load_winner(words, network=embedded).predict(ids).values
    assert values.shape == (2, 2), "numbers, since nothing says that they are classes"


def test_several_inputs_and_maps_are_predicted_in_python(tmp_path):
    network = Pair(4)
    folder = write_loop_result(tmp_path / "run", {"net": network.state_dict()}, width=4)
    winner = load_winner(folder, network=Pair)
    left, right = torch.randn(300, 1, 2, 3), torch.randn(300, 1, 2, 3).double()
    with torch.no_grad():
        expected = network(left, right.float()).softmax(1)
    for inputs in ((left, right), {"right": right.numpy(), "left": left}):
        prediction = winner.predict(inputs, softmax=True)
        assert torch.allclose(prediction.probabilities, expected, atol=1e-6)
        assert (prediction.classes.shape, prediction.names) == ((300, 2, 3), ())
        prediction = winner.predict(inputs)
        assert torch.allclose(prediction.values.softmax(1), expected, atol=1e-6), (
            "classes may be last"
        )
    assert winner.shape == ()
    assert "Pair" not in repr(winner)


def test_a_network_of_studyloom_predicts_from_its_class_or_an_instance(tmp_path):
    model, shape = {"_target_": "nowhere.Net", "hidden": [5]}, (1, 2, 2)
    network = MLP(shape, 3, hidden=[5])
    facts = {"shape": [*shape], "outputs": 3}
    mark_trusted(write_winner(tmp_path / "run", model, network.state_dict(), **facts))
    inputs = torch.rand(4, *shape)
    expected = network.eval()(inputs).softmax(1).detach()
    for maker in (MLP, network):
        prediction = load_winner(tmp_path / "run", network=maker).predict(inputs)
        assert torch.equal(prediction.probabilities, expected)


# The command predicts what Python predicts


class Named(nn.Module):
    """A network of two named inputs, of which one is token ids; with a number for each example."""

    def __init__(self, shape=None, outputs=None):
        super().__init__()
        self.words, self.layer = nn.Embedding(7, 3), nn.Linear(5, 1)

    def forward(self, ids, features):
        return self.layer(torch.cat([self.words(ids).mean(1), features], 1))[:, 0]


class Segments(nn.Module):
    """A network that gives the class of each pixel."""

    def __init__(self, shape=None, outputs=None):
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, image):
        return self.layer(image)


class Words(nn.Module):
    """A network of texts of any length."""

    def __init__(self, shape=None, outputs=None):
        super().__init__()
        self.words, self.layer = nn.Embedding(7, 3), nn.Linear(3, 2)

    def forward(self, ids):
        return self.layer(self.words(ids).mean(1))


IDS, FEATURES = torch.tensor([[1, 2], [0, 6]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
PIXELS = torch.linspace(0, 1, 2 * 4 * 5).reshape(2, 1, 4, 5)
DATASET = {"from_dataset": True, "outputs": 3}
# By name: the network, the facts of its data, its inputs, and the file that holds them.
LIKE_PYTHON = {
    "named inputs": (Named, {"classifies": False}, {"features": FEATURES, "ids": IDS}, "npz"),
    "inputs in order": (Named, {"classifies": False}, (IDS, FEATURES), "npz"),
    "maps of classes": (Segments, {"shape": [1, 4, 5]}, PIXELS, "npy"),
    "maps of numbers": (Segments, {"shape": [1, 4, 5], "classifies": False}, PIXELS, "npy"),
    "an array with a name": (Segments, {"shape": [1, 4, 5]}, {"x": PIXELS}, "npz"),
    "token ids": (Words, {"shape": [3], "input_dtype": "int64"}, IDS, "npy"),
    "lines of token ids": (Words, {"shape": [3], "input_dtype": "int64"}, IDS, "csv"),
}


def save_inputs(folder, inputs, kind):
    """Writes inputs to a file as a user would."""
    path = folder / f"inputs.{kind}"
    if kind == "csv":
        np.savetxt(path, inputs, fmt="%d", delimiter=",")
    elif kind == "npy":
        np.save(path, inputs.numpy())
    elif isinstance(inputs, tuple):
        np.savez(path, *[tensor.numpy() for tensor in inputs])
    else:
        np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in inputs.items()})
    return path


def predict_in_the_shell(capsys, folder, path):
    """Returns the predictions of the command for a file, as JSON and as lines."""
    assert main(["predict", str(folder), str(path), "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert main(["predict", str(folder), str(path)]) == 0
    return predictions, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("case", LIKE_PYTHON)
def test_the_command_predicts_from_files_what_python_predicts(case, tmp_path, capsys):
    kind, facts, inputs, ending = LIKE_PYTHON[case]
    torch.manual_seed(0)
    section = {"_target_": f"test_loops_predict.{kind.__name__}"}
    folder = tmp_path / "run"
    write_winner(folder, section, kind().state_dict(), **DATASET | facts)
    mark_trusted(folder)
    path = save_inputs(tmp_path, inputs, ending)
    predictions, lines = predict_in_the_shell(capsys, folder, path)
    if isinstance(inputs, dict) and len(inputs) == 1:
        (inputs,) = inputs.values()
    expected = load_winner(folder).predict(inputs)
    assert len(predictions) == len(lines) == 2
    for place, row in enumerate(predictions):
        assert row["name"] == f"{path}[{place}]"
        values = torch.tensor(row["values"] or row["labels"]).reshape(row["shape"] or -1)
        if expected.classes is None:
            assert torch.allclose(values, expected.values[place])
        elif expected.classes.ndim == 1:
            assert row["label"] == expected.classes[place]
        else:
            assert torch.equal(values, expected.classes[place])


def test_a_map_is_printed_up_to_a_size_and_then_in_summary():
    small = InputPrediction("a", labels=(0, 2), shape=(1, 2))
    assert format_prediction(small) == "a\t1 × 2\t0\t2"
    classes = InputPrediction("a", labels=(*[1] * 90, *[0] * 30), shape=(10, 12))
    assert (
        format_prediction(classes) == "a\t10 × 12 classes, most 1 75.0%, 0 25.0%; --json prints all"
    )
    numbers = InputPrediction("a", values=tuple(map(float, range(200))), shape=(2, 100))
    assert format_prediction(numbers) == "a\t2 × 100 numbers from 0.0000 to 199; --json prints all"


def test_unusable_input_files_are_refused_with_the_fix(tmp_path, capsys):
    folder = tmp_path / "run"
    section = {"_target_": "test_loops_predict.Named"}
    write_winner(folder, section, Named().state_dict(), **DATASET)
    mark_trusted(folder)
    np.savez(tmp_path / "nan.npz", ids=IDS.numpy(), features=np.full((2, 2), np.nan))
    np.savez(tmp_path / "name.npz", ids=IDS.numpy(), feature=FEATURES.numpy())
    np.savez(tmp_path / "text.npz", ids=np.array(["a"]), features=FEATURES.numpy())
    np.save(tmp_path / "one.npy", IDS.numpy())
    words = {
        "nan.npz": "its numbers must be finite; features holds NaN",
        "name.npz": "Named cannot take these inputs: TypeError: ",
        "text.npz": "it must hold real numbers, and holds <U1",
        "one.npy": "numpy.savez(FILE, first, second) or (FILE, name=array)",
    }
    assert main(["predict", str(folder), *[str(tmp_path / name) for name in words]]) == 2
    errors = capsys.readouterr().err.splitlines()
    for (name, reason), error in zip(words.items(), errors, strict=True):
        assert f"{name}: " in error
        assert reason in error
    write_winner(
        folder, section, Named().state_dict(), shape=[2], input_dtype="int64", from_dataset=True
    )
    (tmp_path / "part.csv").write_text("1,2.5\n")
    assert main(["predict", str(folder), str(tmp_path / "part.csv")]) == 2
    assert "must be integers" in capsys.readouterr().err


class Sequence(nn.Module):
    """An LSTM as PyTorch has it: (time, batch, features), with its state if that is given."""

    def __init__(self, width=8):
        super().__init__()
        self.lstm = nn.LSTM(4, width)

    def forward(self, x, state=None):
        return self.lstm(x, state)[0]


def linear(width=8):
    return nn.Linear(4, width)


def test_a_dimension_that_may_be_time_is_cut_only_by_batch(tmp_path):
    network = Sequence().eval()
    write_loop_result(tmp_path, {"net": network.state_dict()}, metric="loss")
    winner = load_winner(tmp_path, network=Sequence)
    inputs, state = torch.randn(400, 2, 4), (torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    with torch.no_grad():
        assert torch.equal(winner.predict(inputs).values, network(inputs))
        cut = torch.cat([network(part) for part in inputs.split(100)])
        assert torch.equal(winner.predict(inputs, batch=100).values, cut)
        assert torch.equal(winner.predict((inputs, state)).values, network(inputs, state))
        named = {"state": tuple(tensor.double().numpy() for tensor in state), "x": inputs}
        assert torch.equal(winner.predict(named).values, network(inputs, state))


class Several(nn.Module):
    """A VAE or an actor-critic: several outputs, the first of which are probabilities."""

    def __init__(self, kind="tuple"):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        parts = {"likely": y.softmax(1), "state": (y, -y), "square": y**2}
        return parts if self.kind == "dict" else tuple(parts.values())


@pytest.mark.parametrize(("kind", "second"), [("tuple", 2), ("dict", "square")])
def test_the_first_of_several_outputs_predicts_unless_one_is_named(tmp_path, kind, second):
    network, x = Several(kind), torch.randn(3, 4)
    write_loop_result(tmp_path, {"net": network.state_dict()}, kind=kind)
    winner = load_winner(tmp_path, network=Several)
    with torch.no_grad():
        y = network.layer(x)
    assert torch.equal(winner.predict(x).probabilities, y.softmax(1)), "no second softmax"
    assert torch.equal(winner.predict(x, softmax=True).probabilities, y.softmax(1).softmax(1))
    assert torch.equal(winner.predict(x, softmax=False).values, y.softmax(1))
    assert torch.equal(winner.predict(x, output=second, softmax=False).values, y**2)
    write_loop_result(tmp_path / "one", {"net": linear().state_dict()})
    single = load_winner(tmp_path / "one", network=linear)
    for loaded, reason in ((winner, "the outputs are"), (single, "the network gives one output")):
        with pytest.raises(PredictError, match=f"output='mean': {reason}"):
            loaded.predict(x, output="mean")


def test_a_network_keeps_the_precision_of_its_training(tmp_path):
    network, x = linear().double(), torch.randn(3, 4, dtype=torch.float64)
    write_loop_result(tmp_path, {"net": network.state_dict()}, metric="loss")
    winner = load_winner(tmp_path, network=linear)
    with torch.no_grad():
        assert torch.equal(winner.predict(x).values, network(x))
        assert torch.equal(winner.predict(x.float()).values, network(x.float().double()))
    half = linear().bfloat16()
    write_loop_result(tmp_path / "half", {"net": half.state_dict()}, metric="loss")
    assert load_winner(tmp_path / "half", network=linear).predict(x).values.dtype == torch.float32


def test_one_of_two_kept_networks_is_chosen_by_name(tmp_path):
    networks = {"policy": linear(), "value": linear()}
    states = {name: network.state_dict() for name, network in networks.items()}
    layer = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 8}
    x = torch.randn(3, 4)
    with torch.no_grad():
        policy, value = networks["policy"](x), networks["value"](x)
    write_loop_result(tmp_path, states, {"value": layer}, metric="loss")
    assert torch.equal(load_winner(tmp_path).predict(x).values, value)
    again = load_winner(tmp_path, network={"policy": linear})
    assert torch.equal(again.predict(x).values, policy)
    write_loop_result(
        tmp_path / "named", states, {"policy": "test_loops_predict.linear"}, metric="loss"
    )
    assert torch.equal(load_winner(tmp_path / "named").predict(x).values, policy)
    (tmp_path / "named" / "made-by").unlink()
    with pytest.raises(ConfigError, match=r"test_loops_predict\.linear is not among"):
        load_winner(tmp_path / "named").predict(x)


@pytest.mark.parametrize("inputs", [torch.randn(3, 5), torch.randn(4, 3, 2), [1.0, 2.0, 3.0]])
def test_an_error_names_the_shape_of_unusable_inputs(tmp_path, inputs):
    write_loop_result(tmp_path, {"net": linear().state_dict()})
    shape = " × ".join(map(str, torch.as_tensor(inputs).shape))
    with pytest.raises(PredictError, match=f"^inputs: Linear cannot take these inputs of {shape}"):
        load_winner(tmp_path, network=linear).predict(inputs)


def test_an_error_says_how_to_name_a_missing_network(tmp_path):
    both = {"net": embedded().state_dict(), "ema": embedded().state_dict()}
    bare = load_winner(write_loop_result(tmp_path / "bare", {"net": both["net"]}))
    assert {*bare.states} == {"net"}
    assert bare.config.params.lr == 0.1
    for folder, network, words in (
        (tmp_path / "bare", None, "add --network mine.Net, here or once to `studyloom winner"),
        (tmp_path / "bare", Pair, "objective.network: .*missing 1 required positional argument"),
        (tmp_path / "bare", not_a_network, "must give a torch.nn.Module; got int"),
        (tmp_path / "bare", nn.Linear(2, 2), "winner.pt: .*Missing key"),
        (
            write_loop_result(tmp_path / "both", both),
            embedded,
            "predicts, net or ema: add --network NAME=",
        ),
        (tmp_path / "both", {"emma": embedded}, r"load_winner\(RUN_DIR, network={'NAME': Net}\)"),
        (
            tmp_path / "both",
            {"net": embedded, "ema": embedded},
            "must say which network",
        ),
        (
            write_loop_result(tmp_path / "none", {}),
            embedded,
            "the winner was saved without its network",
        ),
        (
            write_loop_result(tmp_path / "files", {"optimizer": {"lr": 1.0}, "files": {"a": b""}}),
            embedded,
            "without its network: it kept only optimizer, files; winner.yaml",
        ),
        (tmp_path / "both", None, "objective.network must say which network"),
        (tmp_path / "none", None, "without its network.* a command, a Hydra app and an Optuna"),
    ):
        with pytest.raises((PredictError, ConfigError), match=words):
            load_winner(folder, network=network).predict([[1, 2]])
    assert main(["predict", str(tmp_path / "bare"), "x.npy"]) == 2
