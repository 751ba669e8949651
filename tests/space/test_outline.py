from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from snapshots import shown
from spaces import space_of

from studyloom.space.outline import outline
from studyloom.space.tree import describe

TREE = {
    "model": {
        "mlp": {
            "hidden": {"list": {"int": [16, 512], "log": True}, "length": {"int": [1, 3]}},
            "dropout": {"list": {"float": [0.0, 0.5]}, "length": "hidden"},
        },
        "cnn": {"block": {"residual": {"depth": {"int": [2, 8], "step": 2}}}},
    },
    "optimizer": {"lr": {"float": [1e-4, 1.0], "log": True}, "sgd": None, "adam": None},
    "train": {"clip_norm": {"choice": [None, 1.0]}},
}


def test_the_outline_shows_groups_options_and_ranges_as_a_tree():
    assert shown(outline(space_of(TREE))) == (
        "space: infinitely many configurations\n"
        "├── model\n"
        "│   ├── mlp\n"
        "│   │   ├── hidden: list of length 1 … 3, each 16 … 512 log\n"
        "│   │   └── dropout: list as long as hidden, each 0 … 0.5\n"
        "│   └── cnn\n"
        "│       └── block (fixed)\n"
        "│           └── residual\n"
        "│               └── depth: 2 … 8 step 2\n"
        "├── optimizer\n"
        "│   ├── sgd\n"
        "│   └── adam\n"
        "├── optimizer.lr: 0.0001 … 1 log\n"
        "└── train.clip_norm: null | 1.0\n"
    )


def test_a_distribution_is_described_as_yaml_would_write_it():
    for distribution, words in (
        (CategoricalDistribution(("relu", True, None, 1.0)), "relu | true | null | 1.0"),
        (IntDistribution(3, 3), "3"),
        (FloatDistribution(1e-5, 0.1, log=True), "1e-05 … 0.1 log"),
        (FloatDistribution(0.0, 0.9, step=0.1), "0 … 0.9 step 0.1"),
    ):
        assert describe(distribution) == words
