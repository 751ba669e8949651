"""Tracebacks of the user's code."""

import json

import pytest

from studyloom.user_code.tracebacks import format_users_traceback


def parse(text):
    return json.loads(text)


def fail():
    try:
        parse("{")
    except ValueError as error:
        raise RuntimeError("no configuration") from error


def test_a_traceback_has_only_frames_of_the_user_also_in_its_causes():
    with pytest.raises(RuntimeError) as caught:
        fail()
    text = format_users_traceback(caught.value)
    assert "in fail" in text
    assert "in parse" in text
    assert "The above exception was the direct cause" in text
    assert text.endswith("RuntimeError: no configuration")
    assert "json/decoder.py" not in text


def test_a_function_that_a_script_has_passed_to_its_workers_is_the_users():
    source = "def train(read):\n    return read('{')\n"
    namespace = {}
    exec(compile(source, "<dynamic-code>", "exec"), namespace)  # as a worker makes it
    with pytest.raises(json.JSONDecodeError) as caught:
        namespace["train"](json.loads)
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # without this test's frame
    text = format_users_traceback(caught.value)
    assert 'File "<dynamic-code>", line 2, in train' in text
    assert "json/" not in text


def test_an_error_without_a_frame_of_the_user_keeps_its_frames():
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # without this test's frame
    assert "json/" in format_users_traceback(caught.value)
