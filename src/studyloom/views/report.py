"""The report of a study: sections of blocks, which `page` turns into HTML.

It can be written while the search runs; what cannot be drawn yet is replaced by a sentence that
says why. To add a section, write a function that returns a `Section`, and yield it in
`all_sections`.
"""

import platform
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom._version import __version__
from studyloom.files import write_whole
from studyloom.storage.attributes import BASELINE, REUSED, TIMES, TRACEBACK
from studyloom.study.failures import count_failures
from studyloom.study.rows import trial_rows
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import (
    format_cost,
    format_duration,
    format_parameter,
    format_shape,
    format_value,
    shorten,
)
from studyloom.views.charts import Axis, Table
from studyloom.views.figures import (
    ENOUGH,
    MOST_BEST,
    MOST_LATEST,
    NO_PARAMETERS,
    beside,
    best_of,
    best_so_far,
    calibration,
    complete_trials,
    curves,
    front,
    history,
    losses,
    outlook,
    parallel,
    predictions,
    slices,
    summary,
    timeline,
    together,
)
from studyloom.views.importances import importances, varied_parameters
from studyloom.views.page import (
    FAINT,
    Absent,
    Bars,
    Block,
    Card,
    Cards,
    Cell,
    Facts,
    Folded,
    Head,
    Heat,
    Lines,
    Part,
    Picture,
    Pictures,
    Row,
    Section,
    Shaded,
    Trials,
    Words,
    drawn,
    is_embedded,
    number,
    report_page,
    spread,
)
from studyloom.views.progress import JobReader, Progress, working_words
from studyloom.views.sentence import quotable
from studyloom.views.snapshot import (
    Snapshot,
    front_rows,
    take_snapshot,
    trial_counts,
    why_no_best,
)
from studyloom.views.terminal import format_parameters
from studyloom.winner.answer import (
    Answer,
    Committee,
    Compressed,
    Interval,
    Summary,
    belongs_to,
    read_answer,
    read_compressed,
)
from studyloom.winner.wording import (
    compressed_lines,
    compressed_rows,
    format_choice,
    format_covers,
    format_openings,
    race_lines,
)

MOST = 2000  # trials that are shown, apart from those that stand out; at 100 000, all took 22 GB
BEST = 100  # trials that are shown for their value


@dataclass(frozen=True)
class SampledStudy(StoredStudy):
    """A study of which views see some trials.

    Args:
        shown: these trials, by number.
    """

    shown: tuple[FrozenTrial, ...] = ()

    def trials(self) -> list[FrozenTrial]:
        return [*self.shown]


