"""editkit cp: a user's own recipe that starts from one of editkit's."""

from __future__ import annotations

import pytest

from editkit.app.copy import copy_recipe
from editkit.errors import UsageError, UserError
from editkit.recipe import choices, compose

RECIPE = next(iter(choices("recipe")))


@pytest.mark.parametrize("full", [False, True])
def test_a_copy_runs_and_says_the_same(tmp_path, full):
    file = tmp_path / "new" / "mine.yaml"
    said = copy_recipe(RECIPE, file, full=full)
    assert f"recipe={file}" in said
    copied, original = (compose([f"recipe={name}", "run_dir=here"]) for name in (file, RECIPE))
    for key in ("method", "data", "trainer", "card"):
        assert copied[key] == original[key]


def test_a_copy_may_differ(tmp_path):
    file = tmp_path / "mine.yaml"
    copy_recipe(RECIPE, file)
    file.write_text(file.read_text() + "trainer: {steps: 5}\n")
    assert compose([f"recipe={file}"]).trainer.steps == 5


def test_a_folder_takes_the_name(tmp_path):
    copy_recipe(RECIPE, tmp_path)
    assert (tmp_path / f"{RECIPE.rpartition('/')[2]}.yaml").is_file()


def test_nothing_is_replaced_by_accident(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        copy_recipe(RECIPE, file)
    assert file.read_text() == "mine"
    copy_recipe(RECIPE, file, force=True)
    assert file.read_text() != "mine"


def test_what_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="ends in .yaml"):
        copy_recipe(RECIPE, tmp_path / "mine.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        copy_recipe(RECIPE, tmp_path / "file" / "mine.yaml")
