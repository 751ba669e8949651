"""How a winner is made small, in four steps.

1. The winner's configuration is trained once more without a validation part. The winner itself has
   seen all training data, so that no part of them could judge what is lost.
2. Variants are made of that network: pruned, or narrower students, which both learn from it; and of
   each an int8 one. They are judged by value, bytes and latency. A committee that teaches in its
   place is trained without the validation part too.
3. A rule chooses. What it chose is made once more, from the winner and all training data, and is
   taught by the winner, or by the committee itself.
4. The test part is opened once, for that and the winner.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from studyloom.data.training_data import Part
from studyloom.errors import CompressError, ConfigError, Stopped
from studyloom.extras.export.export import OnnxNetwork, check_installed
from studyloom.extras.export.original import (
    Original,
    differ,
    evaluate,
    export,
    load_teacher,
    load_winner_network,
    retrain,
    retrain_committee,
)
from studyloom.extras.export.record import (
    complete_card,
    digest_of,
    is_made_with,
    read_record,
    write_record,
)
from studyloom.extras.export.settings import COMMITTEE, Settings, parse_own_rule
from studyloom.extras.export.shrink import count_parameters
from studyloom.extras.export.variants import INT8, Judge, Say, Variant, make_variants, recipes
from studyloom.files import locked
from studyloom.metrics import Goal
from studyloom.question.rule import Condition, Rule
from studyloom.storage.attributes import COMPRESSED
from studyloom.storage.database import exclusive
from studyloom.study.stopping import Stop
from studyloom.winner.answer import COMMITTEE as COMMITTEE_FILE
from studyloom.winner.answer import check_whole, is_answer_of, is_of_loop, load_answer
from studyloom.winner.prediction.network import OF_A_LOOP
from studyloom.winner.stages import Plan

EXACT = 1e-9  # what means of shares such as 5 of 1 000 are off
LOCK = "compress.lock"  # below the run directory
Test = Callable[[], Part]


def compress(
    plan: Plan, settings: Settings, test: Test, say: Say, stop: Stop, *, anew: bool = True
) -> dict[str, Any]:
    """Makes the winner of a run small, tests it, and writes winner.onnx and compress.json.

    One command at a time does it in a run directory; another one waits.

    Args:
        plan: the stages of the run, all of which have ended.
        settings: as the command has them.
        test: loads the test part; called once, if at all.
        say: is told what is being done, in words.
        stop: whether to stop; what is trained by then is lost, and nothing is written.
        anew: whether to do it also if compress.json is of this winner and these settings.

    Returns:
        what compress.json holds.

    Raises:
        CompressError: there is no winner of a network of ours, or it cannot be exported.
        ConfigError: the rule has a mistake, or no variant satisfies it.
        PredictError: the files of the answer are not whole.
        Diverged: a training has, also one of the committee.
        Stopped: it was asked to stop.
        OSError: a file cannot be read or written.
    """
    check_installed()
    rule = parse_own_rule(plan.question.metric, settings)
    check_answer(plan, load_answer(plan.run_dir), settings)
    with _alone(plan, say, stop):
        answer = load_answer(plan.run_dir)
        record = None if anew else read_record(plan.run_dir, answer)
        if record is None or not is_made_with(record, answer, settings):
            return _compress(plan, settings, rule, test, say, stop)
        with _writing(plan, answer) as current:  # of a command that was killed before
            complete_card(plan.run_dir, record, current)
        return record


def _compress(
    plan: Plan, settings: Settings, rule: Rule | None, test: Test, say: Say, stop: Stop
) -> dict[str, Any]:
    def told(words: str) -> None:
        if stop():
            raise Stopped
        say(words)

    answer = load_answer(plan.run_dir)
    check_answer(plan, answer, settings)
    judge = _begin(plan, settings, answer, told, stop)
    variants = [*make_variants(judge, recipes(settings), told, stop)]
    # Half a point of what ends at 1, such as accuracy; half a percent of an error in its own unit.
    unit = 1.0 if plan.question.metric.scale == "unit" else abs(judge.value)
    margin = settings.margin * unit
    rule = rule or Rule(Goal("bytes", "minimize"), (Condition("drop_high", "<=", margin),))
    chosen = choose(rule, [each for each in variants if isinstance(each, Variant)])
    told(f"making {chosen.row['name']} of the winner, with all training data")
    with stop.interruptible():
        winner = load_winner_network(plan, settings.calibration)
        if settings.teacher == COMMITTEE:
            winner = replace(winner, teacher=load_teacher(plan, answer))
        network = chosen.recipe.make(winner)
        content = export(winner, network, answer["data"], quantized=chosen.precision == INT8)
    with _writing(plan, answer) as current:
        record = {
            "winner": answer["files"]["winner.pt"],
            "settings": settings.document(),
            **_taught(settings, answer),
            "metric": answer["metric"],
            "threads": settings.threads,
            "rule": str(rule),
            "margin": margin,
            "original": judge.original_row,
            "variants": [each.row if isinstance(each, Variant) else each for each in variants],
            "bytes_of_winner": (plan.run_dir / "winner.pt").stat().st_size,
            "chosen": {
                "name": chosen.row["name"],
                "bytes": len(content),
                "parameters": count_parameters(network),
                "medians": judge.medians(chosen.row),
            },
            "test": test_both(plan, winner, content, test, margin),
        }
        write_record(plan.run_dir, record, content, current)
    return record


def _begin(
    plan: Plan, settings: Settings, answer: Mapping[str, Any], say: Say, stop: Stop
) -> Judge:
    """Trains what variants are made of, and who teaches them, without a validation part."""
    say("training the winner's configuration without a validation part")
    with stop.interruptible():  # in which nobody asks the database
        original = retrain(plan, settings.calibration)
    if settings.teacher == COMMITTEE:
        many = len(answer["committee"]["members"])
        say(f"training the committee's configurations without it as well, {many} networks")
        with stop.interruptible():
            original = replace(original, teacher=retrain_committee(plan, answer["committee"]))
    return Judge(plan.question.metric, settings, original, answer["data"])


def _taught(settings: Settings, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what compress.json holds of who taught; nothing if the winner did."""
    if settings.teacher != COMMITTEE:
        return {}
    networks = len(answer["committee"]["members"])
    return {
        "teacher": {"name": COMMITTEE, "networks": networks},
        "committee": answer["files"][COMMITTEE_FILE],
    }


