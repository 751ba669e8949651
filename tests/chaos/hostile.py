"""Random configs of somebody who wants to get out: strategies of hypothesis.

Each string that could execute, read, write or connect is a canary below OUT, which the sandbox
replaces by a folder that nothing may touch.
"""

import dataclasses
from typing import Any

import yaml
from hydra.conf import HydraConf
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sandbox import Layout

from studyloom.config.schema import SCHEMA

PATHS = ["OUT/made", "OUT/read.yaml", "OUT/fifo.yaml", "OUT", "../c4nary/made", "file://OUT"]
PATHS += ["sqlite:///OUT/x.db", "OUT/study#mnist", "pkg://c4nary_code", "postgresql://u@c4nary/d"]
COMMANDS = ["touch OUT/command", "open('OUT/eval', 'w')", "__import__('c4nary_code')"]
TARGETS = [
    *("os.system", "os.mkdir", "builtins.eval", "builtins.exec", "builtins.open", "subprocess.run"),
    *("c4nary_code.touch", "importlib.import_module", "torch.load", "pathlib.Path.touch"),
    *("logging.FileHandler", "studyloom.launch.Slurm", "studyloom.launch.Ray"),
    *("studyloom.data.Idx", "studyloom.data.Embedded", "studyloom.tables.Table", "torch.nn.Linear"),
    *("studyloom.models.MLP", "torch.nn.Sequential", "optuna.samplers.RandomSampler"),
    *(
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "torch.nn.modules.module.torch.load",
    ),
]
LEAKS = [
    *("${oc.env:SECRET}", "${oc.decode:${oc.env:SECRET}}", "${oc.create:${oc.env:SECRET}}"),
    *(
        "${oc.env:NOTHING,${oc.env:SECRET}}",
        "${env:SECRET}",
        "x${oc.env:SECRET}y",
        "\\${oc.env:SECRET}",
    ),
    *("${hydra:runtime.cwd}", "${hydra.job.name}", "${storage.url}", "${oc.select:storage.url}"),
    *("${oc.dict.values:storage}", "${studyloom.run_dir:a,OUT/run}", "${now:%Y}", "${trust}"),
    *("${params}", "${params.from}", "${model}", "${study.seed}", "${.x}", "${..storage.url}"),
    *("${params.${study.name}}", "${params.x}${params.x}", "${train.epochs}", "${run_dir}"),
]
PLAIN = [0, 1, 3, 0.5, True, None, "relu", "mnist", "x", [16], "???", "", "defaults"]
OPTIONS = ["bad", "mlp", "sqlite", "none", "local", "slurm", "given", "../up", "OUT/read", "a,b"]
GROUPS = [
    "model",
    "data",
    "storage",
    "launcher",
    "space",
    "sampler",
    "scheduler",
    "params",
    "study",
]
HYDRA_GROUPS = [
    "job_logging",
    "hydra_logging",
    "callbacks",
    "launcher",
    "sweeper",
    "help",
    "output",
]
GROUPS += [f"hydra/{group}" for group in HYDRA_GROUPS]
GROUPS += ["more", "hydra", "experiment", "model/storage"]
PACKAGES = [
    "_global_",
    "_group_",
    "hydra",
    "hydra.job_logging",
    "storage",
    "_global_.storage",
    "${x}",
]
NAMES = [
    *("more", "studyloom", "own", "hydra/config", "hydra/launcher/basic", "hydra/sweeper/basic"),
    *(f"{group}/bad" for group in GROUPS if group != "more"),
    *(
        "model/mlp",
        "storage/sqlite",
        "launcher/local",
        "data/mnist5k",
        "model/storage/bad",
        "../up",
    ),
]


def _paths(config: Any, above: str = "") -> list[str]:
    """All keys of a config, with those above them."""
    found = []
    for name in config:
        key = f"{above}{name}"
        node = config._get_node(name)
        found.append(key)
        if OmegaConf.is_dict(node) and not node._is_none() and not node._is_missing():
            found += _paths(node, f"{key}.")
    return found


HYDRA = [f"hydra.{key}" for key in _paths(OmegaConf.structured(HydraConf))]
HYDRA += [f"hydra.{entry.name}" for entry in dataclasses.fields(HydraConf)]
HYDRA += [
    "hydra.callbacks.c._target_",
    "hydra.job.env_set.LD_PRELOAD",
    "hydra.job_logging.root.level",
]
OURS = [*_paths(SCHEMA), "data.root", "data.path", "data.load", "launcher.lines", "params.a.b"]
OURS += [f"{group}.{key}" for group in ("model", "scheduler", "loss") for key in ("_target_", "x")]
KEYS = [
    "_target_",
    "_args_",
    "_partial_",
    "_recursive_",
    "_convert_",
    "root",
    "path",
    "url",
    "from",
]
KEYS += [
    "()",
    "class",
    "filename",
    "handlers",
    "x",
    "y",
    "defaults",
    "choice",
    "${oc.env:SECRET}",
    "a.b",
]

