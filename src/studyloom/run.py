"""A study from its config to its answer: what a page in `studies/` calls."""

import logging
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import optuna
import torch
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from studyloom import config, progress, report, server, winner
from studyloom.calls import Called
from studyloom.config import Composer, ConfigError
from studyloom.disks import filesystem, is_network
from studyloom.failures import FAILURE, REASON, UNDEFINED
from studyloom.launch import (
    HALT,
    WORKER,
    Join,
    Launcher,
    LaunchError,
    Nursery,
    Task,
    age,
    follow_parent,
    own_arguments,
    program,
)
from studyloom.outline import outline
from studyloom.question import SECTIONS, Material, Question
from studyloom.record import Record, create_record, open_record
from studyloom.schema import WinnerSection
from studyloom.stages import Plan, Stage
from studyloom.starts import Starts, find_starts, known_sources, lay_down
from studyloom.stop import Stop
from studyloom.storage import StorageError, StorageLost, connections_left, exclusive, hidden, parse
from studyloom.study import EPOCHS, Halted, Limits, Stopwatch, Worker
from studyloom.winner import NoWinner

log = logging.getLogger(__name__)

SHOWN = ("model", "optimizer", "scheduler", "train", "params")  # of the configuration that a dry run samples


@dataclass(frozen=True)
class Prepared:
    """All that must be right before work starts."""

    question: Question
    launcher: Launcher
    material: Material
    url: str
    run_dir: Path
    starts: Starts


def run(cfg: DictConfig) -> None:
    """Runs the study that a config describes, or goes on with it, and prints the answer.

    Ends the process with 0 if all is done; with 2 if nothing was started, for a mistake in the configuration or a
    database or file that cannot be used; with 1 if it could not finish; with 130 or 143 if it was stopped by Ctrl-C or
    SIGTERM. `HYDRA_FULL_ERROR=1` shows tracebacks.
    """
    launcher = cfg.launcher if isinstance(cfg.launcher, DictConfig) else {}
    forks = launcher.get("_target_") == "studyloom.launch.Local" and WORKER not in os.environ and not cfg.study.dry_run
    nursery = Nursery.open(lambda: proceed(cfg)) if forks else None
    try:
        proceed(cfg, nursery)
    finally:
        if nursery is not None:
            nursery.close()


def proceed(cfg: DictConfig, nursery: Nursery | None = None) -> NoReturn:
    """The same in this process, be it the command's or that of a worker which a launcher has started."""
    worker = WORKER in os.environ
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO if worker else logging.WARNING)
    logging.captureWarnings(True)
    if worker:
        follow_parent()
    code = 0
    with Stop(cfg.study.timeout) as stop:
        try:
            prepared = prepare(cfg, worker=worker)
            if cfg.study.dry_run:
                show(prepared.question, progress.console())
                sys.exit()
            prepared = replace(prepared, url=server.serve(prepared.url))
            record, trials = open_study(prepared, create=not worker)
            record.ledger.storage.hurry(stop)
            plan = plan_of(prepared, Stage("search", record, prepared.question, trials))
            if not worker:
                check_room(prepared.url, prepared.launcher.count(plan.todo()))
        except (ValueError, OSError) as error:
            give_up(error, 2)
        task = task_of(prepared, plan, nursery)
        try:
            if worker:
                prepared.launcher.launch(task, stop)
            else:
                code = conduct(prepared, plan, task, stop)
        except KeyboardInterrupt:
            pass  # the second signal; what was held is handed back
        except Halted as error:
            give_up(error, HALT if worker else 2 if is_mistake(plan, error) else 1)
        except (LaunchError, NoWinner, StorageLost, OSError) as error:
            give_up(error, 1 if stop.signal is None else 128 + stop.signal)
        finally:
            plan.close()
    sys.exit(code if stop.signal is None else 128 + stop.signal)


def is_mistake(plan: Plan, error: Halted) -> bool:
    """Whether what has halted a study is that its objective is no number."""
    ended = [trial.user_attrs for stage in plan for trial in stage.record.trials()]
    return any(of.get(FAILURE) == UNDEFINED and str(of[REASON]) in str(error) for of in ended)


def give_up(error: Exception, code: int) -> NoReturn:
    """Says what is wrong and ends the process."""
    if config.full_errors():
        raise error
    lines = getattr(error, "mistakes", None) or [str(error)]
    sys.stderr.write("".join(f"error: {line}\n" for line in lines))
    sys.exit(code)


