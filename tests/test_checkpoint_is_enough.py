"""A checkpoint is used rightly by its file alone: model, preprocessing and classes come with it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

import mindtwins
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.commands import infer, validate
from mindtwins.config import InferConfig, TrainConfig, parse_config
from mindtwins.errors import UserError
from mindtwins.segmentation.digits import CLASSES as DIGITS
from mindtwins.segmentation.variants import create_segmentor
from mindtwins.tasks import create_task
from mindtwins.training.distributed import World

NAMES = ("beaver", "crow", "daisy")
SIZE, MEAN, STD = 48, (0.4, 0.5, 0.6), (0.5, 0.4, 0.3)


def train_config(folder: Path, **options: object) -> TrainConfig:
    recipe = {
        "model": "svt_tiny",
        "data_dir": str(folder / "data"),
        "image_size": SIZE,
        "crop_pct": 0.8,
        "mean": MEAN,
        "std": STD,
        "batch_size": 2,
    }
    return TrainConfig(**recipe | options)


def save(task, path: Path, **changes: object) -> Path:
    """The file that a training of this task writes, with weights that tell classes apart."""
    model, metadata = task.build_model(World())
    rng = np.random.default_rng(1)
    tensors = {
        p.name: (p.asnumpy() + 0.2 * rng.normal(size=p.shape)).astype(np.float32)
        for p in model.get_parameters()
    }
    save_checkpoint(path, tensors, {**metadata, **changes})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/{train,val}/{beaver,crow,daisy}/*.png` and `best.ckpt`, trained for it."""
    folder = tmp_path_factory.mktemp("enough")
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 2)):
        for name in NAMES:
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (60, 70, 3), np.uint8)
                path = folder / "data" / split / name / f"{number}.png"
                Image.fromarray(pixels).save(path)
    task = create_task(train_config(folder))
    task.find_data("train")
    save(task, folder / "best.ckpt")
    return folder


def by_hand(path: Path, files: list[Path]) -> np.ndarray:
    """Logits of the trained model: its preprocessing written out here."""
    model = mindtwins.create_model("svt_tiny", num_classes=3, ckpt_path=path)
    transform = EvaluationTransform(SIZE, 0.8, MEAN, STD)
    pixels = np.stack([transform(Image.open(file).convert("RGB")) for file in files])
    return model(Tensor(pixels)).asnumpy()


def run_validate(*argv: object) -> dict:
    out = Path(argv[0]).parent / "result.json"
    words = ["--ckpt_path", *argv, "--output_json", out, "--num_parallel_workers", 1]
    validate.main(list(map(str, words)))
    return json.loads(out.read_text())


def test_training_records_classes_and_preprocessing(folder: Path):
    metadata = load_checkpoint(folder / "best.ckpt").metadata
    assert metadata["classes"] == list(NAMES)
    assert metadata["num_classes"] == 3  # the folder's, not the default 1000
    assert metadata["preprocessing"] == {
        "image_size": SIZE,
        "crop_pct": 0.8,
        "interpolation": "bicubic",
        "mean": list(MEAN),
        "std": list(STD),
        "exif_orientation": False,
    }


@pytest.mark.slow
def test_infer_needs_nothing_else(folder: Path, tmp_path: Path, capsys):
    files = [folder / "data/val" / name / "0.png" for name in NAMES]
    for file in files:
        (tmp_path / f"{file.parent.name}.png").write_bytes(file.read_bytes())
    infer.main(
        [
            *("--ckpt_path", str(folder / "best.ckpt"), "--images", str(tmp_path)),
            *("--output_json", str(tmp_path / "out.json")),
        ]
    )
    logits = by_hand(folder / "best.ckpt", files)
    for found, expected in zip(
        json.loads((tmp_path / "out.json").read_text()), logits, strict=True
    ):
        probabilities = np.exp(expected) / np.exp(expected).sum()
        order = np.argsort(-probabilities)
        assert found["names"] == [NAMES[i] for i in order]
        np.testing.assert_allclose(found["probabilities"], probabilities[order], atol=1e-5)
    assert "beaver" in capsys.readouterr().out