def sample(stored: StoredStudy, snapshot: Snapshot, won: Any) -> tuple[StoredStudy, str]:
    """Takes some trials of a study that has very many: at even distances, and those that stand out.

    Args:
        won: the number of the winner's trial, if there is one.

    Returns:
        The study, with so many trials; and what is to be said of it, empty if all are shown.
    """
    trials = stored.trials()
    if len(trials) <= MOST:
        return stored, ""
    marked = [snapshot.best, snapshot.baseline, *snapshot.front[:BEST], *stored.ranked()[:BEST]]
    kept = {trial.number for trial in marked if trial is not None} | {won}
    kept |= {trial.number for trial in trials if not trial.state.is_finished()}
    kept |= {trial.number for trial in best_so_far(complete_trials(trials), stored.sign)}
    kept |= {trials[len(trials) * place // MOST].number for place in range(MOST)}
    shown = tuple(trial for trial in trials if trial.number in kept)
    note = (
        f"{len(shown)} of {len(trials)} trials are shown: {MOST} at even distances, the {BEST} "
        "best, each that was the best so far, and those that run."
    )
    known = {field.name: getattr(stored, field.name) for field in fields(StoredStudy)}
    return SampledStudy(**known, shown=shown), note


# As `winner.stages` names them: NAME/TITLE TRIALS-TOP-SEEDS, and what else sets a stage apart.
STAGE = re.compile(
    r"(?P<title>[\w-]+) (?P<trials>\d+)-(?P<top>\d+)-(?P<seeds>\d+)(?: (?P<rest>.*))?"
)
PLAIN = {
    "search": "the search",
    "re-evaluation": "the best, judged again",
    "retraining": "winner and baseline, trained on all data",
}
PARTS = (
    "The search proposes, and what follows decides. The trainings of each part are stored as a "
    "study of their own, beside that of the search."
)


@dataclass(frozen=True)
class Stage:
    """A part of a study.

    Args:
        title: search, re-evaluation or retraining, or what else its name says.
        about: what sets it apart from others of its title, in words.
    """

    name: str
    title: str
    about: str
    trials: Sequence[FrozenTrial]

    @property
    def plain(self) -> str:
        """What it is, in plain words."""
        return PLAIN.get(self.title, self.title)

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """When its first trial began and its last one ended; None if none has."""
        begun = [t.datetime_start for t in self.trials if t.datetime_start is not None]
        ended = [t.datetime_complete for t in self.trials if t.datetime_complete is not None]
        return (min(begun), max(ended)) if begun and ended else None


def read_parts(stored: StoredStudy) -> list[Stage]:
    """Returns the search and the later stages of a study, in the order in which they began."""
    prefix = f"{stored.name}/"
    found = [Stage(stored.name, "search", "", stored.trials())]
    for study in stored.storage.get_all_studies():
        if study.study_name.startswith(prefix):
            trials = stored.storage.get_all_trials(study._study_id, deepcopy=False)
            title, about = _words(study.study_name.removeprefix(prefix))
            found.append(Stage(study.study_name, title, about, trials))
    return [
        found[0],
        *sorted(found[1:], key=lambda part: part.span or (datetime.max, datetime.max)),
    ]


def _words(name: str) -> tuple[str, str]:
    """Returns the title of a stage, and what its name says of it."""
    if (match := STAGE.fullmatch(name)) is None:
        return name, ""
    about = f"of the first {match['trials']} trials, on {match['seeds']} fresh seeds each"
    return match["title"], f"{about}, {match['rest']}" if match["rest"] else about


def parts_section(parts: Sequence[Stage]) -> Section:
    """Renders the parts as a table: what each is, what it has done, and how long it took."""
    rows = []
    for part in parts:
        complete = sum(trial.state == TrialState.COMPLETE for trial in part.trials)
        reused = sum(REUSED in trial.user_attrs for trial in part.trials)
        done = f"{complete} of {len(part.trials)}" + (f", {reused} reused" if reused else "")
        span = part.span
        took = "–" if span is None else format_duration((span[1] - span[0]).total_seconds())
        rows.append((part.plain, part.about, done, took, part.name))
    head = ("part", "", "trainings complete", "took", "stored as")
    return Section("parts", "The parts of this study", [Table(head, rows, words=(0, 1, 4))], PARTS)


def wall_seconds(parts: Sequence[Stage]) -> float | None:
    """Returns the seconds from the first start to the last end of all parts; None without any."""
    spans = [part.span for part in parts if part.span is not None]
    if not spans:
        return None
    return (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()


def worker_seconds(parts: Sequence[Stage]) -> float:
    """Returns the seconds that workers spent on the trainings of all parts, without start-up."""
    trials = [trial for part in parts for trial in part.trials if REUSED not in trial.user_attrs]
    return sum(
        float(seconds)
        for trial in trials
        for kind, seconds in (trial.user_attrs.get(TIMES) or {}).items()
        if kind != "start-up"
    )


def head(
    stored: StoredStudy, snapshot: Snapshot, winner: Answer | None, parts: list[Stage]
) -> Head:
    """Renders the top of the report."""
    blocks: list[Block] = []
    if (halted := stored.halted()) is not None:
        why = f"The study has stopped, since its trials fail with this: {halted}"
        blocks.append(Words(why, "bad"))
    if (ended := snapshot.outlook.ending) is not None:
        blocks.append(Words(f"The search {ended.words}."))
    if words := working_words(JobReader(stored).read()):
        blocks.append(Words(words))
    if lines := [*decided(stored, winner, snapshot.budget)]:
        blocks.append(Lines(lines))
    blocks.append(Facts([*facts(stored, snapshot, winner, parts)]))
    blocks.append(Cards([*test_cards(winner, stored.sign), *search_cards(stored, snapshot)]))
    params = {"Best": snapshot.best.params} if snapshot.best else {}
    if winner is not None and winner.winner.params != params.get("Best"):
        params["Winner"] = winner.winner.params
    blocks += [Words(f"{who}:  {format_parameters(p)}", "parameters") for who, p in params.items()]
    sentence = quotable(stored, winner, snapshot).replace(" %", "\N{NO-BREAK SPACE}%")
    return Head(stored.name, f"{sentence}.", blocks)


def decided(stored: StoredStudy, winner: Answer | None, budget: int) -> Iterator[str]:
    """Yields the reasons for the answer, a line each."""
    if winner is None:
        return
    won = winner.winner
    chosen = f"Trial {won.trial} was {format_choice(winner, budget)}"
    if (mean := won.mean) is None:
        yield f"{chosen}."
    else:
        # Who left a race early has fewer values. By a rule, or with another metric, one may win
        # whose mean is not the best.
        fresh = len(won.values)
        others = [
            row.mean
            for row in winner.candidates
            if row.trial != won.trial and row.mean is not None and len(row.values) == fresh
        ]
        worse = [other for other in others if stored.sign * (mean - other) >= 0]
        of = f"of {len(winner.candidates)} candidates"
        if len(worse) == len(others):
            yield f"{chosen}: it had the best mean {of} on {fresh} fresh seeds."
        else:
            yield f"{chosen}: it is the best {of} by {winner.rule}, on {fresh} fresh seeds."
        if worse:
            next_best = max(worse, key=lambda other: stored.sign * other)
            yield f"The next best has {number(next_best)} there, and it has {number(mean)}."
    yield from race_lines(winner.race)
    if (test := winner.test) is None:
        return
    if test.difference and test.difference.interval:
        low, high = test.difference.interval
        seen = "shows no difference" if low <= 0 <= high else "excludes 0"
        interval = f"{number(low, '+')} to {number(high, '+')} {format_covers(test)}"
        yield f"The 95 % interval of the difference to the baseline, {interval}, {seen}."
    yield f"The test part was {format_openings(test.openings)}, after the winner was chosen."


def facts(
    stored: StoredStudy, snapshot: Snapshot, winner: Answer | None, parts: list[Stage]
) -> Iterator[tuple[str, object]]:
    """Yields how long it took, on what, and what the values are."""
    if (wall := wall_seconds(parts)) is not None:
        begun = min(part.span[0] for part in parts if part.span is not None)
        worked = worker_seconds(parts)
        spent = f"{format_duration(wall)}, from {begun:%Y-%m-%d %H:%M}"
        yield "took", spent + (f"; workers trained for {format_duration(worked)}" if worked else "")
    if data := _data(stored, winner):
        yield "data", data
    goals = ", and ".join(
        f"{goal.name}, {'more' if goal.sign > 0 else 'less'} is better" for goal in stored.goals
    )
    yield "values", goals
    if snapshot.rule is not None:
        yield "the best by", snapshot.rule


def _data(stored: StoredStudy, winner: Answer | None) -> str:
    """Words what the networks were trained and tested on."""
    question = stored.question() or {}
    told = []
    data, test = (winner.data, winner.test) if winner else (None, None)
    if isinstance(source := question.get("data._target_"), str):
        told.append(source.rpartition(".")[2])
    if data is not None and data.shape:
        told.append(f"inputs of {format_shape(data.shape)}")
    if data is not None and data.outputs is not None:
        told.append(f"{data.outputs} {'classes' if data.classifies else 'outputs'}")
    validation = question.get("data.validation")
    if isinstance(validation, int) and question.get("objective.folds") in (None, 1):
        told.append(f"{validation} examples to validate")
    if test is not None and test.examples is not None:
        told.append(f"{test.examples} to test")
    digest = data.digest if data else question.get("data.digest")
    if isinstance(digest, str) and digest:
        told.append(f"SHA-256 {digest[:12]}…")
    return ", ".join(told)


def search_cards(stored: StoredStudy, snapshot: Snapshot) -> Iterator[Card]:
    """Returns the numbers of the search, measured on the validation part."""
    counts = " · ".join(trial_counts(snapshot))
    yield Card("Trials", str(snapshot.done), f"of {snapshot.budget}", counts)
    best, baseline = snapshot.best, snapshot.baseline
    value, start = value_of(best), value_of(baseline)
    missing = why_no_best(snapshot).replace("No", "no", 1)
    note = missing if best is None else f"trial {best.number}"
    yield Card("Best, validation", number(value), "", note)
    note = "the configuration as composed" if baseline else "none"
    yield Card("Baseline, validation", number(start), "", note)
    gain = None if value is None or start is None else stored.sign * (value - start)
    difference = "best minus baseline" if stored.sign > 0 else "baseline minus best"
    yield Card("Gain, validation", number(gain, "+"), "", f"{difference}; flatters the best")
    for position, name in enumerate(snapshot.costs, 1):
        costs = [None if trial is None else value_of(trial, position) for trial in (best, baseline)]
        ours, theirs = ("–" if cost is None else format_cost(cost) for cost in costs)
        yield Card(f"{name}, best", ours, "", f"baseline: {theirs}")


def test_cards(winner: Answer | None, sign: int) -> Iterator[Card]:
    """Returns the numbers of the test; none if there was no test."""
    if winner is None or (test := winner.test) is None:
        return
    runs = len(test.winner.values)
    note = f"trial {winner.winner.trial}, {runs} seeds (± is their standard deviation)"
    opened = format_openings(test.openings)
    part = f"{test.examples} test examples, {opened}" if test.examples else opened
    if test.baseline is None or test.difference is None:  # there is none, or it has won
        yield _spread_card("Winner, test", test.winner, f"{note}; {part}")
    else:
        yield _spread_card("Winner, test", test.winner, note)
        yield _spread_card("Baseline, test", test.baseline, part)
        low, high = test.difference.interval or (None, None)
        note = f"95 % interval {number(low, '+')} to {number(high, '+')} {format_covers(test)}"
        yield Card("Difference, test", number(test.difference.mean, "+"), "", note)
    note = " minus ".join(("search value", "mean of the retrainings")[::sign])
    yield Card("Selection gap", number(winner.winner.gap, "+"), "", note)
    yield from committee_cards(winner.committee)
    for rule, value in test.references.items():
        yield Card(f"{rule.capitalize()}, test", number(value), "", "what needs no network")


def _spread_card(title: str, values: Summary, note: str) -> Card:
    mean, _, error = spread(values).partition(" ")
    return Card(title, mean, error, note)


def committee_cards(entry: Committee | None) -> Iterator[Card]:
    """Returns the results of a committee; nothing without one."""
    if entry is None:
        return
    if entry.note is not None or entry.difference is None:
        yield Card("Committee, test", number(None), "", entry.note or "")
        return
    ours, theirs = entry.costs["parameters"]
    costs = f"{number(ours)} parameters, the winner has {number(theirs)}"
    yield Card("Committee, test", number(entry.test), "", f"{len(entry.members)} networks")
    yield Card("Committee minus winner, test", number(entry.difference.mean, "+"), "", costs)


TITLE = "The winner on the test part"
CANDIDATES = (
    "The best of many trials is partly luck. So the best few are trained again with other seeds, "
    "and their mean decides; the gap is how much the search promised too much. "
    "± is the standard deviation over the seeds."
)
PREDICTIONS = (
    "Predictions of the winner beside the true values; over time if the examples are in that order."
)
CONFUSION = "Rows are true classes, columns are predictions; the diagonal is right, red is wrong."
WRONG = (
    "The images that the winner gets wrong, the most confident mistakes first: "
    "true class → prediction, and how sure it is."
)
COMPRESSED = (
    "Variants of the winner, judged on a validation part that neither they nor their original were "
    "trained on. “Worse by” is a 95 % interval, over examples, of what is lost. Latencies are "
    "medians, with the 10th and the 90th percentile."
)


def winner_sections(winner: Answer | None, small: Compressed | None) -> Iterator[Section]:
    """Renders the candidates, and what the winner gets right and wrong on the test part."""
    if winner is None:
        yield Section("winner", TITLE, [Absent("There is no winner.json yet.")])
        return
    if small is not None:
        heads, *rows = compressed_rows(small)
        table = Table(heads, rows, words=(0, len(heads) - 1))
        lines = Lines(compressed_lines(small))
        yield Section("compressed", "Made small", [table, lines], COMPRESSED)
    yield Section("candidates", "Candidates", candidates(winner), CANDIDATES)
    if winner.note is not None:
        yield Section("winner", TITLE, [Absent(winner.note)])
    elif winner.predictions is not None:
        figure = drawn(predictions(winner.predictions))
        yield Section("winner", "Predictions on the test part", [figure], PREDICTIONS)
    else:
        yield Section("winner", "Confusion on the test part", [confusion(winner)], CONFUSION)
        yield Section("wrong", "Most confidently wrong", [wrong(winner)], WRONG)


def candidates(winner: Answer) -> list[Block]:
    """Renders the candidates as a table, with their values in the search and retrained."""
    head = ("trial", "search", "trained again", "gap", "", "parameters")
    rows = []
    for row in winner.candidates:
        role = "baseline" if row.baseline else ""
        if row.trial == winner.winner.trial:
            role = "winner"
        costs = [f"{name} {number(cost)}" for name, cost in row.costs.items()]
        parameters = "  ".join([*costs, format_parameters(row.params)])
        again = spread(row.fresh)
        numbers = (row.trial, number(row.search_value), again, number(row.gap, "+"))
        rows.append((*numbers, role, parameters))
    table = Table(head, rows, words=(4, 5))
    return [table, Lines(race_lines(winner.race))] if winner.race else [table]


def confusion(winner: Answer) -> Block:
    """Renders the confusion matrix, with shades by count."""
    if not winner.confusion:
        return Absent("winner.json holds no confusion matrix.")
    classes = winner.classes or range(len(winner.confusion))
    return Heat([*classes], [[*row] for row in winner.confusion], "true classes by predicted ones")


def wrong(winner: Answer) -> Block:
    """Renders the images that the winner gets wrong; only pictures that winner.json embeds."""
    pictures = [
        Picture(
            item.image,
            f"test image {item.index}",
            f"{item.label} → ",
            str(item.predicted),
            number(item.confidence),
        )
        for item in winner.wrong or ()
        if is_embedded(item.image)
    ]
    return Pictures(pictures) if pictures else Absent("winner.json holds no images.")


CALIBRATION = (
    "Each point is a tenth of the range of confidence, with the 95 % interval of its accuracy. "
    "Below the dotted line the winner is surer than it is right."
)
GROUPS = "The mean over the test examples of each {}, with its 95 % interval."
COLUMNS = (
    "How much worse the winner gets on the test part if one column is put in a random order, in "
    "the mean of 20 orders, with the 5th and the 95th percentile. A column that says what another "
    "one says too may seem not to matter."
)
OCCLUSIONS = (
    "What misled the winner: red made it sure of its mistake, blue spoke against it, measured by "
    "covering one patch after the other. The number is the largest loss of confidence."
)
TEXTS = (
    "The most confident mistakes: true class → prediction. Red and underlined is what spoke for "
    "the mistake, blue and dotted what spoke for the truth; the other words changed little. Each "
    "word is left out wherever it is in the text. Its number is how much less sure of the mistake "
    "the winner is then, and “in all” is how sure it was: the log of how many times likelier than "
    "the truth it took the mistake to be."
)
STRONGEST = 6  # words of each side that are listed


def explained_sections(winner: Answer) -> Iterator[Section]:
    """Renders what explains the winner."""
    if pictures := [*_occlusions(winner)]:
        yield Section("misled", "What misled the winner", [Pictures(pictures)], OCCLUSIONS)
    if texts := [*_texts(winner)]:
        yield Section("words", "Which words misled it", texts, TEXTS)
    if known := winner.calibration:
        means = f"confidence {number(known.confidence)}, accuracy {number(known.accuracy)}"
        error = f"expected calibration error {number(known.error)}"
        block = drawn(calibration(known.bins))
        caption = f"{CALIBRATION} Means: {means}; {error}."
        yield Section("calibration", "How sure it is", [block], caption)
    if groups := winner.groups:
        kind = groups.of
        heads = (kind, "examples", winner.metric.name, "95 % interval")
        rows = [
            (row.name, row.count, number(row.value), _span(row.interval)) for row in groups.rows
        ]
        note = f"{groups.left} further ones with fewer examples are left out."
        blocks = [Table(heads, rows, words=(0,), note=note if groups.left else "")]
        yield Section("groups", f"{kind.capitalize()} by {kind}", blocks, GROUPS.format(kind))
    if winner.columns:
        head = ("column", f"{winner.metric.name} worse by", "5 % to 95 %")
        table = [(row.name, number(row.worse), _span(row.interval)) for row in winner.columns]
        yield Section(
            "columns", "Which columns it needs", [Table(head, table, words=(0,))], COLUMNS
        )


def _span(interval: Interval) -> str:
    return " to ".join(map(number, interval))


def _occlusions(winner: Answer) -> Iterator[Picture]:
    """Yields the pictures of the mistakes with what misled the winner."""
    mistakes = {mistake.index: mistake for mistake in winner.wrong or ()}
    for item in winner.occlusions or ():
        if is_embedded(item.image) and item.index in mistakes:
            mistake = mistakes[item.index]
            words, said = f"{mistake.label} → ", str(mistake.predicted)
            label = f"what misled the winner on test image {item.index}"
            yield Picture(item.image, label, words, said, number(item.most))


def _texts(winner: Answer) -> Iterator[Part]:
    """Yields the texts of the mistakes, with their words shaded and the strongest ones listed."""
    classes = dict(enumerate(winner.classes or ()))
    for item in winner.texts or ():
        pairs = [*zip(item.words, item.changes, strict=False)]
        most = max((abs(change) for _, change in pairs), default=0.0)
        if not most:
            continue
        truth, mistake = (classes.get(n, str(n)) for n in (item.label, item.predicted))
        sure = " and ".join(map(number, item.probabilities))
        remark = f"test text {item.index}, probabilities {sure}, in all {number(item.margin, '+')}"
        lines = [
            f"for {name}: {', '.join(said)}"
            for name, said in ((mistake, _strongest(pairs, 1)), (truth, _strongest(pairs, -1)))
            if said
        ]
        lines += [f"{item.left} further words are not looked at"] if item.left else []
        shaded = Shaded([(word, change / most) for word, change in pairs])
        yield Part(f"{truth} → {mistake}", [shaded, Lines(lines)], remark)


def _strongest(pairs: Sequence[tuple[str, float]], sign: int) -> list[str]:
    """Returns the different words that spoke most for one side, each with its number."""
    least = FAINT * max(abs(change) for _, change in pairs)
    strong = {word: change for word, change in pairs if sign * change >= least}
    first = sorted(strong, key=lambda word: -sign * strong[word])[:STRONGEST]
    return [f"{word} {'+' if sign > 0 else '−'}{abs(strong[word]):.2f}" for word in first]


FRONT = (
    "A trial is on the front if no other trial is at least as good in both and better in one: "
    "to gain more of one, you pay with the other. "
    "The winner, chosen on fresh seeds, may lie off the front."
)
HISTORY = (
    "Each point is a complete trial, in the order in which they began; the marks at the bottom are "
    "trials that ended otherwise. Values are measured on the validation part."
)
STRETCHED = {
    "unit": " The axis is stretched towards 1: equal steps divide the error by equal factors.",
    "factors": " The axis is logarithmic: equal steps are equal factors.",
    "plain": "",
}
CURVES = (
    "The value after each epoch; a square marks where a trial ended early or is paused, a dotted "
    f"line a rung where trials wait for their promotion. Of more than {MOST_BEST} + "
    f"{MOST_LATEST} trials, the best and the latest are drawn."
)


def search_sections(
    stored: StoredStudy, snapshot: Snapshot, winner: Answer | None, axis: Axis
) -> Iterator[Section]:
    """Renders the Pareto front, the history of the search, and the learning curves."""
    trials, best, baseline = stored.trials(), snapshot.best, snapshot.baseline
    chosen = None if winner is None else winner.winner.trial
    won = next((trial for trial in trials if trial.number == chosen), None)
    if snapshot.costs:
        yield front_section(stored, snapshot, won, axis)
    figure = history(trials, best, baseline, axis)
    better = "Higher" if axis.sign > 0 else "Lower"
    caption = f"{HISTORY}{STRETCHED[axis.scale]} {better} is better."
    yield Section("search", "Search", [drawn(figure)], caption)
    figure = curves(trials, best, baseline, axis)
    yield Section("curves", "Learning curves", [drawn(figure)], CURVES)
    which = ""
    if (shown := won or best) is not None:
        which = f"Trial {shown.number}, the {'best' if won is None else 'winner'}. "
    title, caption = beside(shown, which)
    figure = f"{why_no_best(snapshot)}." if shown is None else losses(shown)
    yield Section("losses", title, [drawn(figure)], caption)


def front_section(
    stored: StoredStudy, snapshot: Snapshot, won: FrozenTrial | None, axis: Axis
) -> Section:
    """Renders the Pareto front as a figure and a table."""
    marked = {"baseline": snapshot.baseline, "best": snapshot.best, "winner": won}
    blocks: list[Block] = [drawn(front(stored, marked, axis))]
    if snapshot.front:
        heads, *rows = front_rows(snapshot)
        blocks.append(Table(heads, rows, words=(len(heads) - 1,)))
    caption = f"{FRONT} The best is chosen by {snapshot.rule}."
    return Section("front", "The Pareto front", blocks, caption)


MOST_LINES = 150  # over parallel axes, of the best trials
MOST_SLICES = 24  # of the most important parameters
IMPORTANCES = (
    "How much of the differences between trials each parameter explains, over the whole space, "
    "estimated by a forest of trees on the ranks of complete and pruned trials; the shares sum to "
    "1. The line is a 90 % interval over resamples of the trials: where intervals overlap, the "
    "order is open. A choice of a group counts with all that it opens."
)
CHOICES = (
    "Each option of a group is a question of its own: how many trials chose it, and how the "
    "complete ones of them did. The search gives few trials to an option that did badly."
)
SLICES = (
    "Each point is a complete trial, at its setting and its value; later trials are bluer, and the "
    "ring is the best. The most important parameter comes first."
)
PARALLEL = (
    "Each line is a complete trial: from its value at the left across its parameters. Better "
    "trials are bluer, and the best is green. A – means that the trial lacks the parameter."
)
TOGETHER = (
    "The complete trials over the two most important parameters that occur together; better ones "
    "are bluer."
)


def parameter_sections(
    stored: StoredStudy, best: FrozenTrial | None, axis: Axis
) -> Iterator[Section]:
    """Renders which parameters matter, for each objective, and how they shape the value."""
    trials = stored.trials()
    complete = complete_trials(trials)
    names = varied_parameters(complete, ENOUGH)
    why = "No two trials differ in rank, which would tell what matters." if names else NO_PARAMETERS
    found = [importances(trials, names, goal.sign, n) for n, goal in enumerate(stored.goals)]
    for position, (goal, shares) in enumerate(zip(stored.goals, found, strict=True)):
        title = f"What matters for {goal.name}" if len(found) > 1 else "Which parameters matter"
        key = f"importances-{position}" if position else "importances"
        yield Section(key, title, [Bars(shares) if shares else Absent(why)], IMPORTANCES)
    if choices := [*_choices(trials, complete, axis)]:
        yield Section("choices", "Which choice", choices, CHOICES)
    names = [share.name for share in found[0]] or names
    each = drawn(slices(complete, names[:MOST_SLICES], best, axis))
    yield Section("slices", "Parameter by parameter", [each], SLICES)
    lines = drawn(parallel(best_of(stored, MOST_LINES), names, axis))
    yield Section("parallel", "The best trials over all parameters", [lines], PARALLEL)
    two = drawn(together(complete, names, axis))
    yield Section("together", "Two parameters together", [two], TOGETHER)


def _choices(
    trials: Sequence[FrozenTrial], complete: Sequence[FrozenTrial], axis: Axis
) -> Iterator[Part]:
    """Yields for each choice of a group how its options did.

    A choice is one of a group if it opens parameters: their names begin with it.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    for name in names:
        tried = Counter(str(trial.params[name]) for trial in trials if name in trial.params)
        if len(tried) < 2 or not any(other.startswith(f"{name}.") for other in names):
            continue
        own = [trial for trial in complete if name in trial.params]
        said = ", ".join(f"{option} by {count}" for option, count in tried.items())
        block = summary(own, name, axis.sign) if own else Absent("No trial is complete yet.")
        yield Part(name, [block], f"chosen: {said}")


TRIALS = (
    "All trials, with their parameters. A click on a title sorts by it; the field above shows only "
    "the rows that hold all of its words, such as “cnn complete”."
)
SHOWN = {"standard_error": "± error", "seconds": "time", "reason": "why"}  # by its column
# Of a table for people; all columns are in the output of `studyloom trials --csv`.
LEFT_OUT = ("started", "worker", "baseline", "failure", "state", "number")
LONGEST = 60  # characters of a cell


def trials_section(stored: StoredStudy, snapshot: Snapshot, won: int | None) -> Section:
    """Renders the table of all trials, without the columns of which all cells are empty."""
    rows = trial_rows(stored)
    if not rows.cells:
        return Section("trials", "All trials", [Absent("No trial has begun yet.")], TRIALS)
    columns = {
        name: [cells[position] for cells in rows.cells]
        for position, name in enumerate(rows.columns)
    }
    shown = {
        name: column
        for name, column in columns.items()
        if name not in LEFT_OUT and any(cell is not None for cell in column)
    }
    best = None if snapshot.best is None else snapshot.best.number
    table = []
    for row, trial in enumerate(columns["number"]):
        first = bool(columns[BASELINE][row])
        marks = {"winner": trial == won, "best": trial == best, "baseline": first}
        mark = ", ".join(name for name, is_so in marks.items() if is_so)
        cells = [_cell(name, column[row]) for name, column in shown.items()]
        table.append(Row(trial, columns["state"][row], cells, mark))
    words = [
        place
        for place, column in enumerate(shown.values())
        if any(isinstance(cell, str | bool | list) for cell in column)
    ]
    block = Trials([_title(name, snapshot) for name in shown], words, table)
    return Section("trials", "All trials", [block], TRIALS)


def _title(name: str, snapshot: Snapshot) -> str:
    if name == "value":
        return snapshot.metric
    return SHOWN.get(name, name.removeprefix("params.").removeprefix("values."))


def _cell(name: str, value: Any) -> Cell:
    if value is None:
        return Cell("")
    if name == "seconds":
        return Cell(format_duration(value) if value >= 10 else f"{value:.1f} s", value)
    if isinstance(value, float) and not name.startswith("params."):
        return Cell(format_value(value), value)
    return Cell(shorten(format_parameter(value), LONGEST), value)


TIMELINE = (
    "Each row is a worker and each bar one of its trials, without its pauses; gaps are time "
    "without a trial. Idle is the share of gaps between the first start and the last end."
)
RUNNING = (
    "What each worker trains at this moment, and the value of the last epoch that it reported."
)
FAILURES = "The trials that failed, by kind of failure, with the messages that they stored."
MOST_MESSAGES = 10  # of one kind of failure


def running_sections(snapshot: Snapshot) -> Iterator[Section]:
    """Renders what runs at this moment: each worker's trial, epoch, value and parameters."""
    rows = []
    for worker in snapshot.workers:
        epoch = "–" if worker.epoch is None else f"{worker.epoch}"
        if worker.epoch is not None and worker.epochs is not None:
            epoch += f" of {worker.epochs}"
        trial = "–" if worker.number is None else worker.number
        value = "–" if worker.value is None else format_value(worker.value)
        lease = "" if worker.alive else "its lease is over"
        params = "" if worker.number is None else format_parameters(worker.params)
        rows.append((worker.owner, trial, epoch, value, lease, params))
    if rows:
        head = ("worker", "trial", "epoch", snapshot.metric, "", "parameters")
        yield Section("running", "Running now", [Table(head, rows, words=(0, 4, 5))], RUNNING)


def worker_sections(stored: StoredStudy) -> Iterator[Section]:
    """Renders the timeline of the workers, and the failures."""
    trials = stored.trials()
    alive = {
        held.trial_id
        for held in stored.ledger.held()
        if held.trial_id is not None and held.left > 0
    }
    caption = TIMELINE
    if len(trials) > MOST:
        caption += f" These are the latest {MOST} of {len(trials)} trials."
    yield Section("workers", "Workers", [drawn(timeline(trials[-MOST:], alive))], caption)
    yield Section("failures", "Failures", [*failures(trials)], FAILURES)


def failures(trials: Sequence[FrozenTrial]) -> Iterator[Block]:
    """Yields the failures by kind, the most frequent first, each message with its trials."""
    counts = count_failures(trials)
    if not counts:
        yield Absent("No trial has failed.")
    for failure in counts:
        reasons = failure.by_reason()
        blocks: list[Block] = []
        for reason, members in [*reasons.items()][:MOST_MESSAGES]:
            blocks += _message(reason, members)
        if len(reasons) > MOST_MESSAGES:
            blocks.append(Words(f"and {len(reasons) - MOST_MESSAGES} other messages", "quiet"))
        yield Part(failure.kind, blocks, f"{failure.count} ×")


def _message(reason: str, trials: Sequence[FrozenTrial]) -> Iterator[Block]:
    """Yields a failure's message, the trials that stored it, and one of their tracebacks."""
    numbers = ", ".join(str(trial.number) for trial in trials[:MOST_MESSAGES])
    numbers += ", …" if len(trials) > MOST_MESSAGES else ""
    yield Words(reason, "bad")
    yield Words(f"trial {numbers}", "quiet")
    tracebacks = (t.user_attrs[TRACEBACK] for t in trials if TRACEBACK in t.user_attrs)
    if (traceback := next(tracebacks, None)) is not None:
        yield Folded("traceback", str(traceback))


def environment_section(winner: Answer | None, config_text: str) -> Section:
    """Renders the environment in which the winner was trained, or else that of this process."""
    blocks: list[Block] = [environment(winner)]
    if config_text.strip():
        blocks.append(Folded("configuration", config_text))
    else:
        blocks.append(Absent("No configuration was found."))
    return Section("environment", "Configuration and environment", blocks)


def environment(winner: Answer | None) -> Facts:
    """Returns the facts of the environment, with the data's digest and the seeds."""
    facts: dict[str, Any] = {} if winner is None else {**winner.environment}
    if not facts:
        facts = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "optuna")},
            "studyloom": __version__,
            "device": _device(),
        }
    if winner is not None:
        facts["data"] = winner.data.digest if winner.data else None
        facts["seeds"] = [*winner.seeds] or None
    return Facts([(str(key), value) for key, value in facts.items() if value is not None])