@contextmanager
def _alone(plan: Plan, say: Say, stop: Stop) -> Iterator[None]:
    """Waits until no other command makes the winner of this run directory small.

    Raises:
        Stopped: it was asked to stop while it waited.
    """
    told: list[str] = []

    def stopping() -> bool:
        if not told:
            told.append("another command makes the winner small; waiting for it")
            say(told[0])
        return stop()

    with locked(plan.run_dir / LOCK, stopping=stopping):
        if stop():
            raise Stopped
        yield


@contextmanager
def _writing(plan: Plan, answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Lets no other command write an answer; yields what winner.json holds now.

    Args:
        plan: the stages of the run.
        answer: what it held before.

    Raises:
        CompressError: it is another winner by now.
    """
    with exclusive(plan.url, deadline=float(plan.question.config.storage.deadline)):
        current = load_answer(plan.run_dir)
        check_whole(plan.run_dir, current)
        if current["files"]["winner.pt"] != answer["files"]["winner.pt"]:
            raise CompressError(
                f"{plan.run_dir}: another command has chosen another winner meanwhile; "
                "run this one again"
            )
        yield current


def choose(rule: Rule, variants: Sequence[Variant]) -> Variant:
    """Chooses a variant by a rule; of equal ones that of fewer bytes.

    Raises:
        ConfigError: none satisfies the rule.
    """
    fitting = [each for each in variants if rule.holds(each.known)]
    if fitting:
        return min(fitting, key=lambda each: (rule.rank(each.known), each.known["bytes"]))
    names = dict.fromkeys([rule.goal.name, *(condition.name for condition in rule.conditions)])
    values = "; ".join(
        f"{each.row['name']}: {', '.join(f'{name} {each.known[name]:.4g}' for name in names)}"
        for each in variants
    )
    ways = "loosen it, or have more variants with ratios and widths"
    raise ConfigError([f"rule: no variant satisfies {rule}; {ways}; there are {values}"])


def check_answer(plan: Plan, answer: Mapping[str, Any], settings: Settings) -> None:
    """Checks that an answer is that of a plan, and of a network that can be made small.

    Args:
        plan: the stages of the run.
        answer: what winner.json holds.
        settings: as the command has them.

    Raises:
        CompressError: it is not, or it is of a loop.
        PredictError: its files are not whole.
    """
    if is_of_loop(answer) or plan.data.split is None:
        raise CompressError(OF_A_LOOP.format(plan.run_dir))
    check_whole(plan.run_dir, answer)
    if not plan.is_done() or not is_answer_of(answer, plan):
        raise CompressError(
            f"{plan.run_dir}: winner.json is not the answer of this study as it is now; run the "
            "study's command again"
        )
    part = plan.data.split
    if part.shape is None or part.input_at(0) is None:
        raise CompressError(
            "the inputs of the winner are not one tensor, and its ONNX file would not know them; "
            "deploy winner.pt"
        )
    entry = answer.get("committee") or {}
    if settings.teacher == COMMITTEE and "members" not in entry:
        why = entry.get("note", "the answer has no committee")
        ways = "run the study's command again with winner.committee=true, or set teacher=winner"
        raise CompressError(f"{plan.run_dir}: teacher=committee: {why}; {ways}")


def test_both(
    plan: Plan, winner: Original, content: bytes, test: Callable[[], Part], margin: float
) -> dict[str, Any]:
    """Tests a file and the winner on the test part, which is opened unless it was for this file.

    What it gave is stored in the database as soon as it is known.

    Returns:
        the entry `test` of compress.json.
    """
    stored, metric = plan.search.stored, plan.question.metric
    key = digest_of(content)
    before = stored.optuna.user_attrs.get(COMPRESSED) or {}
    earlier = key in before
    if not earlier:
        stored.count_test_opening()  # before it, should this be killed
        sealed = test()
        ours, targets = evaluate(winner, winner.network, sealed)
        theirs, _ = evaluate(winner, OnnxNetwork(content), sealed)
        found = differ(metric, winner, ours, theirs, targets) | {"examples": len(sealed)}
        stored.optuna.set_user_attr(COMPRESSED, {**before, key: found})
    else:
        found = before[key]
    worst = min(metric.sign * end for end in found["interval"])
    return {
        "value": found["value"],
        "original": found["original"],
        "difference": found["mean"],
        "interval": found["interval"],
        "covers": found["covers"],
        "examples": found["examples"],
        "within": worst >= -margin - EXACT,
        "openings": stored.test_openings(),
        "earlier": earlier,
    }
