"""Words as numbers: the more frequent, the smaller."""

import torch

from studies.words import NOTHING, UNKNOWN, Vocabulary, cut, words_of


def test_words_are_lower_case_with_apostrophes_and_exclamation_marks():
    assert words_of("It's SO pretty!  5'8\", a-line?") == [
        *("it's", "so", "pretty", "!", "5", "8", "a", "line", "?")
    ]
    assert words_of("  \n…  ") == []


def test_frequent_words_have_small_numbers_and_rare_words_have_none():
    words = Vocabulary([["b", "a", "b"], ["a", "b", "c"]])
    assert words.number(["b", "a", "c", "d"]) == [2, 3, UNKNOWN, UNKNOWN]
    assert len(words) == 4
    assert Vocabulary([["y", "x", "x", "y"]]).number(["x", "y"]) == [2, 3], "ties by the alphabet"


def test_a_smaller_vocabulary_keeps_the_most_frequent_words():
    numbers = torch.tensor([[2, 5, 4, UNKNOWN, NOTHING]])
    assert cut(numbers, 5).tolist() == [[2, UNKNOWN, 4, UNKNOWN, NOTHING]]