def _device() -> str | None:
    """Names the device of this process; None if it has not imported torch, which takes a second."""
    if (torch := sys.modules.get("torch")) is None:
        return None
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def read_report(
    stored: StoredStudy,
    winner: Answer | None,
    small: Compressed | None,
    config_text: str,
    progress: Progress | None = None,
) -> tuple[Head, Iterator[Section]]:
    """Reads a study, and returns the beginning of its report and the sections below it.

    Args:
        progress: of the whole job, whose stages after the search are then shown while they run;
            None shows the search.
    """
    snapshot = take_snapshot(stored) if progress is None else progress.search
    parts = read_parts(stored)

    def sections() -> Iterator[Section]:
        yield from running_sections(snapshot if progress is None else progress.current)
        yield from all_sections(stored, snapshot, winner, small)
        yield parts_section(parts)
        yield environment_section(winner, config_text)

    return head(stored, snapshot, winner, parts), sections()


def all_sections(
    stored: StoredStudy, snapshot: Snapshot, winner: Answer | None, small: Compressed | None
) -> Iterator[Section]:
    """Yields the sections of a study: what decided, the search, who worked."""
    axis = Axis.of(stored.metric, stored.sign)
    won = None if winner is None else winner.winner.trial
    if winner is not None:
        yield from winner_sections(winner, small)
        yield from explained_sections(winner)
    shown, note = sample(stored, snapshot, won)
    yield from noted(search_sections(shown, snapshot, winner, axis), note)
    caption, figure = outlook(stored, snapshot.outlook)
    yield Section("outlook", "What further trials may gain", [drawn(figure)], caption)
    yield from noted([trials_section(shown, snapshot, won)], note)
    yield from noted(parameter_sections(shown, snapshot.best, axis), note)
    yield from worker_sections(stored)
    if winner is None:
        yield from winner_sections(None, None)


