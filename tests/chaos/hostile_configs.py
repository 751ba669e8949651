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
    *("logging.FileHandler", "studyloom.extras.slurm.Slurm", "studyloom.extras.ray.Ray"),
    *(
        "studyloom.data.Idx",
        "studyloom.data.Embedded",
        "studyloom.data.Table",
        "torch.nn.Linear",
    ),
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
    *("hydra/job_logging/none", "hydra/hydra_logging/none", "hydra/callbacks/none"),
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

headers = st.one_of(
    st.just(""), st.just(""), st.sampled_from(PACKAGES).map("# @package {}\n".format)
)
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


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merged(contents: list[dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for content in contents:
        for key, value in content.items():
            if isinstance(value, dict) and isinstance(whole.get(key), dict):
                value = _merged([whole[key], value])
            whole[key] = value
    return whole


paths, leaks = st.sampled_from(PATHS), st.sampled_from(LEAKS)
# Keys that reach out, with values that fit, so that a config with them would be composed.
REACH = {
    **dict.fromkeys(["hydra.job_logging", "hydra.hydra_logging"], logging_),
    **dict.fromkeys(["hydra.run.dir", "hydra.output_subdir", "hydra.sweep.dir"], paths),
    **dict.fromkeys(["hydra.callbacks.c", "hydra.sweeper", "hydra.launcher"], called),
    "hydra.job.env_set.LD_PRELOAD": st.one_of(paths, leaks),
    "hydra.job.env_copy": st.just(["SECRET"]),
    "hydra.searchpath": st.lists(paths, min_size=1, max_size=2),
    "hydra.job.name": leaks,
    "hydra.job.chdir": st.just(True),
    "hydra.verbose": st.sampled_from([True, "hydra"]),
    **dict.fromkeys(["storage.url", "storage.file", "run_dir", "checkpoints.dir"], paths),
    **dict.fromkeys(["study.from", "data.root", "data.path"], paths),
    **dict.fromkeys(
        ["study.name", "params.a", "params.b.c", "study.enqueue", "winner.rule"], leaks
    ),
    **dict.fromkeys(["data", "model", "scheduler", "loss", "optimizer", "sampler"], called),
    **dict.fromkeys(["launcher", "objective.metric", "train.loss", "pruner", "data.load"], called),
    "launcher.lines": st.lists(st.sampled_from(COMMANDS), min_size=1),
    "objective._target_": st.sampled_from(TARGETS),
    "storage": st.one_of(leaks, paths.map(lambda path: {"url": path})),
    "study": leaks,
    "trust": st.lists(st.sampled_from(["os", "builtins", "storage"]), min_size=1),
    "space.data.root.choice": st.lists(paths, min_size=1, max_size=2),
    "space.storage.url.choice": st.lists(paths, min_size=1, max_size=2),
    "space.model.bad": st.just({}),
    "space.hydra/job_logging.bad": st.just({}),
    "space.scheduler._target_.choice": st.lists(st.sampled_from(TARGETS), min_size=1, max_size=2),
    "params.x": values,
}
WORDS = {
    **dict.fromkeys(
        ["params.word", "params.list.inner"], st.one_of(paths, st.sampled_from(COMMANDS))
    ),
    **dict.fromkeys(["train.epochs", "study.trials", "study.seed"], st.integers(1, 3)),
    "params.copy": st.sampled_from(["${study.seed}", "${params.word}", "${train.epochs} epochs"]),
    "model.hidden": st.just([8]),
}


def _one_of(table: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(list(table)).flatmap(
        lambda key: table[key].map(lambda value: _nested(key, value))
    )


reach, words = _one_of(REACH), _one_of(WORDS)
anywhere = st.builds(_nested, st.sampled_from([*HYDRA, *OURS]), values)
contents = st.lists(st.one_of(reach, reach, reach, words, anywhere), min_size=1, max_size=2).map(
    _merged
)
OWN_GROUPS = ("data", "model", "sampler", "storage", "launcher", "space", "hydra/job_logging")
packages = st.sampled_from(["@hydra", "@storage", "@_global_", "@hydra.job_logging", "@study"])
entries = st.one_of(
    st.sampled_from([*NAMES, *PATHS]),
    st.builds(
        lambda keyword, group, package, option: {f"{keyword}{group}{package}": option},
        st.sampled_from(["", "override ", "optional ", "override /", "/"]),
        st.sampled_from(GROUPS),
        st.one_of(st.just(""), packages),
        st.one_of(
            st.sampled_from(OPTIONS), st.lists(st.sampled_from(OPTIONS), max_size=2), canaries
        ),
    ),
)


def _inside(group: str) -> st.SearchStrategy[dict[str, Any]]:
    """What a file of a group may hold, if it is to reach out."""
    above = group.replace("/", ".")
    start = f"{above}."
    fitting = {key.removeprefix(start): REACH[key] for key in REACH if key.startswith(start)}
    whole = REACH.get(above, called).map(
        lambda value: value if isinstance(value, dict) else {"x": value}
    )
    return st.one_of(whole, _one_of(fitting)) if fitting else whole


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

PLAIN_START = "defaults: [own, _self_]\n"
WITHOUT_OWN = (
    "- studyloom\n- data: mnist5k\n- model: mlp\n- sampler: random\n- storage: sqlite\n"
    "- launcher: local\n- space: none\n"
)


def _text(defaults: list[Any], content: dict[str, Any], header: str = "") -> str:
    lines = {"defaults": defaults} if defaults else {}
    return header + yaml.safe_dump({**lines, **content}, sort_keys=False, allow_unicode=True)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A folder of configs, and a command that names it."""
    folder: dict[str, str] = {}
    primary, defaults, argv = [], ["own"], ["--config-dir", "THEIRS", "--config-name", "evil"]
    override: list[Any] = []
    for _ in range(draw(st.integers(1, 2))):
        match draw(
            st.sampled_from(["here", "here", "file", "group", "group", "shadow", "package"])
        ):
            case "here":
                primary.append(draw(contents))
            case "file":
                name = draw(st.sampled_from(["more", "extra/more"]))
                folder[name] = _text([], draw(contents), "# @package _global_\n" * ("/" in name))
                defaults.append(name)
            case "group":
                group = draw(st.sampled_from([*GROUPS, *OWN_GROUPS]))
                header = draw(headers)
                content = draw(contents if header else _inside(group))
                inner = draw(st.lists(entries, max_size=1)) if draw(st.booleans()) else []
                folder[f"{group}/bad"] = _text(inner, content, header)
                if group in OWN_GROUPS:
                    override.append({f"override {group}": "bad"})
                else:
                    defaults.append({group: "bad"})
                if draw(st.integers(0, 3)) == 0:
                    argv = [*argv[:2], f"{'' if group in OWN_GROUPS else '+'}{group}=bad"]
            case "shadow":
                name = draw(st.sampled_from(NAMES))
                group = name.rpartition("/")[0]
                folder[name] = _text([], draw(_inside(group) if group else contents))
            case "package":
                folder["model/bad"] = _text([], draw(st.one_of(logging_, contents)))
                defaults.append(f"model/bad{draw(packages)}")
    if draw(st.integers(0, 4)) == 0:
        defaults.append(draw(entries))
    text = _text([*defaults, "_self_", *override], _merged([*primary, draw(words)]))
    folder["evil"] = text if draw(st.integers(0, 24)) else PLAIN_START + draw(tricks)
    where = draw(st.sampled_from(["dir", "dir", "dir", "path", "search", "trust"]))
    if where == "path" and "evil" in argv:
        argv = ["--config-path", "THEIRS", "--config-name", "evil"]
        # The user's own folder is not searched then.
        folder["evil"] = folder["evil"].replace("- own\n", WITHOUT_OWN)
    elif where == "search" and "evil" not in argv:
        argv = ["hydra.searchpath=[file://THEIRS]", *argv[2:]]
    elif where == "trust":
        argv = [*argv, "trust=[nobody]"]
    return Layout(folder, argv)
