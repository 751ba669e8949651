"""The section of a report that explains the winner's predictions on the test set."""

from collections.abc import Iterator, Sequence

from studyloom.text import format_value
from studyloom.views import axes, charts, page
from studyloom.views.words import format_number
from studyloom.winner.explanation_values import (
    Bin,
    Calibration,
    Column,
    ExplainedText,
    Groups,
    Occlusion,
)
from studyloom.winner.result import Result

STRONGEST = 6  # words listed for each class


def render_explanations(result: Result) -> Iterator[page.Section]:
    """Yields the section with all that explains the winner; none without explanations."""
    explanations = result.explanations
    if explanations is None:
        return
    parts: list[page.Part] = []
    metric = result.metric.name
    images = []
    for occlusion in explanations.occlusions:
        if page.is_embedded(occlusion.image):
            images.append(_show_occlusion(occlusion))
    if images:
        parts.append(page.make_part("misled", [page.Images(images)]))
    texts = []
    for text in explanations.texts:
        if any(text.changes):
            texts.append(_render_text(text, result.classes or ()))
    if texts:
        parts.append(page.make_part("words", texts))
    if explanations.calibration is not None:
        parts.append(_render_calibration(explanations.calibration))
    if explanations.groups is not None:
        parts.append(_render_groups(explanations.groups, metric))
    if explanations.columns:
        parts.append(_render_columns(explanations.columns, metric))
    if parts:
        yield page.make_section("explanations", parts)


def _show_occlusion(occlusion: Occlusion) -> page.CaptionedImage:
    """Shows an image with the patches that misled the winner."""
    largest_loss_of_confidence = occlusion.largest_loss
    return page.CaptionedImage(
        source=occlusion.image,
        label=f"what misled the winner on test image {occlusion.index}",
        caption=f"{occlusion.label} → ",
        strong=str(occlusion.predicted),
        remark=format_number(largest_loss_of_confidence),
    )


def _render_text(text: ExplainedText, classes: Sequence[str]) -> page.Part:
    """Renders a misclassified text, with its words shaded and the strongest ones listed."""
    names = dict(enumerate(classes))
    truth = names.get(text.label, str(text.label))
    predicted = names.get(text.predicted, str(text.predicted))
    # How much the margin falls without each word. An untrusted winner.json may lack some changes.
    weights = [*zip(text.words, text.changes, strict=False)]
    largest = max(abs(change) for _, change in weights)
    lines = []
    words_for_predicted = _list_strongest(weights, sign=1)
    if words_for_predicted:
        lines.append(f"for {predicted}: {', '.join(words_for_predicted)}")
    words_for_truth = _list_strongest(weights, sign=-1)
    if words_for_truth:
        lines.append(f"for {truth}: {', '.join(words_for_truth)}")
    if text.unexamined_words:
        lines.append(f"{text.unexamined_words} further words were not tested")
    shaded = page.Shaded([(word, change / largest) for word, change in weights])
    probabilities = " and ".join(map(format_number, text.probabilities))
    # The margin is the log of the predicted class's probability divided by the true class's.
    margin = format_number(text.margin, "+")
    remark = f"test text {text.index}, probabilities {probabilities}, in all {margin}"
    return page.Part(f"{truth} → {predicted}", [shaded, page.Lines(lines)], remark)


def _list_strongest(weights: Sequence[tuple[str, float]], sign: int) -> list[str]:
    """Returns the words with the strongest evidence for one class, such as "ball +1.25".

    Args:
        weights: each word, and how much the log odds of the predicted class fall without it.
        sign: 1 for the predicted class, -1 for the true one.
    """
    threshold = page.FAINT * max(abs(change) for _, change in weights)
    strengths = {}  # of each word, which may occur several times in the text
    for word, change in weights:
        strength = sign * change
        if strength >= threshold:
            strengths[word] = strength
    sign_text = "−"
    if sign > 0:
        sign_text = "+"
    strongest_first = sorted(strengths, key=lambda word: -strengths[word])
    texts = []
    for word in strongest_first[:STRONGEST]:
        texts.append(f"{word} {sign_text}{strengths[word]:.2f}")
    return texts


def _render_calibration(calibration: Calibration) -> page.Part:
    """Renders how well the confidence of predictions matches their accuracy."""
    return page.make_part(
        "calibration",
        [page.draw_figure(draw_calibration, calibration.bins)],
        confidence=format_number(calibration.confidence),
        accuracy=format_number(calibration.accuracy),
        error=format_number(calibration.error),
    )


def draw_calibration(bins: Sequence[Bin]) -> charts.Chart | str:
    """Draws the accuracy of each bin of confidence, with its interval and the diagonal."""
    if not bins:
        return "winner.json holds no calibration."
    height = 320  # pixels
    points = []
    intervals = []
    for confidence_bin in bins:
        low, high = confidence_bin.interval
        points.append([(confidence_bin.confidence, confidence_bin.accuracy)])
        intervals.append([(confidence_bin.confidence, low), (confidence_bin.confidence, high)])
    marks = [
        charts.make_dotted_line([(0, 0), (1, 1)], color=charts.GRAY, name="confidence = accuracy"),
        charts.make_interval_lines(intervals, color=charts.TEAL),
        charts.Mark("accuracy", charts.TEAL, "dot", points, width=9),
    ]
    rows = []
    for confidence_bin in bins:
        low, high = confidence_bin.interval
        row = (
            f"{confidence_bin.low:.1f} to {confidence_bin.high:.1f}",
            confidence_bin.count,
            format_value(confidence_bin.confidence),
            format_value(confidence_bin.accuracy),
            f"{low:.3f} to {high:.3f}",
        )
        rows.append(row)
    head = ("confidence", "examples", "mean confidence", "accuracy", "95% interval")
    ticks = [axes.Tick(round(0.2 * step, 1), f"{0.2 * step:g}") for step in range(6)]
    x = axes.ChartScale(-0.03, 1.03, ticks, "confidence")
    y = axes.make_linear_scale([0.0, 1.0], "accuracy", upright=True, height=height)
    label = f"the accuracy of {len(bins)} bins of confidence"
    return charts.Chart(label, height, x, y, marks, charts.PageTable(head, rows, text_columns=(0,)))


def _render_groups(groups: Groups, metric: str) -> page.Part:
    """Renders the metric of each group of examples, such as of each class."""
    kind = groups.grouped_by
    rows = []
    for group in groups.rows:
        interval = " to ".join(map(format_number, group.interval))
        rows.append((group.name, group.count, format_number(group.value), interval))
    note = ""
    if groups.omitted:
        note = f"{groups.omitted} further ones with fewer examples are left out."
    head = (kind, "examples", metric, "95% interval")
    table = charts.PageTable(head, rows, text_columns=(0,), note=note)
    return page.make_part("groups", [table], kind=kind, Kind=kind.capitalize())


def _render_columns(columns: Sequence[Column], metric: str) -> page.Part:
    """Renders how much worse the metric is when the values of each column are shuffled."""
    rows = []
    for column in columns:
        interval = " to ".join(map(format_number, column.interval))
        rows.append((column.name, format_number(column.worse_by), interval))
    head = ("column", f"{metric} worse by", "5% to 95%")
    return page.make_part("columns", [charts.PageTable(head, rows, text_columns=(0,))])