def prepare(cfg: DictConfig, *, worker: bool) -> Prepared:
    """Turns the config into objects, and checks all of it; for a worker whoever started it has done so.

    Raises:
        ConfigError: all mistakes found.
    """
    mistakes: list[str] = []

    def attempt(make: Callable[[], Any]) -> Any:  # None where it fails
        try:
            return make()
        except ValueError as error:
            mistakes.extend(getattr(error, "mistakes", [str(error)]))
        except Exception as error:
            if config.full_errors():
                raise
            mistakes.append(config.words(error))

    kind = Called if cfg.objective["_target_"] is not None else Question
    question = attempt(lambda: kind.ask(cfg, Composer.from_hydra()))
    launcher = Join() if worker else attempt(lambda: config.build(cfg.launcher))
    url = attempt(lambda: _url(cfg))
    material = attempt(lambda: kind.gather(cfg))
    if question is not None and not worker:
        if material is None:  # there is nothing to try networks on
            attempt(lambda: mistakes.extend(question.check_sections()))
        else:
            attempt(lambda: question.check(material.folds, material.split))
    starts: Any = Starts()
    if question is not None and url is not None and not worker and not mistakes:  # points of a wrong space are wrong
        known = _known_sources(url, cfg) if cfg.study["from"] is not None else []
        starts = attempt(lambda: find_starts(question, known))
    if url is not None and launcher is not None:
        mistakes += check_place(url, launcher)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return Prepared(question, launcher, material.to(device), url, Path(cfg.run_dir), starts)


def _url(cfg: DictConfig) -> str:
    url = config.storage_url(cfg)
    if url is None:
        where = "STUDYLOOM_STORAGE, or into a file of mode 0600 that storage.file names"
        raise ConfigError([f"storage.url: is not set; put postgresql://user:password@host/database into {where}"])
    if server.folder_of(url) is None:
        parse(url)
    return url


def check_place(url: str, launcher: Launcher) -> Iterator[str]:
    """Whether all workers can reach a database that is files on this host."""
    embedded = server.folder_of(url)
    address = parse(url) if embedded is None else None
    if address is not None and address.get_backend_name() != "sqlite":
        return
    files = embedded or Path(str(address and address.database)).absolute()
    kind = filesystem(files.parent)
    if launcher.leaves_host:
        what = "a server on 127.0.0.1" if embedded else f"a file on this host ({files})"
        yield (
            f"storage.url: {what} is out of reach for the workers that this launcher starts on other hosts; put the "
            "URL of a PostgreSQL server into STUDYLOOM_STORAGE, and set storage=postgres"
        )
    elif is_network(kind) and (embedded or launcher.count(2) > 1):
        many, one = ("two hosts", "") if embedded else ("several workers", ", or set launcher.workers=1")
        yield (
            f"storage.url: {files} lies on a network disk ({kind}), where {many} would damage the database; name a "
            f"local disk with run_dir=…, use a PostgreSQL server{one}"
        )


def check_room(url: str, workers: int) -> None:
    """Whether the server lets all workers in, two connections each; a single one is this process."""
    left, limit = connections_left(url) if workers > 1 else (math.inf, "")
    if left < 2 * workers:
        raise ConfigError(
            [
                f"storage.url: {workers} workers take {2 * workers} connections, and the server has {left:.0f} left "
                f"({limit}); start fewer with launcher.workers={max(1, left // 2):.0f}, or raise the limit"
            ]
        )


def _known_sources(url: str, cfg: DictConfig) -> list[str]:
    """The earlier studies with whose best this one has begun already; none where it is not there yet."""
    folder = server.folder_of(url)
    if folder is not None and not folder.exists():
        return []
    try:
        record = open_record(server.serve(url), str(cfg.study.name), deadline=0.0)
    except StorageError:
        return []
    try:
        return known_sources(record)
    finally:
        record.ledger.storage.engine.dispose()


def show(question: Question, console: Console) -> None:
    """Prints the space as a tree, and one configuration from it."""
    console.print(outline(question.space))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(question.config.study.seed)).ask()
    sample = question.at(question.space.suggest(trial))
    console.print(Text("\none configuration of it:", style="bold"))
    sections = config.plain(sample, *SHOWN)
    sections["train"].pop("loss")
    console.print(Padding(Text(OmegaConf.to_yaml(OmegaConf.create(sections)).rstrip()), (0, 0, 0, 2)))


