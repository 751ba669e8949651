"""A race for the winner as it is stored and told, on toy data and real databases."""

import shutil

import pytest
import yaml
from judged import SPACE, SPLIT, CountedTest, plan_of, train, train_plainly, work
from toys import KINDS, TINY, ask

from studyloom.question.validation import check_sections
from studyloom.study.race import run_race
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


def table_of(plan):
    """Returns the values of the trainings of a race."""
    trials = plan.reevaluation.stored.trials()
    return {(t.params["candidate"], t.params["seed"]): t.value for t in trials}


@pytest.fixture(scope="module")
def raced(question, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("raced")
    plan = plan_of(question, f"sqlite:///{run_dir}/study.db", run_dir, TRIALS, **RACE)
    work(plan)
    answer = evaluate_winner(plan, CountedTest(), ["x"])
    return plan, answer


def test_each_training_of_a_race_is_a_plain_one_and_the_best_that_stayed_wins(raced):
    plan, answer = raced
    table, race = table_of(plan), plan.race
    assert {*table} == {*race.trainings}
    assert 5 < len(table) <= 9
    assert len(plan.entrants) == 4, "3 candidates on 3 seeds pay for 4 + 2 + 2 trainings"
    assert 0 in plan.entrants
    for (candidate, seed), value in table.items():
        assert train_plainly(plan.reevaluation, candidate, seed)[0] == value
    assert race == run_race(plan.entrants, table, 9)
    assert (plan.is_done(), plan.todo()) == (True, 0)
    assert plan.winner == race.running[0] == answer.winner.trial
    assert {*plan.eligible} == {*race.running}


def test_who_left_when_and_why_is_told_everywhere(raced):
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


def test_workers_share_a_race_on_both_databases(question, raced, url, tmp_path):
    """They take turns, a training each; each finds the other's results in the database."""
    plans = [plan_of(question, url, tmp_path, TRIALS, **RACE) for _ in range(2)]
    work(plans[0])
    assert plans[1].is_done()
    assert table_of(plans[1]) == table_of(raced[0])
    assert plans[1].race == raced[0].race
    numbers = [trial.number for trial in plans[1].reevaluation.stored.trials()]
    assert numbers == [*range(len(plans[1].race.trainings))]


def test_a_grown_budget_takes_over_the_trainings_of_a_race_bit_for_bit(question, raced, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    for file in raced[0].run_dir.glob("study.db*"):
        shutil.copy(file, tmp_path)
    grown = plan_of(question, url, tmp_path, TRIALS + 2, **RACE)
    work(grown)
    before, after = table_of(raced[0]), table_of(grown)
    common = before.keys() & after.keys()
    assert common
    assert all(before[training] == after[training] for training in common)
    assert grown.reused()["re-evaluation"][0] == len(common)


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
    plan = plan_of(question, f"sqlite:///{tmp_path}/study.db", tmp_path, 4, **RACE)
    work(plan)
    answer = evaluate_winner(plan, CountedTest(), ["x"])
    assert len(answer.seeds) == len(answer.winner.values)
    assert "left after 1 seed" in "\n".join(winner_lines(answer))


def test_a_race_by_what_is_no_value_of_a_training_is_refused():
    goals = "objective.metric=[accuracy,parameters]"
    for rule, wrong in (
        ("min parameters where accuracy > 0.5", True),
        ("max accuracy where parameters < 1000", False),
    ):
        asked = ask(*TINY, "winner.race=true", goals, f"winner.rule='{rule}'")
        words = "winner.race: winner.rule chooses by parameters"
        assert any(words in mistake for mistake in check_sections(asked)) is wrong