@pytest.mark.slow
def test_validate_needs_the_data_only(folder: Path):
    files = [folder / "data/val" / name / f"{n}.png" for name in NAMES for n in range(2)]
    right = by_hand(folder / "best.ckpt", files).argmax(1) == np.repeat(np.arange(3), 2)
    result = run_validate(folder / "best.ckpt", "--data_dir", folder / "data")
    assert result["top1"] == pytest.approx(100 * right.mean())
    assert result["model"] == "svt_tiny" and result["images"] == 6


def test_what_a_flag_says_otherwise_wins_and_is_told(folder: Path, caplog):
    config = InferConfig(ckpt_path=str(folder / "best.ckpt"))
    assert create_task(config).config.image_size == SIZE
    assert not caplog.records
    argv = ["--ckpt_path", str(folder / "best.ckpt"), "--image_size", "224", "--std", "0.5,0.4,0.3"]
    task = create_task(parse_config(InferConfig, argv, ""))  # 224 is the default, but stated here
    assert task.config.image_size == 224 and task.config.mean == MEAN
    assert [record.getMessage() for record in caplog.records] == [
        "notice: image_size 224 instead of the checkpoint's 48"
    ]


class TestClassesByName:
    """Images of a class are counted for it whatever other folders there are."""

    def accuracies(self, folder: Path, data: Path) -> float:
        return run_validate(folder / "best.ckpt", "--data_dir", data)["top1"]

    def copy(self, folder: Path, target: Path, names: tuple[str, ...]) -> Path:
        for name in names:
            (target / "val" / name).mkdir(parents=True)
            for file in (folder / "data/val" / name).iterdir():
                (target / "val" / name / file.name).write_bytes(file.read_bytes())
        return target

    @pytest.mark.slow
    def test_a_set_without_the_first_class(self, folder: Path, tmp_path: Path, caplog):
        data = self.copy(folder, tmp_path, NAMES[1:])
        files = [data / "val" / name / f"{n}.png" for name in NAMES[1:] for n in range(2)]
        right = by_hand(folder / "best.ckpt", files).argmax(1) == np.repeat([1, 2], 2)
        assert self.accuracies(folder, data) == pytest.approx(100 * right.mean())
        assert "has 2 of the 3 classes" in caplog.text

    def test_a_class_that_the_model_does_not_know(self, folder: Path, tmp_path: Path):
        data = self.copy(folder, tmp_path, NAMES)
        (data / "val/crow").rename(data / "val/raven")
        with pytest.raises(UserError, match=r"classes that .*best\.ckpt does not know \(raven\)"):
            self.accuracies(folder, data)

    @pytest.mark.slow
    def test_a_list_of_numbers_means_the_classes_of_those_names(self, tmp_path: Path):
        """Folders 0 to 11 stand in the order 0, 1, 10, 11, 2, ...; label 10 is the class "10"."""
        names = sorted(map(str, range(12)))
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            for name in names:
                (tmp_path / "data" / split / name).mkdir(parents=True)
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / "a.png")
        trained = create_task(train_config(tmp_path))
        trained.find_data("train")
        save(trained, tmp_path / "best.ckpt")
        listing = tmp_path / "val.txt"
        listing.write_text("".join(f"val/{k}/a.png {k}\n" for k in range(12)))
        by_folder = run_validate(tmp_path / "best.ckpt", "--data_dir", tmp_path / "data")
        flags = ("--dataset", "list", "--val_list", listing, "--data_dir", tmp_path / "data")
        by_list = run_validate(tmp_path / "best.ckpt", *flags)
        assert by_folder["loss"] == pytest.approx(by_list["loss"], rel=1e-6)

    @pytest.mark.slow
    def test_without_names_the_order_is_told_and_a_part_refused(
        self, folder: Path, tmp_path: Path, caplog
    ):
        checkpoint = load_checkpoint(folder / "best.ckpt")
        metadata = {**checkpoint.metadata, "classes": None}
        save_checkpoint(tmp_path / "old.ckpt", checkpoint.tensors, metadata)
        run_validate(tmp_path / "old.ckpt", "--data_dir", folder / "data")
        assert "numbered in the order of their names, beaver = 0 to daisy = 2" in caplog.text
        data = self.copy(folder, tmp_path, NAMES[:2])
        with pytest.raises(UserError, match="cannot be known which is which: name all of them"):
            run_validate(tmp_path / "old.ckpt", "--data_dir", data)
        (tmp_path / "names.txt").write_text("\n".join(NAMES))
        flags = ("--data_dir", data, "--class_names", tmp_path / "names.txt")
        assert run_validate(tmp_path / "old.ckpt", *flags)["images"] == 4