def open_study(prepared: Prepared, *, create: bool) -> tuple[Record, int]:
    """The study in its database, made if it is not there, and the budget that the config gives it."""
    question, trials = prepared.question, prepared.question.trials()
    name = str(question.config.study.name)
    deadline = question.config.storage.deadline
    if not create:
        return open_record(prepared.url, name, deadline), trials
    prepared.run_dir.mkdir(parents=True, exist_ok=True)
    identity = question.identity(prepared.material.digest)
    record = create_record(prepared.url, name, identity, trials, deadline, aims=question.aims)
    record.state(question.rule)
    if left := lay_down(record, prepared.starts, trials, prepared.url, baseline=question.baseline):
        log.warning("%d points to begin with are left out: all %d trials have begun; raise study.trials", left, trials)
    return record, trials


def plan_of(prepared: Prepared, search: Stage) -> Plan:
    config = prepared.question.config
    settings = WinnerSection(**config.winner)
    return Plan(search, prepared.question, prepared.material, prepared.url, prepared.run_dir, settings)


def task_of(prepared: Prepared, plan: Plan, nursery: Nursery | None = None) -> Task:
    study = prepared.question.config.study
    limits = Limits(**{name: study[name] for name in Limits.__dataclass_fields__})
    record = plan.search.record
    work, where = _work(prepared, plan, limits), prepared.run_dir
    return Task(work, plan.todo, record.ledger, where, limits, record.name, nursery)


def _work(prepared: Prepared, plan: Plan, limits: Limits) -> Callable[[Stop], None]:
    material = prepared.material

    def work(stop: Stop) -> None:
        watch = Stopwatch.since(age())
        folder = prepared.question.config.checkpoints.dir
        for stage in plan:
            checkpoints = None
            if folder is not None:
                checkpoints = Path(folder) / ("" if stage is plan.search else stage.title)
                checkpoints.mkdir(parents=True, exist_ok=True)
            where = (material.split, material.folds, stop, checkpoints, limits, stage.weights, watch)
            Worker(stage.asked, stage.record, *where).run(stage.trials)
            if stop():
                return

    return work


def conduct(prepared: Prepared, plan: Plan, task: Task, stop: Stop) -> int:
    """Has the open slots worked on, shows how it goes, and tells what came of it; the exit code."""
    console = progress.console()
    started, began = time.monotonic(), datetime.now()
    record, trials = plan.search.record, plan.search.trials
    if todo := task.todo():
        for note in prepared.starts.notes:
            console.print(Text(note), soft_wrap=True)
        verb = "goes on" if any(trial.datetime_start for trial in record.trials()) else "begins"
        open_ = plan.search.todo()
        many = f"{open_} trial{'' if open_ == 1 else 's'} to do" if open_ else f"{plan.current.title} to do"
        console.print(f"{record.name} {verb}: {many}, logs in {task.logs}", soft_wrap=True)
        with progress.Display(lambda: plan.current.record, console):
            follow = prepared.launcher.launch(task, stop)
        if follow is not None:  # the work goes on without this command
            console.print(Text(follow), soft_wrap=True)
            return 0
    snapshot = progress.take(record)
    if snapshot.best is not None:
        write_best(prepared, snapshot.best)
    took = f", {progress.seconds(time.monotonic() - started)}" if todo else ""
    console.print(f"\n{progress.headline(snapshot)}{took}", soft_wrap=True)
    console.print(progress.answers_table(snapshot, console.width))
    if snapshot.rule is not None:
        console.print(progress.front_table(snapshot, console.width))
    if plan.is_done():
        tell_winner(plan, prepared, console)
    for stage in plan:
        tell_failures(stage.record, console)
    tell_places(prepared, plan, snapshot, console, began)
    if (why := next(filter(None, (stage.record.halted() for stage in plan)), None)) is not None:
        raise Halted(f"the study has stopped, since its trials fail with this: {why}")
    if stop():
        why = "the time is up" if stop.signal is None else "stopped"
        console.print(f"{why}; the same command goes on from here")
    elif snapshot.best is None and snapshot.rule is not None:
        console.print(
            Text(f"no trial keeps to winner.rule: {snapshot.rule}; loosen it, or raise study.trials"), soft_wrap=True
        )
    elif not todo:
        console.print(f"the budget of {trials} trials is spent")
    return 0 if snapshot.best is not None or stop() else 1


