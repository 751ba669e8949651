"""A network without a form in ONNX: of the original an error, of a variant a note in the table."""

from types import SimpleNamespace

import pytest

from studyloom.errors import CompressError
from studyloom.extras.export.variants import Made, Recipe, make_variants
from studyloom.study.stopping import Stop


class Judge:
    """Makes what has a form, and gives it a row without latencies."""

    settings = SimpleNamespace(threads=1)

    def __init__(self, formless):
        self.formless = formless

    def make(self, recipe):
        if recipe.name in self.formless:
            raise CompressError("Net cannot be exported to ONNX: no form\nfor aten.linalg_eig")
        yield Made(recipe, "fp32", b"", {"name": recipe.name})

    def measure(self, made):
        pass

    def known(self, row):
        return {}


RECIPES = [Recipe(name, lambda original: original) for name in ("as it is", "pruned", "student")]


def test_a_variant_that_onnx_has_no_form_for_is_left_out_with_its_reason():
    first, third, note = make_variants(Judge({"pruned"}), RECIPES, lambda words: None, Stop())
    assert (first.recipe.name, third.recipe.name) == ("as it is", "student")
    said = "Net cannot be exported to ONNX: no form for aten.linalg_eig"
    assert note == {"name": "pruned", "note": said}


def test_an_original_that_onnx_has_no_form_for_ends_the_command():
    with pytest.raises(CompressError, match="no form"):
        [
            *make_variants(
                Judge({recipe.name for recipe in RECIPES}), RECIPES, lambda words: None, Stop()
            )
        ]
