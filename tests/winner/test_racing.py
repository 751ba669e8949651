"""A race for the winner as it is stored and told, on toy data and real databases."""

import pytest
import yaml
from judged import SPACE, SPLIT, CountedTest, plan_of, train, train_plainly, work
from toys import KINDS, TINY, Never, ask, toy_folds

from studyloom.data.training_data import TrainingData
from studyloom.question.validation import check_sections
from studyloom.study.race import run_race
from studyloom.study.worker import Worker
from studyloom.views.report import render
from studyloom.views.terminal import winner_lines
from studyloom.winner.answer import read_answer
from studyloom.winner.evaluation import evaluate_winner

pytestmark = pytest.mark.chaos  # each plan trains for some seconds

TRIALS = 6
RACE = {"race": True, "top": 2, "seeds": 3}  # 9 trainings at most


@pytest.fixture(scope="module")
def question():
    return ask(*SPACE)


def describe(plan):
    """Returns the trainings of a race with their values, and who left."""
    trials = plan.reevaluation.stored.trials()
    table = {(t.params["candidate"], t.params["seed"]): t.value for t in trials}
    return table, plan.race


@pytest.fixture(scope="module")
def raced(question, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("raced")
    plan = plan_of(question, f"sqlite:///{run_dir}/study.db", run_dir, TRIALS, **RACE)
    work(plan)
    answer = evaluate_winner(plan, CountedTest(), ["x"])
    return plan, answer


def test_each_training_of_a_race_is_a_plain_one_and_there_are_no_more_than_before(raced):
    plan, _ = raced
    table, race = describe(plan)
    assert {*table} == {*race.trainings}
    assert 5 < len(table) <= 9
    assert len(plan.entrants) == 4, "3 candidates on 3 seeds pay for 4 + 2 + 2 trainings"
    assert 0 in plan.entrants
    for (candidate, seed), value in table.items():
        assert train_plainly(plan.reevaluation, candidate, seed)[0] == value
    assert race == run_race(plan.entrants, table, 9)


def test_the_winner_of_a_race_is_the_best_of_those_that_stayed(raced):
    plan, answer = raced
    assert plan.is_done()
    assert plan.todo() == 0
    assert plan.winner == plan.race.running[0] == answer.winner.trial
    assert {*plan.eligible} == {*plan.race.running}


def test_who_left_when_and_why_is_told_everywhere(raced, tmp_path):
    plan, answer = raced
    told = answer.race
    race = plan.race
    assert [row.trial for row in told.left] == [leaving.candidate for leaving in race.left]
    assert told.trainings == len(race.trainings) <= told.budget == 9
    for row in told.left:
        line = f"left after {row.seeds} seed"
        assert line in "\n".join(winner_lines(answer))
        assert line in (plan.run_dir / "model_card.md").read_text()
        assert line in render(plan.search.stored, answer, None, "")
        assert line in (plan.run_dir / "winner.yaml").read_text()
    text = (plan.run_dir / "winner.yaml").read_text()
    assert text.splitlines()[1].startswith("# x --config-dir"), "the command stays where it was"
    assert yaml.safe_load(text)["study"]["trials"] == 1
    assert read_answer(plan.run_dir).race == told
    numbers = [row.trial for row in answer.candidates]
    assert numbers[0] == plan.winner
    assert sorted(numbers) == sorted(plan.entrants)


def test_a_race_that_was_stopped_goes_on_to_the_same_winner_and_table(question, raced, tmp_path):
    """In its second round."""
    ended = 5
    url = f"sqlite:///{tmp_path}/study.db"
    first = plan_of(question, url, tmp_path, TRIALS, **RACE)
    done = 0

    class AfterSome(Never):
        def __call__(self):
            return done >= TRIALS + ended

    def count():
        nonlocal done
        done += 1

    for stage in first:
        data = TrainingData(None, SPLIT, toy_folds(SPLIT))
        Worker(stage.asked, stage.stored, data, AfterSome(), None, on_claim=count).run(stage.trials)
        if AfterSome()():
            break
    assert not first.is_done()
    assert first.todo() > 0
    first.close()
    plan = plan_of(question, url, tmp_path, TRIALS, **RACE)
    work(plan)
    assert describe(plan) == describe(raced[0])
    assert plan.winner == raced[0].winner


def test_workers_share_a_race_on_both_databases(question, raced, url, tmp_path):
    """They take turns, a training each; each finds the other's results in the database."""
    plans = [plan_of(question, url, tmp_path, TRIALS, **RACE) for _ in range(2)]
    work(plans[0])
    assert plans[1].is_done()
    assert describe(plans[1]) == describe(raced[0])
    numbers = [trial.number for trial in plans[1].reevaluation.stored.trials()]
    assert numbers == [*range(len(plans[1].race.trainings))]


def test_a_grown_budget_takes_over_the_trainings_of_a_race_bit_for_bit(question, raced, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    small = plan_of(question, url, tmp_path, TRIALS, **RACE)
    work(small)
    before, _ = describe(small)
    grown = plan_of(question, url, tmp_path, TRIALS + 2, **RACE)
    work(grown)
    after, _ = describe(grown)
    common = before.keys() & after.keys()
    assert common
    assert all(before[training] == after[training] for training in common)
    count, _ = grown.reused()["re-evaluation"]
    assert count == len(common)


def test_a_candidate_that_fails_leaves_the_race_with_its_reason_in_one_line(
    question, tmp_path, monkeypatch
):
    words = "no luck today: a list - of"
    plan = plan_of(question, f"sqlite:///{tmp_path}/study.db", tmp_path, TRIALS, **RACE)
    train(plan.search, SPLIT, TRIALS)
    best = plan.entrants[1]  # slot 0 would stop the stage, as trial 0 does
    asked = type(plan.reevaluation.asked)
    make = asked.make_objective

    def failing(self, point, *rest):
        if point.values["candidate"] == best and len(self.candidates) > 2:
            raise RuntimeError("no luck\n\ttoday: a list\n- of: {lines")
        return make(self, point, *rest)

    monkeypatch.setattr(asked, "make_objective", failing)
    work(plan)
    assert plan.is_done()
    assert plan.winner != best
    answer = evaluate_winner(plan, CountedTest(), ["x"])
    row = next(row for row in answer.race.left if row.trial == best)
    assert row.cause == "failed"
    assert "\n" not in row.reason
    assert words in "\n".join(winner_lines(answer))
    text = (tmp_path / "winner.yaml").read_text()
    assert words in text
    assert yaml.safe_load(text)["study"]["trials"] == 1
    assert not next(row for row in answer.candidates if row.trial == best).values


def test_a_race_for_a_loop_without_a_test_says_on_how_many_seeds_the_winner_was_judged(tmp_path):
    question = ask(*SPACE, *KINDS["loop"], "objective.test=null")
    plan = plan_of(question, f"sqlite:///{tmp_path}/study.db", tmp_path, TRIALS, **RACE)
    work(plan)
    assert plan.is_done()
    answer = evaluate_winner(plan, CountedTest(), ["x"])
    assert len(answer.seeds) == len(answer.winner.values)
    assert "left after 1 seed" in "\n".join(winner_lines(answer))


def mistakes(*overrides):
    return [*check_sections(ask(*TINY, *overrides))]


def test_a_race_that_cannot_be_run_is_refused_with_the_way_out():
    rule = "winner.rule='min parameters where accuracy > 0.5'"
    goals = "objective.metric=[accuracy,parameters]"
    wrong = mistakes("winner.race=true", rule, goals)
    assert any("winner.race: winner.rule chooses by parameters" in m for m in wrong)
    keeping = "winner.rule='max accuracy where parameters < 1000'"
    fine = mistakes("winner.race=true", keeping, "objective.metric=[accuracy,parameters]")
    assert not [mistake for mistake in fine if "winner" in mistake]
