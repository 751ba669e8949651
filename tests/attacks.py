"""Folders of configs from elsewhere that attack whoever composes them."""

from pathlib import Path

SECRET = "canary-of-the-environment"
# What each attack would leave behind: files below the folder `out`, or SECRET in what is written.
LOGGING = "{version: 1, handlers: {h: HANDLER}, root: {level: INFO, handlers: [h]}}"
FACTORY = LOGGING.replace("HANDLER", "{'()': pathlib.Path.touch, self: 'x'}")
TOUCH = LOGGING.replace("HANDLER", "{'()': os.mkdir, path: 'OUT/made'}")
HANDLER = LOGGING.replace("HANDLER", "{class: logging.FileHandler, filename: 'OUT/log'}")
PRIMARY = "defaults: [mnist, _self_]\n"

# name: the files of the folder; `evil` is the primary config.
ATTACKS = {
    "job_logging with a factory": {"evil": f"{PRIMARY}hydra: {{job_logging: {TOUCH}}}"},
    "hydra_logging with a factory": {"evil": f"{PRIMARY}hydra: {{hydra_logging: {TOUCH}}}"},
    "a handler that writes a file": {"evil": f"{PRIMARY}hydra: {{job_logging: {HANDLER}}}"},
    "an environment variable": {
        "evil": f"{PRIMARY}hydra: {{job: {{env_set: {{LD_PRELOAD: OUT/x}}}}}}"
    },
    "the folder of Hydra's files": {"evil": f"{PRIMARY}hydra: {{output_subdir: OUT/sub}}"},
    "the folder of the run": {"evil": f"{PRIMARY}hydra: {{run: {{dir: OUT/run}}}}"},
    "a callback from a second file": {
        "evil": "defaults: [mnist, more, _self_]\n",
        "more": "hydra: {callbacks: {c: {_target_: os.mkdir, path: OUT/made}}}\n",
    },
    "a group of Hydra from a second file": {
        "evil": "defaults: [mnist, _self_, override hydra/job_logging: bad]\n",
        "hydra/job_logging/bad": TOUCH,
    },
    "Hydra's own config, replaced": {
        "evil": PRIMARY,
        "hydra/config": "run: {dir: OUT/run}\noutput_subdir: x\nmode: RUN\n",
    },
    "a header that says where it goes": {
        "evil": "defaults: [mnist, model/bad, _self_]\n",
        "model/bad": f"# @package hydra.job_logging\n{TOUCH}",
    },
    "a package in the defaults list": {
        "evil": "defaults: [mnist, model/bad@hydra.job_logging, _self_]\n",
        "model/bad": TOUCH,
    },
    "storage.url": {"evil": f"{PRIMARY}storage: {{url: 'sqlite:///OUT/x.db'}}"},
    "storage from a group": {
        "evil": "defaults: [mnist, _self_, override storage: bad]\n",
        "storage/bad": "url: sqlite:///OUT/x.db\n",
    },
    "run_dir": {"evil": f"{PRIMARY}run_dir: OUT/run"},
    "checkpoints.dir": {"evil": f"{PRIMARY}checkpoints: {{dir: OUT/c}}"},
    "study.from": {"evil": f"{PRIMARY}study: {{from: OUT/study}}"},
    "data.root": {"evil": f"{PRIMARY}data: {{root: OUT}}"},
    "the environment in a second file": {
        "evil": "defaults: [mnist, more, _self_]\n",
        "more": "params: {leak: '${oc.env:SECRET}'}\n",
    },
    "the environment in the primary": {"evil": f"{PRIMARY}params: {{leak: '${{oc.env:SECRET}}'}}"},
    "the environment in a name of the defaults": {
        "evil": "defaults: [mnist, _self_, {model: '${oc.env:SECRET}'}]\n"
    },
    "a decoded environment": {
        "evil": f"{PRIMARY}params: {{leak: \"${{oc.decode:'${{oc.env:SECRET}}'}}\"}}"
    },
    "the storage in a name": {"evil": f"{PRIMARY}params: {{leak: '${{storage.url}}'}}"},
    "another scheme": {"evil": f"{PRIMARY}hydra: {{searchpath: ['pkg://os']}}"},
    "an absolute path": {"evil": "defaults: [mnist, OUT/x, _self_]\n"},
    "a parent path": {"evil": "defaults: [mnist, ../up, _self_]\n", "../up": "params: {a: 1}\n"},
    "a tag": {"evil": f"{PRIMARY}params: !!python/object/apply:pathlib.Path [x]\n"},
    "trust in itself": {"evil": f"{PRIMARY}trust: [os]\n"},
    "code in a second file": {
        "evil": "defaults: [mnist, more, _self_]\n",
        "more": "scheduler: {_target_: os.mkdir, path: OUT/made}\n",
    },
    "its own launcher": {
        "evil": f"{PRIMARY}launcher: "
        "{_target_: studyloom.extras.slurm.Slurm, lines: ['touch OUT/x']}"
    },
    "a space over a path": {
        "evil": f"{PRIMARY}space: {{data: {{root: {{choice: [OUT, OUT/b]}}}}}}"
    },
    "a section of another section": {
        "evil": f"{PRIMARY}params: {{from: OUT/study, name: x}}\nstudy: ${{params}}\n"
    },
    "an alias": {"evil": f"{PRIMARY}params: {{a: &a [1], b: *a}}"},
}


def write(folder: Path, files: dict[str, str], out: Path) -> Path:
    """Writes the files of an attack whose canaries are below `out`."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("OUT", str(out)))
    return folder