def test_a_file_that_does_not_say_how_it_is_used_is_told(folder: Path, tmp_path: Path, caplog):
    checkpoint = load_checkpoint(folder / "best.ckpt")
    metadata = {k: checkpoint.metadata[k] for k in ("variant", "num_classes", "dialect")}
    save_checkpoint(tmp_path / "old.ckpt", checkpoint.tensors, metadata)
    task = create_task(InferConfig(ckpt_path=str(tmp_path / "old.ckpt"), mean=MEAN))
    assert task.config.model == "svt_tiny" and task.config.num_classes == 3
    (record,) = caplog.records
    assert (
        "does not say how its pictures are prepared: taking image_size 224, crop_pct 0.875, std"
        in (record.getMessage())
    )


def test_a_training_step_s_file_has_its_recipe(folder: Path, tmp_path: Path, caplog):
    """step_*.ckpt of earlier versions hold no preprocessing, but the whole recipe."""
    checkpoint = load_checkpoint(folder / "best.ckpt")
    metadata = {k: v for k, v in checkpoint.metadata.items() if k not in ("preprocessing", "data")}
    metadata["recipe"] = {"image_size": SIZE, "crop_pct": 0.8, "mean": list(MEAN), "std": list(STD)}
    state = {**checkpoint.tensors, "optimizer.step": np.zeros(1, np.int32)}
    save_checkpoint(tmp_path / "step_00000001.ckpt", state, metadata)
    with caplog.at_level(logging.WARNING):
        task = create_task(InferConfig(ckpt_path=str(tmp_path / "step_00000001.ckpt")))
    assert (task.config.image_size, task.config.std) == (SIZE, STD) and not caplog.records
    task.build_model(World())


class TestLoadModel:
    @pytest.mark.slow
    def test_a_classifier(self, folder: Path):
        model = mindtwins.load_model(folder / "best.ckpt")
        file = folder / "data/val/crow/0.png"
        pixels = model.preprocessing(Image.open(file).convert("RGB"))
        logits = model(Tensor(pixels[None])).asnumpy()
        np.testing.assert_allclose(logits, by_hand(folder / "best.ckpt", [file]), atol=1e-5)
        assert model.classes == NAMES
        assert model.metadata["preprocessing"]["image_size"] == SIZE

    def test_somebody_else_s_file_is_recognized_by_its_tensors(self, folder: Path, tmp_path: Path):
        import mindspore as ms

        checkpoint = load_checkpoint(folder / "best.ckpt")
        values = [{"name": n, "data": Tensor(a.copy())} for n, a in checkpoint.tensors.items()]
        ms.save_checkpoint(values, str(tmp_path / "theirs.ckpt"))
        model = mindtwins.load_model(tmp_path / "theirs.ckpt")
        assert model.metadata["variant"] == "svt_tiny" and model.metadata["num_classes"] == 3
        assert model.classes is None

    def test_no_twins_model(self, tmp_path: Path):
        save_checkpoint(tmp_path / "x.ckpt", {"conv1.weight": np.ones(3, np.float32)}, {})
        with pytest.raises(UserError, match=r"x\.ckpt holds no model of classification or segm"):
            mindtwins.load_model(tmp_path / "x.ckpt")

    def test_a_segmentor(self, tmp_path: Path, caplog):
        segmentor = create_segmentor("fpn_svt_tiny", num_classes=11)
        config = TrainConfig(
            task="segmentation",
            model="fpn_svt_tiny",
            dataset="digits",
            num_classes=11,
            resize_scale=(160, 128),
            test_flip=True,
        )
        task = create_task(config)
        path = save(task, tmp_path / "best.ckpt")
        model = mindtwins.load_model(path)
        assert model.classes == DIGITS
        assert model.preprocessing.scales == [(160, 128)]
        again = create_task(InferConfig(ckpt_path=str(path)))
        assert again.config.task == "segmentation" and again.config.test_flip
        assert again.config.dataset == "digits" and again.class_names() == DIGITS
        assert {p.name for p in model.get_parameters()} == {
            p.name for p in segmentor.get_parameters()
        }