def tell_winner(plan: Plan, prepared: Prepared, console: Console) -> None:
    """The winner on the test part: opened for it now, or, where it was told before, read from winner.json."""
    # Of commands that come to the end together, one opens the test part; the others read what it has found.
    with exclusive(prepared.url, deadline=float(prepared.question.config.storage.deadline)):
        found = winner.read(plan.run_dir)
        if found is None or not winner.is_of(found, plan):
            found = winner.crown(plan, prepared.material.test, program())
            report.write(plan.search.record, plan.run_dir)
    console.print(Text("\n".join(winner.lines(found))), soft_wrap=True)


def judge(cfg: DictConfig) -> None:
    """Chooses and tests the winner of a search that has ended, in this process, whether or not it was done before.

    Raises:
        ValueError: the search has not ended, or what `prepare` and the database have to say.
        OSError: a file cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Stop() as stop:
        prepared = prepare(cfg, worker=True)
        prepared = replace(prepared, url=server.serve(prepared.url))
        record, trials = open_study(prepared, create=False)
        record.ledger.storage.hurry(stop)
        plan = plan_of(prepared, Stage("search", record, prepared.question, trials))
        if left := plan.search.todo():
            ways = "run the study on, or with a smaller study.trials"
            raise ConfigError([f"{plan.run_dir}: {left} of {trials} trials are open; {ways}"])
        task = task_of(prepared, plan)
        console = progress.console()
        with progress.Display(lambda: plan.current.record, console):
            prepared.launcher.launch(task, stop)
        if plan.is_done():
            before = winner.read(plan.run_dir) or {}
            winner.crown(plan, prepared.material.test, before.get("command", program()))
            report.write(record, plan.run_dir)
            tell_winner(plan, prepared, console)


def write_best(prepared: Prepared, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`."""
    question = prepared.question
    point = question.space.walk(lambda parameter: best.params[parameter.name])
    sections = config.plain(question.at(point), *(name for name in SECTIONS if name != "space"))
    sections["train"].pop("loss")
    values = ", ".join(f"{aim.name} {value}" for aim, value in zip(question.aims, best.values, strict=True))
    header = f"# {question.config.study.name}, trial {best.number}: validation {values}\n"
    config.write_yaml(prepared.run_dir / "best.yaml", sections, header)


def tell_failures(record: Record, console: Console) -> None:
    """Why trials failed, the most frequent reason first."""
    failed = [trial.user_attrs for trial in record.trials() if FAILURE in trial.user_attrs]
    for kind, count in Counter(attrs[FAILURE] for attrs in failed).most_common():
        message = next(attrs[REASON] for attrs in failed if attrs[FAILURE] == kind)
        console.print(Text(f"{kind}  {count} × such as: {message}"), soft_wrap=True)


def tell_places(prepared: Prepared, plan: Plan, snapshot: progress.Snapshot, console: Console, began: datetime) -> None:
    """Where things are, and what can be typed next."""
    record = plan.search.record
    times = [t for trial in record.trials() for t in trial.user_attrs.get(EPOCHS, {}).get("seconds", [])]
    if times:
        console.print(f"{median(times):.2f} s per epoch (median of {len(times)})")
    trials = [trial for stage in plan for trial in stage.record.trials()]
    if told := progress.times(trials, began):
        console.print(told)
    lines = [f"study  {hidden(parse(prepared.url))}"]
    files = {"best": "best.yaml", "winner": "winner.yaml", "report": "report.html"}
    lines += [
        f"{what:6} {prepared.run_dir / name}" for what, name in files.items() if (prepared.run_dir / name).exists()
    ]
    nexts = [f"studyloom {verb} {prepared.run_dir}" for verb in ("status", "dashboard")]
    spent = snapshot.done == snapshot.budget == prepared.question.config.study.trials
    if prepared.question.space.nodes and spent:
        more = [*program(), *own_arguments("study.trials"), f"study.trials={2 * snapshot.budget}"]
        nexts.insert(0, shlex.join(more))
    lines += [f"{'' if n else 'next':6} {command}" for n, command in enumerate(nexts)]
    console.print(Text("\n".join(lines)), soft_wrap=True)
