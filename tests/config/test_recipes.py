"""Which file a recipe's name means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mindtwins.config import TrainConfig, parse_config
from mindtwins.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def parse(name: str) -> TrainConfig:
    return parse_config(TrainConfig, ["-c", name], "")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_a_recipe_of_the_package(elsewhere: Path, told: Callable[[], list]):
    config = parse("svt_tiny_digits")
    assert config == parse(str(CONFIGS / "svt_tiny_digits.yaml"))
    assert config.stated["model"] == str(CONFIGS / "svt_tiny_digits.yaml")
    assert config.output_dir == "outputs/svt_tiny_digits"
    assert config.data_dir == "data/digits"  # of the folder in which the command runs
    assert told() == []


def test_bases_of_a_recipe_of_the_package_are_beside_it(elsewhere: Path):
    assert parse("svt_s_gpu").device_target == "GPU"


@pytest.mark.parametrize("name", ["configs/svt_tiny_digits.yaml", "svt_tiny_digits.yaml"])
def test_what_might_be_meant_as_a_file_is_told(
    elsewhere: Path, told: Callable[[], list], name: str
):
    assert parse(name).model == "svt_tiny"
    assert told() == [
        f"notice: {name} does not exist: the recipe svt_tiny_digits that comes with MindTwins is"
        " taken"
    ]


@pytest.mark.parametrize("name", ["configs/svt_tiny_digits.yaml", "svt_tiny_digits"])
def test_a_file_that_exists_wins(elsewhere: Path, told: Callable[[], list], name: str):
    path = elsewhere / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("num_classes: 7\n")
    assert parse(name).num_classes == 7
    assert told() == []


def test_ones_own_recipe_may_be_based_on_one_of_the_package(elsewhere: Path):
    (elsewhere / "mine.yaml").write_text("base: svt_tiny_digits\nepoch_size: 9\n")
    config = parse("mine.yaml")
    assert (config.model, config.epoch_size, config.data_dir) == ("svt_tiny", 9, "data/digits")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "svt_tny_digits",
            "svt_tny_digits: no such configuration file, and no recipe 'svt_tny_digits' (did you"
            " mean 'svt_tiny_digits'?)",
        ),
        (
            "configs/svt_s_gpuu.yaml",
            "configs/svt_s_gpuu.yaml: no such configuration file, and no recipe 'svt_s_gpuu' (did"
            " you mean 'svt_s_gpu'?)",
        ),
        ("mine/svt_s_gpu.yaml", "mine/svt_s_gpu.yaml: no such configuration file"),
        (f"/gone{CONFIGS}/svt_s.yaml", f"/gone{CONFIGS}/svt_s.yaml: no such configuration file"),
    ],
)
def test_neither_a_file_nor_a_recipe(elsewhere: Path, name: str, message: str):
    with pytest.raises(UserError) as caught:
        parse(name)
    assert str(caught.value) == message