canaries = st.sampled_from([*PATHS, *COMMANDS, *TARGETS, *LEAKS])
leaves = st.one_of(canaries, canaries, st.sampled_from(PLAIN))
trees = st.recursive(
    leaves,
    lambda below: st.one_of(
        st.lists(below, max_size=2),
        st.dictionaries(st.sampled_from(KEYS), below, min_size=1, max_size=3),
    ),
    max_leaves=5,
)
called = st.builds(
    lambda target, arguments: {"_target_": target, **arguments},
    st.sampled_from(TARGETS),
    st.dictionaries(st.sampled_from([*KEYS[1:], "command", "expression", "f"]), leaves, max_size=2),
)
logging_ = st.builds(
    lambda handler: {"version": 1, "handlers": {"h": handler}, "root": {"handlers": ["h"]}},
    st.one_of(
        st.builds(
            lambda target, path: {"()": target, "path": path}, st.sampled_from(TARGETS), leaves
        ),
        st.builds(lambda path: {"class": "logging.FileHandler", "filename": path}, leaves),
    ),
)
values = st.one_of(leaves, trees, called, logging_)


def _nested(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        node = content
        *above, last = key.split(".")
        for part in above:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[last] = value
    return content


aimed = st.lists(st.tuples(st.sampled_from([*HYDRA, *OURS]), values), min_size=1, max_size=3)
# What a config may set, with a canary in places where it is only a word: these are composed.
plain = st.lists(
    st.tuples(
        st.sampled_from(
            ["params.a", "params.b.c", "params.x", "train.epochs", "study.seed", "model.hidden"]
        ),
        st.sampled_from(
            [1, 2, 3, [16, 8], "touch OUT/word", "OUT/word", "${study.seed}", "${params.x}"]
        ),
    ),
    max_size=3,
)
contents = st.one_of(aimed.map(_nested), aimed.map(_nested), plain.map(_nested))
group_contents = st.one_of(
    contents, called, logging_, st.dictionaries(st.sampled_from(KEYS), leaves)
)
keywords = st.sampled_from(["", "", "override ", "optional ", "override /", "/"])
packages = st.sampled_from(["", "", "", "@hydra", "@storage", "@_global_", "@hydra.job_logging"])
entries = st.one_of(
    st.builds(
        lambda words, group, package, option: {f"{words}{group}{package}": option},
        keywords,
        st.sampled_from(GROUPS),
        packages,
        st.one_of(
            st.sampled_from(OPTIONS), st.lists(st.sampled_from(OPTIONS), max_size=2), canaries
        ),
    ),
    st.builds(
        lambda name, package: f"{name}{package}", st.sampled_from([*NAMES, *PATHS]), packages
    ),
)
headers = st.one_of(
    st.just(""), st.just(""), st.sampled_from(PACKAGES).map("# @package {}\n".format)
)
tricks = st.sampled_from(
    [
        "params: !!python/object/apply:os.system ['touch OUT/tag']\n",
        "params: !!python/object/apply:pathlib.Path ['OUT/tag']\n",
        "params: {a: &a [1, 2], b: *a}\n",
        "params: " + "[" * 400 + "]" * 400 + "\n",
        "params: {x: " + "9" * 5000 + "}\n",
        "storage: !!str sqlite:///OUT/tag.db\n",
        "<<: {storage: {url: 'sqlite:///OUT/merged.db'}}\n",
        '"storage": {"\\x75rl": "sqlite:///OUT/escaped.db"}\n',
        "? storage\n: {url: sqlite:///OUT/complex.db}\n",
        "hydra:\n  run:\n    dir: OUT/run\n",
        "\ufeffhydra: {output_subdir: OUT/bom}\n",
        "a: 1\n---\nhydra: {output_subdir: OUT/second}\n",
        "just words",
        "\x00",
    ]
)


@st.composite
def files(draw: st.DrawFn, *, primary: bool) -> str:
    """The text of a file."""
    if draw(st.integers(0, 19)) == 0:
        return ("defaults: [own, _self_]\n" if primary else "") + draw(tricks)
    content = draw(contents if primary else group_contents)
    content.pop("defaults", None)
    more = draw(st.lists(entries, max_size=2))
    if primary or draw(st.integers(0, 3)) == 0:
        content = {"defaults": [*(["own"] if primary else []), *more, "_self_"], **content}
    return draw(headers if not primary else st.just("")) + yaml.safe_dump(content, sort_keys=False)


COMMAND_LINES = [
    *[["--config-dir", "THEIRS", "--config-name", "evil"]] * 5,
    ["--config-path", "THEIRS", "--config-name", "evil"],
    ["--config-dir", "THEIRS", "--config-name", "model/bad"],
    ["--config-dir", "THEIRS", "model=bad"],
    ["--config-dir", "THEIRS", "storage=bad"],
    ["hydra.searchpath=[file://THEIRS]", "model=bad", "space=bad"],
    ["--config-dir", "THEIRS", "hydra/job_logging=bad"],
    ["--config-dir", "THEIRS", "+hydra/callbacks=bad"],
    ["--config-dir", "THEIRS", "--config-name", "evil", "trust=[c4nary]", "model=bad"],
]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A folder of configs, and a command that names it."""
    names = draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True))
    folder = {"evil": draw(files(primary=True))}
    folder |= {name: draw(files(primary=False)) for name in names}
    return Layout(folder, draw(st.sampled_from(COMMAND_LINES)))
