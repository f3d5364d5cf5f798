"""Configuration: where values come from, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from mindtwins.config import (
    InferConfig,
    TrainConfig,
    ValidateConfig,
    as_begun,
    as_dict,
    config_diff,
    parse_config,
)
from mindtwins.config.parsing import sections
from mindtwins.errors import UserError
from mindtwins.models.variants import resolve_name
from mindtwins.segmentation.variants import resolve_segmentor
from mindtwins.training.schedule import peak_learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"


def parse(*argv: str) -> TrainConfig:
    return parse_config(TrainConfig, argv, "")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("lr: 1e-3\nepoch_size: 20\nscale: [0.5, 1]\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("base: base.yaml\nepoch_size: 30\nema: true\n")
    return path


def test_later_sources_win(recipe: Path):
    config = parse("-c", str(recipe), "--batch_size", "7", "--ema", "false", "--scale=0.2,0.9")
    assert config.lr == 1e-3  # base; YAML reads 1e-3 as text
    assert config.epoch_size == 30  # file over base
    assert config.ema is False and config.scale == (0.2, 0.9) and config.batch_size == 7  # flags
    assert config.weight_decay == 0.05  # default
    assert config.output_dir == "outputs/recipe"


def test_bare_flags():
    config = parse("--resume", "--ema", "--dry_run")
    assert (config.resume, config.ema, config.dry_run) == ("auto", True, True)
    assert parse("--resume", "a.ckpt").resume == "a.ckpt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr: 1", "{path}: unknown key 'lrr' (did you mean 'lr'?)"),
        ("lr: fast", "{path}: lr must be a number, not 'fast'"),
        ("lr: .nan", "{path}: lr must be a number, not nan"),
        ("lr: 0", "{path}: lr must be above 0, not 0.0"),
        ("batch_size: 1.5", "{path}: batch_size must be an integer, not 1.5"),
        ("batch_size: true", "{path}: batch_size must be an integer, not True"),
        ("batch_size: 0", "{path}: batch_size must be at least 1, not 0"),
        ("ema: 1", "{path}: ema must be true or false, not 1"),
        ("model: 5", "{path}: model must be text, not 5"),
        ("scale: 0.5", "{path}: scale must be 2 numbers, not 0.5"),
        ("mixup_mode: all", "{path}: mixup_mode must be one of batch, pair, elem, not 'all'"),
        ("- lr", "{path}: must be lines of `key: value`, not a list"),
        ("output_json: a.json", "{path}: unknown key 'output_json'"),
        ("base: 5", "{path}: base must be a file or a list of files, not 5"),
        ("base: [5]", "{path}: base must be a file or a list of files, not [5]"),
    ],
)
def test_mistakes_in_a_file_name_file_and_key(tmp_path: Path, text: str, message: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        parse("-c", str(path))
    assert str(caught.value).startswith(message.format(path=path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bach_size", "3"], "unknown flag '--bach_size' (did you mean '--batch_size'?)"),
        (["--lr", "x"], "--lr must be a number, not 'x'"),
        (["--lr"], "argument --lr: expected one argument"),
        (["imagenet"], "'imagenet' belongs to no flag"),
        (["--seed", "5000000000"], "--seed must be at most 4.29497e+09, not 5000000000"),
        (["--lr", "1e-3", "--output_json", "x"], "unknown flag '--output_json'"),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], message: str):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert str(caught.value).startswith(f"command line: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scale", "1,0.5"], "scale must be a range"),
        (["--scale", "1"], "scale must be 2 numbers, not '1'"),
        (["--betas", "0.9,1"], "betas must lie between 0 and 1"),
        (["--betas", "0.9,0.99999999"], "betas must lie between 0 and 1 in float32"),
        (["--mean", "0.5"], "mean must be 3 numbers, not '0.5'"),
        (["--std", "0.5,0.5,0"], "std must be above 0"),
        (["--resize_ratio", "0,1"], "resize_ratio must be above 0, not 0,1"),
        (["--test_ratios", ""], "test_ratios must be above 0"),
        (
            ["--epoch_size", "5", "--warmup_epochs", "5"],
            "warmup_epochs (5) must be fewer than epoch_size (5)",
        ),
        (["--drop_head"], "drop_head needs ckpt_path"),
        (["--resume", "--overwrite"], "resume and overwrite contradict each other"),
        (["--dataset", "list"], "dataset: list needs val_list"),
        (["--pretrained_backbone", "a.ckpt"], "pretrained_backbone is for segmentation and"),
        (
            ["--test_mode", "slide", "--test_stride", "600"],
            "test_stride (600) must not be above test_crop (512)",
        ),
    ],
)
def test_values_that_do_not_go_together(argv: list[str], message: str):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert message in str(caught.value)


def test_an_empty_output_dir_is_the_one_of_the_recipe():
    assert parse("-c", str(CONFIGS / "svt_s_gpu.yaml"), "--output_dir", "").output_dir == (
        "outputs/svt_s_gpu"
    )
    assert parse("--output_dir", "").output_dir == "outputs/run"


def test_a_number_beyond_all_numbers(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(f"lr: 1{'0' * 400}\n")
    with pytest.raises(UserError, match=r"a\.yaml: lr must be a number"):
        parse("-c", str(tmp_path / "a.yaml"))


def test_windows_may_touch_and_whole_pictures_need_none():
    assert parse("--test_mode", "slide", "--test_stride", "512").test_stride == 512
    assert parse("--test_stride", "600").test_mode == "whole"


@pytest.mark.parametrize("cls", [ValidateConfig, InferConfig])
def test_only_a_training_has_a_starting_point(tmp_path: Path, cls: type):
    """Else a recipe's own best.ckpt could not be evaluated with the recipe."""
    path = tmp_path / "recipe.yaml"
    words = ["-c", str(path), "--ckpt_path", "best.ckpt"]
    path.write_text("drop_head: true")
    assert parse(*words).drop_head
    assert not parse_config(cls, words, "").drop_head
    path.write_text("task: segmentation\npretrained_backbone: svt.ckpt")
    with pytest.raises(UserError, match="pretrained_backbone is for segmentation and detection"):
        parse(*words)
    assert parse_config(cls, words, "").pretrained_backbone == ""


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(UserError, match="no such configuration file"):
        parse("-c", str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("lr: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        parse("-c", str(tmp_path / "broken.yaml"))
    (tmp_path / "orphan.yaml").write_text("base: gone.yaml")
    with pytest.raises(UserError, match=r"gone\.yaml: no such configuration file"):
        parse("-c", str(tmp_path / "orphan.yaml"))


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_of_several_bases_the_later_wins_and_the_file_over_all(tmp_path: Path):
    write(
        tmp_path,
        model="batch_size: 2\nseed: 2\nlr: 2",
        device="seed: 3\nlr: 3",
        recipe="base: [model.yaml, device.yaml]\nlr: 4",
    )
    config = parse("-c", str(tmp_path / "recipe.yaml"))
    assert (config.batch_size, config.seed, config.lr) == (2, 3, 4)


def test_a_base_of_several_bases_takes_nothing_back(tmp_path: Path):
    write(
        tmp_path,
        shared="seed: 1\nbatch_size: 1\nlr: 1",
        model="base: shared.yaml\nseed: 2",
        device="base: [./shared.yaml]\nlr: 3",  # the same file under another name
        recipe="base: [model.yaml, device.yaml]",
    )
    config = parse("-c", str(tmp_path / "recipe.yaml"))
    assert (config.batch_size, config.seed, config.lr) == (1, 2, 3)


@pytest.mark.parametrize(
    "texts",
    [
        {"a": "base: a.yaml"},
        {"a": "base: b.yaml", "b": "base: a.yaml"},
        {"a": "base: [c.yaml, b.yaml]", "b": "base: ./a.yaml", "c": ""},
    ],
)
def test_a_chain_of_bases_that_never_ends(tmp_path: Path, texts: dict[str, str]):
    write(tmp_path, **texts)
    with pytest.raises(UserError, match=r"a\.yaml: is based on itself"):
        parse("-c", str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("cls", [TrainConfig, ValidateConfig])
def test_help_documents_every_option(cls: type, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse_config(cls, ["--help"], "Does something.")
    text = capsys.readouterr().out
    assert "Does something." in text and "[0.0005]" in text
    names = [item.name for section in sections(cls) for item in fields(section)]
    options = [item for item in fields(cls) if item.name != "stated"]
    assert len(names) == len(set(names)) == len(options)
    for item in options:
        assert f"--{item.name}" in text and item.metadata["doc"]


def test_config_diff_separates_what_changes_the_result():
    old = as_dict(parse())
    new = as_dict(parse("--lr", "1", "--num_parallel_workers", "1", "--resume"))
    assert config_diff(old, new) == ({"lr": (5e-4, 1.0)}, {"num_parallel_workers": (8, 1)})
    assert config_diff(old, old) == ({}, {})
    assert config_diff({**old, "gone": 1}, old)[0] == {"gone": (1, None)}


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (2, 1), (3, 1), (5, 2), (6, 5)])
def test_a_warmup_by_default_fits_a_short_training(
    epochs: int, warmup: int, caplog: pytest.LogCaptureFixture
):
    assert parse("--epoch_size", str(epochs)).warmup_epochs == warmup
    assert ("warmup_epochs is" in caplog.text) == (warmup < 5)


def test_a_stated_warmup_has_to_fit(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("warmup_epochs: 5\n")
    for words in (["--warmup_epochs", "5"], ["-c", str(tmp_path / "a.yaml")]):
        with pytest.raises(UserError, match=r"must be fewer .* set --warmup_epochs 1") as caught:
            parse(*words, "--epoch_size", "3")
        advice = str(caught.value).split(": set ")[1].split(",")[0]
        assert parse(*words, "--epoch_size", "3", *advice.split()).warmup_epochs == 1


def test_on_cpu_a_recipe_for_devices_is_float32(caplog: pytest.LogCaptureFixture):
    recipe = ["-c", str(CONFIGS / "svt_s_gpu.yaml")]
    assert parse(*recipe).amp_level == "O1"
    assert caplog.text == ""
    assert parse(*recipe, "--device_target", "CPU").amp_level == "O0"
    assert "--amp_level O1 asks for that" in caplog.text
    assert parse(*recipe, "--device_target", "CPU", "--amp_level", "O1").amp_level == "O1"
    ascend = ["-c", str(CONFIGS / "svt_s_ascend.yaml"), "--device_target", "CPU"]
    assert parse_config(ValidateConfig, ascend, "").amp_level == "O0"


def test_a_continued_run_keeps_how_it_mixed():
    """Runs that began before there was the choice drew once for all ranks."""
    config = parse("--lr", "1")
    before = {name: value for name, value in as_dict(config).items() if name != "mixup_draws"}
    assert as_begun(config, before).mixup_draws == "global"
    assert as_begun(config, {**before, "mixup_draws": "rank"}).mixup_draws == "rank"
    assert config_diff(before, as_dict(as_begun(config, before))) == ({}, {})
    asked = as_begun(parse("--mixup_draws", "rank"), before)
    assert config_diff(before, as_dict(asked))[0]["mixup_draws"] == ("global", "rank")


# The table of the authors' runs: global batch, peak rate, warmup, drop path.
RECIPES = {
    "pcpvt_s": ("pcpvt_small", 1280, 1.25e-3, 5, 0.1),
    "pcpvt_b": ("pcpvt_base", 1024, 1e-3, 5, 0.3),
    "pcpvt_l": ("pcpvt_large", 1024, 1e-3, 5, 0.3),
    "svt_s": ("svt_small", 2048, 2e-3, 5, 0.2),
    "svt_b": ("svt_base", 1024, 1e-3, 5, 0.3),
    "svt_l": ("svt_large", 1024, 1e-3, 20, 0.5),
}


@pytest.mark.parametrize("device", ["gpu", "ascend"])
@pytest.mark.parametrize("name", RECIPES)
def test_imagenet_recipes_state_the_authors_values(name: str, device: str):
    model, global_batch, peak, warmup, drop_path = RECIPES[name]
    config = parse("-c", str(CONFIGS / f"{name}_{device}.yaml"), "--data_dir", "imagenet")
    assert resolve_name(config.model) == model
    assert config.device_target.lower() == device
    assert config.batch_size * 8 == global_batch
    assert peak_learning_rate(config, global_batch) == pytest.approx(peak)
    assert (config.warmup_epochs, config.drop_path_rate) == (warmup, drop_path)
    expected = {
        "epoch_size": 300,
        "num_classes": 1000,
        "image_size": 224,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.05,
        "clip_grad": 5.0,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "scale": (0.08, 1.0),
        "interpolation": "bicubic",
        "hflip": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "color_jitter": 0.4,
        "re_prob": 0.25,
        "re_mode": "pixel",
        "re_count": 1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "mixup_mode": "batch",
        "label_smoothing": 0.1,
        "ema": False,
    }
    assert {key: getattr(config, key) for key in expected} == expected


# MMSegmentation's configs, where they say so; the others leave it at 0.2.
DROPS_MORE = ("fpn_svt_l", "upernet_svt_l", "upernet_pcpvt_b", "upernet_pcpvt_l")
# Head, and batch per device of 8, in MMSegmentation's published runs.
SEGMENTATION = {
    f"{head}_{name}": (head, 4 if f"{head}_{name}" in ("fpn_" + name, "upernet_pcpvt_s") else 2)
    for head in ("fpn", "upernet")
    for name in RECIPES
}


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_recipes_state_the_published_values(name: str):
    head, batch = SEGMENTATION[name]
    config = parse("-c", str(CONFIGS / f"{name}_ade20k.yaml"), "--data_dir", "ade20k")
    assert resolve_segmentor(config.model) == f"{head}_{RECIPES[name.partition('_')[2]][0]}"
    is_fpn = head == "fpn"
    expected = {
        "task": "segmentation",
        "dataset": "ade20k",
        "num_classes": 150,
        "image_size": 512,
        "resize_scale": (2048, 512),
        "resize_ratio": (0.5, 2.0),
        "category_max_ratio": 0.75,
        "hflip": 0.5,
        "photometric_distortion": True,
        "scheduler": "poly",
        "epoch_steps": 8000 if is_fpn else 16000,
        "epoch_size": 10,
        "batch_size": batch,
        "lr": 1e-4 if is_fpn else 6e-5,
        "min_lr": 1e-6 if is_fpn else 0,
        "poly_power": 0.9 if is_fpn else 1.0,
        "warmup_epochs": 0,
        "warmup_steps": 0 if is_fpn else 1500,
        "weight_decay": 1e-4 if is_fpn else 0.01,
        "no_decay": () if is_fpn else ("norm", "pos_block"),
        "clip_grad": 0,
        "drop_path_rate": 0.3 if name in DROPS_MORE else 0.2,
        "auxiliary_weight": 0.4,
        "test_mode": "whole",
        "test_ratios": (1.0,),
        "test_flip": False,
    }
    assert {key: getattr(config, key) for key in expected} == expected


# The authors trained all but PCPVT-L for 36 epochs too.
DETECTION = [f"{name}_{length}" for name in RECIPES for length in ("1x", "3x")]
DETECTION.remove("pcpvt_l_3x")


@pytest.mark.parametrize("name", DETECTION)
@pytest.mark.parametrize("head", ["retinanet", "maskrcnn"])
def test_detection_recipes_state_the_authors_values(head: str, name: str):
    config = parse("-c", str(CONFIGS / f"{head}_{name}.yaml"), "--data_dir", "coco")
    is_long, has_masks = name.endswith("_3x"), head == "maskrcnn"
    doubled = 2 if has_masks and not is_long else 1
    expected = {
        "task": "detection",
        "model": f"{head}_{RECIPES[name[:-3]][0]}",
        "dataset": "coco",
        "num_classes": 80,
        "resize_scale": (1333, 800),
        "exif_orientation": True,
        "multi_scale": is_long,
        "hflip": 0.5,
        "scheduler": "step",
        "lr": doubled * 1e-4,
        "lr_reference_batch": 0,
        "min_lr": 0,
        "warmup_epochs": 0,
        "warmup_steps": 500,
        "warmup_lr": doubled * 1e-7,
        "epoch_size": 36 if is_long else 12,
        "lr_epochs": (27, 33) if is_long else (8, 11),
        "batch_size": 2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.05 if is_long else 1e-4,
        "no_decay": ("norm", "pos_block") if is_long else (),
        "layer_decay": 1,
        "clip_grad": 0,
        "drop_path_rate": 0.2,
        "amp_level": "O2" if has_masks and is_long else "O0",
        "loss_scale": 512 if has_masks and is_long else 65536,
        "region_samples": 512,
    }
    assert {key: getattr(config, key) for key in expected} == expected


def test_a_tilde_is_the_user_s_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("data_dir: ~/pets\n")
    config = parse("-c", str(tmp_path / "recipe.yaml"), "--ckpt_path", "~/best.ckpt")
    assert config.data_dir == f"{tmp_path}/pets"
    assert config.ckpt_path == f"{tmp_path}/best.ckpt"


def test_what_is_stated_is_known(recipe: Path):
    config = parse("-c", str(recipe), "--batch_size", "128")  # the default, but stated
    assert config.stated["batch_size"] == "command line"
    assert config.stated["lr"] == str(recipe)  # by its base
    assert "weight_decay" not in config.stated


def test_help_tells_an_empty_default_from_the_choice_none(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse("--help")
    words = " ".join(capsys.readouterr().out.split())
    assert "--window_padding TEXT" in words and "(none, zeros, mask) [empty]" in words
