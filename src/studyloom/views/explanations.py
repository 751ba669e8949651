"""The section of a report that explains the winner's predictions on the test set."""

from collections.abc import Iterator, Sequence

from studyloom.text import format_value
from studyloom.views import page
from studyloom.views.figures import (
    Chart,
    ChartScale,
    Mark,
    PageTable,
    Tick,
    dotted,
    plain_scale,
)
from studyloom.views.page import draw_figure
from studyloom.views.words import number
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
    images = [_image(item) for item in explanations.occlusions if page.is_embedded(item.image)]
    if images:
        parts.append(page.make_part("misled", [page.Images(images)]))
    texts = [_text(text, result.classes or ()) for text in explanations.texts if any(text.changes)]
    if texts:
        parts.append(page.make_part("words", texts))
    if explanations.calibration is not None:
        parts.append(_calibration(explanations.calibration))
    if explanations.groups is not None:
        parts.append(_groups(explanations.groups, metric))
    if explanations.columns:
        parts.append(_columns(explanations.columns, metric))
    if parts:
        yield page.make_section("explanations", parts)


def _image(occlusion: Occlusion) -> page.CaptionedImage:
    return page.CaptionedImage(
        source=occlusion.image,
        label=f"what misled the winner on test image {occlusion.index}",
        words=f"{occlusion.label} → ",
        strong=str(occlusion.predicted),
        remark=number(occlusion.most),
    )


def _text(text: ExplainedText, classes: Sequence[str]) -> page.Part:
    """Renders a misclassified text, with its words shaded and the strongest ones listed."""
    names = dict(enumerate(classes))
    truth = names.get(text.label, str(text.label))
    predicted = names.get(text.predicted, str(text.predicted))
    weights = [*zip(text.words, text.changes, strict=False)]
    most = max(abs(change) for _, change in weights)
    lines = []
    for name, sign in ((predicted, 1), (truth, -1)):
        strongest = _strongest(weights, sign)
        if strongest:
            lines.append(f"for {name}: {', '.join(strongest)}")
    if text.left:
        lines.append(f"{text.left} further words were not tested")
    shaded = page.Shaded([(word, change / most) for word, change in weights])
    probabilities = " and ".join(map(number, text.probabilities))
    margin = number(text.margin, "+")
    remark = f"test text {text.index}, probabilities {probabilities}, in all {margin}"
    return page.Part(f"{truth} → {predicted}", [shaded, page.Lines(lines)], remark)


def _strongest(weights: Sequence[tuple[str, float]], sign: int) -> list[str]:
    """Returns the distinct words with the strongest evidence for one class, and their weights."""
    least = page.FAINT * max(abs(change) for _, change in weights)
    strong = {word: change for word, change in weights if sign * change >= least}
    first = sorted(strong, key=lambda word: -sign * strong[word])[:STRONGEST]
    mark = "+" if sign > 0 else "−"
    return [f"{word} {mark}{abs(strong[word]):.2f}" for word in first]


def _calibration(calibration: Calibration) -> page.Part:
    return page.make_part(
        "calibration",
        [draw_figure(draw_calibration, calibration.bins)],
        confidence=number(calibration.confidence),
        accuracy=number(calibration.accuracy),
        error=number(calibration.error),
    )


def draw_calibration(bins: Sequence[Bin]) -> Chart | str:
    """Draws the accuracy of each bin of confidence, with its interval and the diagonal."""
    if not bins:
        return "winner.json holds no calibration."
    height = 320
    points = [[(one.confidence, one.accuracy)] for one in bins]
    intervals = [[(one.confidence, end) for end in one.interval] for one in bins]
    marks = [
        dotted("confidence = accuracy", "pruned", [(0, 0), (1, 1)]),
        Mark("", "best", "line", intervals, width=2),
        Mark("accuracy", "best", "dot", points, width=9),
    ]
    rows = []
    for one in bins:
        low, high = one.interval
        row = (
            f"{one.low:.1f} to {one.high:.1f}",
            one.count,
            format_value(one.confidence),
            format_value(one.accuracy),
            f"{low:.3f} to {high:.3f}",
        )
        rows.append(row)
    head = ("confidence", "examples", "mean confidence", "accuracy", "95% interval")
    ticks = [Tick(round(0.2 * step, 1), f"{0.2 * step:g}") for step in range(6)]
    x = ChartScale(-0.03, 1.03, ticks, "confidence")
    y = plain_scale([0.0, 1.0], "accuracy", upright=True, height=height)
    label = f"the accuracy of {len(bins)} bins of confidence"
    return Chart(label, height, x, y, marks, PageTable(head, rows, words=(0,)))


def _groups(groups: Groups, metric: str) -> page.Part:
    kind = groups.of
    rows = [
        (row.name, row.count, number(row.value), " to ".join(map(number, row.interval)))
        for row in groups.rows
    ]
    note = ""
    if groups.left:
        note = f"{groups.left} further ones with fewer examples are left out."
    head = (kind, "examples", metric, "95% interval")
    table = PageTable(head, rows, words=(0,), note=note)
    return page.make_part("groups", [table], kind=kind, Kind=kind.capitalize())


def _columns(columns: Sequence[Column], metric: str) -> page.Part:
    rows = [
        (column.name, number(column.worse), " to ".join(map(number, column.interval)))
        for column in columns
    ]
    head = ("column", f"{metric} worse by", "5% to 95%")
    return page.make_part("columns", [PageTable(head, rows, words=(0,))])
