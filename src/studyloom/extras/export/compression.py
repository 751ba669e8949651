"""How a winner is made small, in four steps.

1. The winner's configuration is trained once more without a validation part. The winner itself has
   seen all training data, so that no part of them could judge what is lost.
2. Variants are made of that network: pruned, or narrower students, which both learn from it; and of
   each an int8 one. They are judged by value, bytes and latency.
3. A rule chooses. What it chose is made once more, from the winner and all training data.
4. The test part is opened once, for that and the winner.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from studyloom.config.values import value_at
from studyloom.data.training_data import Part
from studyloom.definition.rule import Condition, Rule
from studyloom.errors import CompressError, ConfigError, Stopped, StorageError, StudyloomError
from studyloom.extras.export.networks import (
    Original,
    count_parameters,
    evaluate,
    load_winner_network,
    retrain,
)
from studyloom.extras.export.onnx import OnnxNetwork, check_installed
from studyloom.extras.export.settings import (
    SECTION,
    Settings,
    loop_mistakes,
    metric_of,
    parse_own_rule,
    parse_settings,
    settings_of,
)
from studyloom.extras.export.variants import (
    Judge,
    Say,
    Variant,
    differ,
    export,
    make_variants,
    recipes,
)
from studyloom.files import is_newer, write_whole
from studyloom.metrics import Goal
from studyloom.storage.attributes import COMPRESSED
from studyloom.storage.ledger import Store
from studyloom.study.command_record import store_compressed
from studyloom.study.stopping import Stop
from studyloom.views.report import write_report
from studyloom.views.terminal import print_compressed
from studyloom.winner.model_card import SMALL_HEADING, small_section
from studyloom.winner.result import (
    CARD,
    NETWORK,
    RECORD,
    Chosen,
    Compressed,
    Result,
    SmallScores,
    check_whole,
    digest_of,
    from_document,
    load_result,
    read_compressed,
    to_document,
    write_json,
)
from studyloom.winner.stages import Plan, is_result_of

EXACT = 1e-9  # what means of shares such as 5 of 1 000 are off
LOCK = "compress.lock"  # below the run directory
Test = Callable[[], Part]


def compress_winner(
    plan: Plan, stop: Stop, console: Console, look: Callable[[], None]
) -> CompressError | None:
    """Makes the winner small if the config says so and it was not done yet, and prints the table.

    Args:
        plan: the stages of the run, all of which have ended.
        stop: whether to stop; a command that is stopped here goes on from here.
        look: called at each step.

    Returns:
        why it could not be done, to be raised once all else is told; None if there is no reason.
    """
    settings = settings_of(value_at(plan.definition.config, SECTION))
    if settings is None or stop():
        return None
    try:
        record = make_small(plan, settings, stop, console, look, anew=False)
    except Stopped:
        return None
    except StorageError:
        raise
    except StudyloomError as error:
        return CompressError(f"{SECTION}: {error}")
    print_compressed(record, console)
    return None


def compress_again(plan: Plan, words: Sequence[str], stop: Stop, console: Console) -> Compressed:
    """Makes the winner small as the config and words KEY=VALUE say, also if it was done before."""
    settings = parse_settings(words, value_at(plan.definition.config, SECTION))
    return make_small(plan, settings, stop, console)


def make_small(
    plan: Plan,
    settings: Settings,
    stop: Stop,
    console: Console,
    look: Callable[[], None] = lambda: None,
    *,
    anew: bool = True,
) -> Compressed:
    """Makes the winner small, notes it in the database, and writes the report.

    Raises:
        UserError: it cannot be done, see `compress`.
        Diverged: a training has.
        Stopped: it was asked to stop.
        OSError: a file cannot be read or written.
    """

    def say(words: str) -> None:
        console.print(Text(words), soft_wrap=True)
        look()

    try:
        record = compress(plan, settings, plan.data.test, say, stop, anew=anew)
    except StudyloomError:
        raise
    except (RuntimeError, ValueError) as error:  # of PyTorch and the user's code, as out of memory
        raise CompressError(f"{type(error).__name__}: {error}") from error
    store_compressed(plan.search.stored, record.in_short())
    report = plan.run_dir / "report.html"
    if not all(is_newer(report, plan.run_dir / name) for name in ("winner.json", RECORD)):
        write_report(plan.search.stored, plan.run_dir)
    return record


def compress(
    plan: Plan, settings: Settings, test: Test, say: Say, stop: Stop, *, anew: bool = True
) -> Compressed:
    """Makes the winner of a run small, tests it, and writes winner.onnx and compress.json.

    One command at a time does it in a run directory; another one waits.

    Args:
        test: loads the test part; called once, if at all.
        say: is told what is being done, in words.
        stop: whether to stop; what is trained by then is lost, and nothing is written.
        anew: whether to do it also if compress.json is of this winner and these settings.

    Raises:
        CompressError: there is no winner of a network of ours, or it cannot be exported.
        ConfigError: the rule has a mistake, or no variant satisfies it.
        PredictError: the files of the answer are not whole.
        Diverged: a training has.
        Stopped: it was asked to stop.
        OSError: a file cannot be read or written.
    """
    check_installed()
    rule = parse_own_rule(metric_of(plan.definition), settings)
    check_result(plan, load_result(plan.run_dir))
    with _alone(plan, say, stop):
        answer = load_result(plan.run_dir)
        record = None if anew else read_compressed(plan.run_dir, answer)
        if record is not None and record.settings == settings.document():
            with _writing(plan, answer) as (current, _):  # of a command that was killed before
                complete_card(plan, record, current)
            return record
        return _compress(plan, settings, rule, test, say, stop)


def _compress(
    plan: Plan, settings: Settings, rule: Rule | None, test: Test, say: Say, stop: Stop
) -> Compressed:
    def told(words: str) -> None:
        if stop():
            raise Stopped
        say(words)

    answer = load_result(plan.run_dir)
    check_result(plan, answer)
    facts = answer.data
    assert facts is not None
    told("training the winner's configuration without a validation part")
    with stop.interruptible():  # in which nobody asks the database
        original = retrain(plan, settings.calibration)
    metric = metric_of(plan.definition)
    judge = Judge(metric, settings, original, facts)
    tried = recipes(settings)
    if not plan.definition.trains_networks:
        tried = tried[:1]
        told("its loop is your own, so that no smaller network is trained: it is tried as it is")
    variants, failed = make_variants(judge, tried, told, stop)
    # Half a point of what ends at 1, such as accuracy; half a percent of an error in its own unit.
    unit = 1.0 if metric.scale == "unit" else abs(judge.original_facts.value)
    margin = settings.margin * unit
    rule = rule or Rule(Goal("bytes", "minimize"), (Condition("drop_high", "<=", margin),))
    chosen = choose(rule, judge, variants)
    told(f"making {chosen.facts.name} of the winner, with all training data")
    with stop.interruptible():
        winner = load_winner_network(plan, settings.calibration)
        network = chosen.recipe.make(winner)
        content = export(winner, network, facts, quantized=chosen.quantized)
    with _writing(plan, answer) as (current, store):
        theirs = judge.original_facts.latency
        record = Compressed(
            winner=answer.files["winner.pt"],
            digest=digest_of(content),
            settings=settings.document(),
            metric=answer.metric,
            threads=settings.threads,
            rule=str(rule),
            margin=margin,
            original=judge.original_facts,
            variants=(*(each.facts for each in variants), *failed),
            bytes_of_winner=(plan.run_dir / "winner.pt").stat().st_size,
            chosen=Chosen(
                chosen.facts.name,
                len(content),
                count_parameters(network),
                {
                    batch: (each.median, theirs[batch].median)
                    for batch, each in chosen.facts.latency.items()
                },
            ),
            test=test_both(plan, winner, content, test, margin, store),
        )
        # The record has the digest of the network, so that what a killed command has left is not
        # taken for whole; `complete_card` writes what it has not come to.
        write_json(plan.run_dir / RECORD, record)
        write_whole(plan.run_dir / NETWORK, content, durable=True)
        complete_card(plan, record, current)
    return record


@contextmanager
def _alone(plan: Plan, say: Say, stop: Stop) -> Iterator[None]:
    """Waits until no other command makes the winner of this run directory small.

    Raises:
        Stopped: it was asked to stop while it waited.
    """
    lock = FileLock(plan.run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another command makes the winner small; waiting for it")
    while not lock.is_locked:
        if stop():
            raise Stopped
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            continue
    try:
        if stop():
            raise Stopped
        yield
    finally:
        lock.release()


@contextmanager
def _writing(plan: Plan, answer: Result) -> Iterator[tuple[Result, Store]]:
    """Lets no other command write an answer; yields what winner.json holds now, and the lease's.

    Args:
        answer: what it held before.

    Raises:
        CompressError: it is another winner by now.
    """
    with plan.search.stored.ledger.testing() as store:
        current = load_result(plan.run_dir)
        check_whole(plan.run_dir, current)
        if current.files["winner.pt"] != answer.files["winner.pt"]:
            raise CompressError(
                f"{plan.run_dir}: another command has chosen another winner meanwhile; "
                "run this one again"
            )
        yield current, store


def complete_card(plan: Plan, record: Compressed, answer: Result) -> None:
    """Writes a record into the model card, if there is one that lacks it.

    winner.json has the card's digest, and goes first as in `winner.result.write_answer`.
    """
    path = plan.run_dir / CARD
    if CARD not in answer.files:
        return
    before = path.read_text()
    head = before.partition(SMALL_HEADING)[0].rstrip()
    card = f"{head}\n\n{small_section(record)}\n"
    if card != before:
        files = {**answer.files, CARD: digest_of(card.encode())}
        write_json(plan.run_dir / "winner.json", replace(answer, files=files))
        write_whole(path, card.encode(), durable=True)


def choose(rule: Rule, judge: Judge, variants: Sequence[Variant]) -> Variant:
    """Chooses a variant by a rule; of equal ones that of fewer bytes.

    Raises:
        ConfigError: none satisfies the rule.
    """
    known = [(judge.known(each.facts), each) for each in variants]
    fitting = [pair for pair in known if rule.holds(pair[0])]
    if fitting:
        return min(fitting, key=lambda pair: (rule.rank(pair[0]), pair[0]["bytes"]))[1]
    names = dict.fromkeys([rule.goal.name, *(condition.name for condition in rule.conditions)])
    values = "; ".join(
        f"{each.facts.name}: {', '.join(f'{name} {its[name]:.4g}' for name in names)}"
        for its, each in known
    )
    ways = "loosen it, or have more variants with ratios and widths"
    raise ConfigError([f"rule: no variant satisfies {rule}; {ways}; there are {values}"])


def check_result(plan: Plan, answer: Result) -> None:
    """Checks that an answer is that of a plan, and of a network that can be made small.

    Raises:
        CompressError: it is not, or it is of a loop.
        PredictError: its files are not whole.
    """
    part = plan.data.split
    mistakes = [*loop_mistakes(plan.definition)]
    if part is None or answer.data is None:
        mistakes.append("the winner's data are its loop's own; name them in the section data")
    if mistakes:
        raise CompressError(f"{plan.run_dir}: {'; '.join(mistakes)}")
    assert part is not None
    check_whole(plan.run_dir, answer)
    if not plan.is_done() or not is_result_of(answer, plan):
        raise CompressError(
            f"{plan.run_dir}: winner.json is not the answer of this study as it is now; run the "
            "study's command again"
        )
    if part.shape is None or part.input_at(0) is None:
        raise CompressError(
            "the inputs of the winner are not one tensor, and its ONNX file would not know them; "
            "deploy winner.pt"
        )


def test_both(
    plan: Plan, winner: Original, content: bytes, test: Test, margin: float, store: Store
) -> SmallScores:
    """Tests a file and the winner on the test part, which is opened unless it was for this file.

    What it gave is stored in the database as soon as it is known.
    """
    stored, metric = plan.search.stored, metric_of(plan.definition)
    key = digest_of(content)
    before = stored.optuna.user_attrs.get(COMPRESSED) or {}
    if key in before:
        scores = replace(from_document(before[key], SmallScores), earlier=True)
    else:
        stored.count_test_opening(store)  # before it, should this be killed
        sealed = test()
        ours, targets = evaluate(winner, winner.network, sealed)
        theirs, _ = evaluate(winner, OnnxNetwork(content), sealed)
        difference = differ(metric, winner, ours, theirs, targets)
        scores = SmallScores(
            value=metric(theirs, targets),
            original=metric(ours, targets),
            difference=difference.mean,
            interval=difference.interval or (difference.mean, difference.mean),
            covers=difference.interval is not None,
            examples=len(sealed),
        )
        store(stored.ledger.study_id, COMPRESSED, {**before, key: to_document(scores)})
    worst = min(metric.sign * end for end in scores.interval)
    return replace(scores, within=worst >= -margin - EXACT, openings=stored.test_openings())