class TestFineTuning:
    """The head follows the classes of the data, and that is told."""

    def other_data(self, folder: Path, target: Path, names: tuple[str, ...]) -> TrainConfig:
        for split in ("train", "val"):
            for name in names:
                (target / "data" / split / name).mkdir(parents=True)
                image = folder / "data/train/crow/0.png"
                (target / "data" / split / name / "a.png").write_bytes(image.read_bytes())
        config = train_config(target, ckpt_path=str(folder / "best.ckpt"))
        # As from a command line that names the checkpoint and the data alone.
        return replace(config, model="svt_small", image_size=224, crop_pct=0.875)

    def weights(self, config: TrainConfig) -> tuple[dict[str, np.ndarray], dict]:
        task = create_task(config)
        task.find_data("train")
        model, metadata = task.build_model(World())
        return {p.name: p.asnumpy() for p in model.get_parameters()}, metadata

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (("a", "b"), "has 3 classes: a new one of 2 starts in its place"),
            (("a", "b", "c"), "is for other classes (beaver, crow, daisy): a new one for a, b, c"),
        ],
    )
    def test_other_classes(self, folder: Path, tmp_path: Path, caplog, names, told):
        found, metadata = self.weights(self.other_data(folder, tmp_path, names))
        trained = load_checkpoint(folder / "best.ckpt").tensors
        assert metadata["classes"] == list(names) and metadata["variant"] == "svt_tiny"
        assert metadata["preprocessing"]["image_size"] == SIZE
        assert found["head.weight"].shape == (len(names), 128)
        assert not np.array_equal(found["head.weight"][:2], trained["head.weight"][:2])
        name = "blocks.1.0.attn.proj.weight"
        np.testing.assert_array_equal(found[name], trained[name])
        assert told in caplog.text

    def test_the_same_classes_keep_the_head(self, folder: Path, tmp_path: Path, caplog):
        found, _ = self.weights(self.other_data(folder, tmp_path, NAMES))
        trained = load_checkpoint(folder / "best.ckpt").tensors
        np.testing.assert_array_equal(found["head.weight"], trained["head.weight"])
        assert "head" not in caplog.text

    def test_classes_that_are_not_named_keep_the_head_and_are_told(
        self, folder: Path, tmp_path: Path, caplog
    ):
        trained = load_checkpoint(folder / "best.ckpt")
        unnamed = tmp_path / "unnamed.ckpt"
        save_checkpoint(unnamed, trained.tensors, {**trained.stated, "classes": None})
        config = self.other_data(folder, tmp_path, ("a", "b", "c"))
        found, metadata = self.weights(replace(config, ckpt_path=str(unnamed)))
        np.testing.assert_array_equal(found["head.weight"], trained.tensors["head.weight"])
        assert metadata["classes"] == ["a", "b", "c"]
        assert (
            f"{unnamed} does not name its classes: its head goes on, for a, b, c in this order"
            in caplog.text
        )


def test_labels_of_a_list_are_the_numbers_of_the_checkpoint_s_classes(
    folder: Path, tmp_path: Path, caplog
):
    (tmp_path / "list.txt").write_text("data/train/crow/0.png 1\ndata/train/beaver/0.png 2\n")
    task = create_task(
        TrainConfig(
            ckpt_path=str(folder / "best.ckpt"),
            dataset="list",
            data_dir=str(folder),
            train_list=str(tmp_path / "list.txt"),
            val_list=str(tmp_path / "list.txt"),
            num_classes=3,
        )
    )
    task.find_data("train")
    model, metadata = task.build_model(World())
    head = next(p.asnumpy() for p in model.get_parameters() if p.name == "head.weight")
    trained = load_checkpoint(folder / "best.ckpt").tensors
    np.testing.assert_array_equal(head, trained["head.weight"])
    assert metadata["classes"] == list(NAMES)
    assert "are taken for the numbers of beaver, crow, daisy" in caplog.text


def test_more_classes_than_folders_can_be_trained(folder: Path, tmp_path: Path, caplog):
    """The others have no images; validation knows the folders by name all the same."""
    task = create_task(train_config(folder, num_classes=5))
    train, val = task.find_data("train"), task.find_data("val")
    task.check_same_classes(train, val)
    assert task.classes == (*NAMES, "unnamed 3", "unnamed 4")
    np.testing.assert_array_equal(np.unique(val.labels), [0, 1, 2])
    assert "has 3 classes, num_classes is 5" in caplog.text