def noted(sections: Iterable[Section], note: str) -> Iterator[Section]:
    """Adds a note to the captions of some sections."""
    for section in sections:
        yield replace(section, caption=f"{section.caption} {note}".strip())


SHOWN_CONFIGS = ("best.yaml", ".hydra/config.yaml")  # below the run directory


def write_report(stored: StoredStudy, run_dir: Path) -> Path:
    """Writes report.html of the study that runs in a folder.

    Raises:
        OSError: the folder cannot be written to.
    """
    page = render(stored, *read_files(stored, run_dir))
    path = run_dir / "report.html"
    write_whole(path, page.encode(errors="replace"))
    return path


def read_files(stored: StoredStudy, run_dir: Path) -> tuple[Answer | None, Compressed | None, str]:
    """Reads the files of a run directory for its report.

    Returns:
        What winner.json holds, None if it is not of this study; how its winner was made small, if
        it was; and the configurations, as text.

    Raises:
        OSError: a file cannot be read.
    """
    paths = {name: run_dir / name for name in SHOWN_CONFIGS if (run_dir / name).exists()}
    texts = {name: path.read_text(errors="replace").rstrip() for name, path in paths.items()}
    config_text = "\n\n".join(f"# {name}\n{text}\n" for name, text in texts.items())
    answer = read_answer(run_dir)
    if answer is None or not belongs_to(answer, stored):  # that of another study which ran here
        return None, None, config_text
    return answer, read_compressed(run_dir, answer), config_text


def render(
    stored: StoredStudy, winner: Answer | None, small: Compressed | None, config_text: str
) -> str:
    """Renders the page as HTML."""
    return report_page(*read_report(stored, winner, small, config_text))
