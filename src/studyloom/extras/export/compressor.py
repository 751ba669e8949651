"""The compressor: it makes variants of a winner, chooses one of them by a rule, and tests it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from filelock import FileLock, Timeout

from studyloom.errors import Stopped
from studyloom.extras.export.export_errors import CompressError
from studyloom.extras.export.exported_network import (
    Original,
    count_parameters,
)
from studyloom.extras.export.onnx import OnnxNetwork
from studyloom.extras.export.record import (
    NETWORK,
    RECORD,
    Chosen,
    Compressed,
    Scores,
    VariantFacts,
)
from studyloom.extras.export.settings import Settings, metric_of
from studyloom.extras.export.variants import (
    Evaluator,
    Say,
    Variants,
    compare_outputs,
    evaluate,
    export,
)
from studyloom.files import write_whole
from studyloom.metrics import Metric
from studyloom.space.rule import Rule
from studyloom.storage.ledger import Store
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.result import Result, digest_of, from_document, to_document, write_json
from studyloom.worker.stopping import Stop

LOCK = "compress.lock"  # below the run directory
LOCK_INTERVAL = 0.5  # seconds between looks at whether a stop was requested while it waits
# The attribute of the study that holds the results on the test set, by the digest of winner.onnx.
TEST_RESULTS = "compressed"
CUSTOM_LOOP = "a custom loop trains it, so no smaller network can be trained: it is tried unchanged"
ROUNDING = 1e-9  # of means of shares such as 5 of 1,000


@dataclass(frozen=True)
class Compressor:
    """Compresses the winner of one run.

    Args:
        evaluation: the evaluation of a study that has a winner.
        say: called with a description of each step.
        stop: returns True once a signal or command has requested a stop.
    """

    evaluation: Evaluation
    settings: Settings
    say: Say
    stop: Stop

    def make(self, result: Result, rule: Rule | None) -> Compressed:
        """Compresses a winner in the four steps that `compression` describes.

        Args:
            result: the result of the study, with the facts of its data.
            rule: chooses the variant; None for the default one.

        Returns:
            The content of winner.onnx.json.
        """
        settings = self.settings
        facts = result.data
        assert facts is not None
        self._begin("training the winner's configuration without a validation set")
        with self.stop.interruptible():  # meanwhile nothing polls the database
            original = Original.retrained(self.evaluation, settings.calibration)

        metric = metric_of(self.evaluation.study.definition)
        evaluator = Evaluator(metric, settings, original, facts)
        variants = self._make_variants(evaluator)
        if rule is None:
            rule = evaluator.default_rule()
        chosen = evaluator.choose(rule, variants.made)

        self._begin(f"making {chosen.facts.name} of the winner, with all training data")
        with self.stop.interruptible():
            winner = Original.of_winner(self.evaluation, settings.calibration)
            network = chosen.recipe.make(winner)
            content = export(winner, network, facts, quantized=chosen.quantized)
        chosen_facts = Chosen(
            name=chosen.facts.name,
            bytes=len(content),
            parameters=count_parameters(network),
            medians=_collect_median_latencies(chosen.facts, evaluator.original_facts),
        )

        run_dir = self.evaluation.study.run_dir
        with self.holding_test_lease(result) as store:
            record = Compressed(
                winner=result.files["winner.pt"],
                digest=digest_of(content),
                settings=settings.document(),
                metric=result.metric,
                threads=settings.threads,
                rule=str(rule),
                margin=evaluator.margin,
                original=evaluator.original_facts,
                variants=(*[variant.facts for variant in variants.made], *variants.failed),
                bytes_of_winner=(run_dir / "winner.pt").stat().st_size,
                chosen=chosen_facts,
                test=self._test(evaluator, winner, content, store),
            )
            # The record comes first, with the digest of the network: if the command is killed
            # before it writes the network, readers see that the two do not belong together.
            write_json(run_dir / RECORD, record)
            write_whole(run_dir / NETWORK, content, durable=True)
        return record

    def _make_variants(self, evaluator: Evaluator) -> Variants:
        """Makes the variants; of a network that a custom loop trains, only the unchanged one."""
        recipes = evaluator.recipes()
        if not self.evaluation.study.definition.trains_networks:
            unchanged = recipes[0]
            recipes = [unchanged]
            self._begin(CUSTOM_LOOP)
        return evaluator.make(recipes, self._begin, self.stop)

    def _begin(self, step: str) -> None:
        """Prints which step begins; raises Stopped if a stop was requested."""
        if self.stop():
            raise Stopped
        self.say(step)

    def _test(self, evaluator: Evaluator, winner: Original, content: bytes, store: Store) -> Scores:
        """Measures a file and the winner on the test set, which is used once for this file.

        The scores are stored in the database at once, from where a later command takes them.

        Args:
            content: the content of the ONNX file.
            store: stores an attribute of the study.
        """
        digest = digest_of(content)
        study = self.evaluation.study.stored
        metric = evaluator.metric
        earlier_results = study.optuna.user_attrs.get(TEST_RESULTS) or {}
        if digest in earlier_results:
            scores = replace(from_document(earlier_results[digest], Scores), tested_before=True)
        else:
            study.count_test_use(store)  # first, so that a test is counted if this is killed
            scores = self._measure(metric, winner, content)
            results = {**earlier_results, digest: to_document(scores)}
            store(study.ledger.study_id, TEST_RESULTS, results)
        gains = [metric.sign * end for end in scores.interval]  # below 0 if the file is worse
        largest_loss = -min(gains)
        is_within_margin = largest_loss <= evaluator.margin + ROUNDING
        return replace(scores, is_within_margin=is_within_margin, test_set_uses=study.test_uses())

    def _measure(self, metric: Metric, winner: Original, content: bytes) -> Scores:
        """Measures a file and the winner on the test set."""
        test = self.evaluation.study.data.test()
        outputs_of_winner = evaluate(winner, winner.network, test)
        outputs_of_file = evaluate(winner, OnnxNetwork(content), test)
        difference = compare_outputs(metric, winner, outputs_of_winner, outputs_of_file)
        interval = difference.interval
        has_interval = interval is not None
        if interval is None:  # it is not known, as for a custom evaluation
            interval = (difference.mean, difference.mean)
        return Scores(
            value=outputs_of_file.score(metric),
            original=outputs_of_winner.score(metric),
            difference=difference.mean,
            interval=interval,
            covers_examples=has_interval,
            examples=len(test),
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Waits until no other command compresses the winner of this run directory.

        Raises:
            Stopped: a stop was requested while it waited.
        """
        lock = FileLock(self.evaluation.study.run_dir / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.say("another command compresses the winner; waiting for it")
        while not lock.is_locked:
            if self.stop():
                raise Stopped
            try:
                lock.acquire(timeout=LOCK_INTERVAL)
            except Timeout:
                continue
        try:
            if self.stop():
                raise Stopped
            yield
        finally:
            lock.release()

    @contextmanager
    def holding_test_lease(self, result: Result) -> Iterator[Store]:
        """Holds the lease of the test set, so that no other command writes a result meanwhile.

        Args:
            result: the result that was compressed.

        Yields:
            The function that stores attributes of a study while the lease is held.

        Raises:
            CompressError: the study has another winner by now.
        """
        run_dir = self.evaluation.study.run_dir
        with self.evaluation.study.stored.ledger.testing() as store:
            current = Result.load(run_dir)
            current.check_whole(run_dir)
            if current.files["winner.pt"] != result.files["winner.pt"]:
                raise CompressError(
                    f"{run_dir}: another command has chosen another winner meanwhile; "
                    "run this one again"
                )
            yield store


def _collect_median_latencies(
    variant: VariantFacts, original: VariantFacts
) -> dict[str, tuple[float, float]]:
    """Returns the median latencies of a variant and of the original, by batch size."""
    medians = {}
    for batch, latency in variant.latency.items():
        medians[batch] = (latency.median, original.latency[batch].median)
    return medians
