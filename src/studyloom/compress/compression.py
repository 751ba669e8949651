"""How a winner is made small, in four steps.

1. The winner's configuration is trained once more without a validation part. The winner itself has
   seen all training data, so that no part of them could judge what is lost.
2. Variants are made of that network: pruned, or narrower students, which both learn from it; and of
   each an int8 one. They are judged by value, bytes and latency.
3. A rule chooses. What it chose is made once more, from the winner and all training data.
4. The test part is opened once, for that and the winner.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studyloom.compress.export import OnnxNetwork, check_installed
from studyloom.compress.original import (
    Original,
    differ,
    evaluate,
    export,
    load_winner_network,
    retrain,
)
from studyloom.compress.record import digest_of, write_record
from studyloom.compress.settings import Settings
from studyloom.compress.shrink import count_parameters
from studyloom.compress.variants import INT8, Judge, Say, Variant, make_variants, recipes
from studyloom.data.training_data import Part
from studyloom.errors import CompressError, ConfigError
from studyloom.files import read_below
from studyloom.metrics import Goal
from studyloom.question.rule import Condition, Rule, parse_rule
from studyloom.storage.attributes import COMPRESSED
from studyloom.storage.connections import exclusive
from studyloom.winner.answer import check_whole, is_answer_of, is_of_loop, load_answer
from studyloom.winner.prediction import OF_A_LOOP
from studyloom.winner.stages import Plan

# What is known of a variant beside the metric: how much worse it is than the original, the upper
# end of the interval of that, and what it costs.
EXACT = 1e-9  # what means of shares such as 5 of 1 000 are off
COSTS = ("drop", "drop_high", "bytes", "latency_ms", "latency_64_ms", "parameters")


def compress(plan: Plan, settings: Settings, test: Callable[[], Part], say: Say) -> dict[str, Any]:
    """Makes the winner of a run small, tests it, and writes winner.onnx and compress.json.

    Args:
        plan: the stages of the run, all of which have ended.
        settings: as the command line has them.
        test: loads the test part; called once, if at all.
        say: is told what is being done, in words.

    Returns:
        what compress.json holds.

    Raises:
        CompressError: there is no winner of a network of ours, or it cannot be exported.
        ConfigError: the rule has a mistake, or no variant satisfies it.
        OSError: a file cannot be read or written.
    """
    check_installed()
    rule = parse_own_rule(plan, settings)
    answer = load_answer(plan.run_dir)
    check_answer(plan, answer)
    say("training the winner's configuration without a validation part")
    original = retrain(plan, settings.calibration)
    judge = Judge(plan.question.metric, settings, original, answer["data"])
    variants = [*make_variants(judge, recipes(settings), say)]
    # Half a point of what ends at 1, such as accuracy; half a percent of an error in its own unit.
    unit = 1.0 if plan.question.metric.scale == "unit" else abs(judge.value)
    margin = settings.margin * unit
    rule = rule or Rule(Goal("bytes", "minimize"), (Condition("drop_high", "<=", margin),))
    chosen = choose(rule, [each for each in variants if isinstance(each, Variant)])
    say(f"making {chosen.row['name']} of the winner, with all training data")
    winner = load_winner_network(plan, settings.calibration)
    network = chosen.recipe.make(winner)
    content = export(winner, network, answer["data"], quantized=chosen.precision == INT8)
    with exclusive(plan.url, deadline=float(plan.question.config.storage.deadline)):
        record = {
            "winner": answer["files"]["winner.pt"],
            "metric": answer["metric"],
            "threads": settings.threads,
            "rule": str(rule),
            "margin": margin,
            "original": judge.original_row,
            "variants": [each.row if isinstance(each, Variant) else each for each in variants],
            "bytes_of_winner": len(read_below(plan.run_dir, "winner.pt")),
            "chosen": {
                "name": chosen.row["name"],
                "bytes": len(content),
                "parameters": count_parameters(network),
                "medians": judge.medians(chosen.row),
            },
            "test": test_both(plan, winner, content, test, margin),
        }
        write_record(plan.run_dir, record, content, answer)
    return record


def parse_own_rule(plan: Plan, settings: Settings) -> Rule | None:
    """Parses the rule of the settings; None if there is none.

    Raises:
        ConfigError: it has a mistake.
    """
    if settings.rule is None:
        return None
    known = [plan.question.metric, *(Goal(name, "minimize") for name in COSTS)]
    return parse_rule(settings.rule, known, "rule", "")


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
    raise ConfigError([f"rule: no variant satisfies {rule}; there are {values}"])


def check_answer(plan: Plan, answer: Mapping[str, Any]) -> None:
    """Checks that an answer is that of a plan, and of a network that can be made small.

    Raises:
        CompressError: it is not.
        PredictError: its files are not whole, or it is of a loop.
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
