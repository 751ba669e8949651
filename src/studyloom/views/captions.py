"""The captions of the report's sections."""

from studyloom.views.figures.axes import Axis

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
    "The value after each epoch; a cross marks where a trial ended early or is paused, a dotted "
    "line a rung where trials wait for their promotion."
)
LOSSES = (
    "Where the validation loss rises again while the training loss goes on falling, "
    "the network is over-fitting."
)
QUANTITIES = "What the loop reported beside the value."
IMPORTANCES = (
    "How much each parameter contributes to telling good trials from bad ones (PED-ANOVA); the "
    "shares add up to 1. With few complete trials this is only a hint."
)
SLICES = (
    "Each point is a complete trial, at its setting and its value; later trials are bluer, and the "
    "ring is the best. The most important parameter comes first."
)
PARALLEL = (
    "Each line is a complete trial: from its value at the left across its parameters. Better "
    "trials are bluer, and the best is green. A – means that the trial lacks the parameter."
)
CONTOUR = (
    "The value between the complete trials, which are the points; better values are bluer. "
    "Between points it is interpolated."
)
TIMELINE = (
    "Each row is a worker and each bar one of its trials, without its pauses; gaps are time "
    "without a trial. Idle is the share of gaps between the first start and the last end."
)
FAILURES = "The trials that failed, by kind of failure, with the messages that they stored."
CANDIDATES = (
    "The best of many trials is partly luck. So the best few are trained again with other seeds, "
    "and their mean decides; the gap is how much the search promised too much. "
    "± is the standard deviation over the seeds."
)
PREDICTIONS = (
    "What the winner predicted beside what came; over time if the examples are in that order."
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


def history_caption(axis: Axis) -> str:
    """Returns the caption of the search's history, with how to read its axis."""
    better = "Higher" if axis.sign > 0 else "Lower"
    return f"{HISTORY}{STRETCHED[axis.scale]} {better} is better."
