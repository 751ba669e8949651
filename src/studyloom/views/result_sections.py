"""The sections of a report about the result: its reasons, the candidates, and the predictions."""

from collections.abc import Iterable, Iterator

from studyloom.storage.stored_study import StoredStudy
from studyloom.views import page, words
from studyloom.views.charts import Block, PageTable
from studyloom.views.result_figures import draw_ablation, draw_predictions
from studyloom.views.snapshot import Snapshot
from studyloom.winner.result import Result, Wrong


def render_details(stored: StoredStudy, snapshot: Snapshot, result: Result | None) -> page.Section:
    """Renders the reasons for the result, what it is based on, and the best hyperparameters."""
    facts: list[words.Fact] = []
    lines: list[str] = []
    if result is not None:
        lines += words.explain_decision(result, snapshot.budget, stored.sign)
        if result.test or result.winner.reevaluation:
            facts += words.list_facts(result)
    rows: list[tuple[str, object]] = []
    for fact in facts:
        if fact.label:
            rows.append((fact.label, fact.text))
        else:
            lines.append(f"{words.begin_sentence(fact.value)}.")
    rows += _list_search_facts(stored, snapshot)
    data = words.describe_data(stored, result)
    if data:
        rows.append(("data", data))
    blocks: list[Block] = []
    if lines:
        blocks.append(page.Lines(lines))
    blocks.append(page.Facts(rows))
    best_params = None
    if snapshot.best is not None:
        best_params = snapshot.best.params
        parameters = words.format_parameters(best_params)
        blocks.append(page.Paragraph(f"Best:  {parameters}", "parameters"))
    if result is not None and result.winner.params != best_params:
        parameters = words.format_parameters(result.winner.params)
        blocks.append(page.Paragraph(f"Winner:  {parameters}", "parameters"))
    return page.make_section("details", blocks)


def _list_search_facts(stored: StoredStudy, snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Yields the objectives, how the best trial is chosen, and what further trials would gain."""
    yield "values", ", and ".join(map(words.describe_objective, stored.objectives))
    if snapshot.rule is not None:
        yield "the best by", snapshot.rule
    label, _, gain = snapshot.forecast.describe_gain(snapshot.metric).partition(": ")
    if gain:
        yield label, gain


def render_candidates(result: Result) -> Iterator[page.Section]:
    """Renders the candidates and the ablation."""
    yield page.make_section("candidates", [_make_candidate_table(result)])
    ablation = result.ablation
    if ablation is not None and ablation.rows:
        blocks = [page.draw_figure(draw_ablation, ablation)]
        # winner.simple.yaml is the winner with the defaults of changes that are not needed.
        description = words.describe_simple(result)
        if description:
            blocks.append(page.Paragraph(f"winner.simple.yaml is {description}."))
        yield page.make_section("ablation", blocks, metric=result.metric.name)


def render_predictions(result: Result) -> Iterator[page.Section]:
    """Renders what the winner predicts on the test set, and its errors."""
    why_absent = words.explain_no_predictions(result)
    predictions = result.predictions  # of numbers; None for a classifier
    if why_absent:
        yield page.make_section("winner", [page.Absent(why_absent)])
    elif predictions is not None:
        figure = page.draw_figure(draw_predictions, predictions)
        yield page.make_section("predictions", [figure])
    else:
        yield page.make_section("confusion", [_make_confusion_table(result)])
        yield page.make_section("wrong", [_show_wrong_images(result.wrong or ())])


def _make_candidate_table(result: Result) -> PageTable:
    """Makes a table of the candidates, with their values in the search and on new seeds."""
    rows = []
    for candidate in result.candidates:
        role = ""
        if candidate == result.winner:
            role = "winner"
        elif candidate.baseline:
            role = "baseline"
        reevaluation = "–"
        if candidate.reevaluation:
            reevaluation = words.format_mean(candidate.reevaluation)
        costs = [f"{name} {words.format_number(cost)}" for name, cost in candidate.costs.items()]
        row = (
            candidate.trial,
            words.describe_search_value(candidate),
            reevaluation,
            words.format_number(candidate.selection_gap, "+"),
            role,
            "  ".join([*costs, words.format_parameters(candidate.params)]),
        )
        rows.append(row)
    head = ("trial", "search", "re-evaluation", "gap", "", "hyperparameters")
    return PageTable(head, rows, text_columns=(4, 5))  # the role and the hyperparameters


def _make_confusion_table(result: Result) -> Block:
    """Makes a table of the counts by true and predicted class."""
    if not result.confusion:
        return page.Absent("winner.json holds no confusion matrix.")
    names = result.classes or range(len(result.confusion))
    return page.Heat(names, result.confusion, "true classes by predicted ones")


def _show_wrong_images(errors: Iterable[Wrong]) -> Block:
    """Shows the images that the winner misclassifies, each with its classes and confidence."""
    images = []
    for error in errors:
        if page.is_embedded(error.image):
            image = page.CaptionedImage(
                source=error.image,
                label=f"test image {error.index}",
                caption=f"{error.label} → ",
                strong=str(error.predicted),
                remark=words.format_number(error.confidence),
            )
            images.append(image)
    if not images:
        return page.Absent("winner.json holds no images.")
    return page.Images(images)
