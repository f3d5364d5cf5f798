"""Weights by name, in Python and in the scripts, against PyTorch with the same ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from jobs import ROOT, Job, needs_mpirun
from loopback_hub import Hub
from mindspore import Tensor
from PIL import Image
from safetensors.torch import load, save

import mindtwins
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.commands import export, infer, serve, train, validate
from mindtwins.config import InferConfig, ServeConfig, TrainConfig, ValidateConfig, parse_config
from mindtwins.errors import UserError
from mindtwins.hub import fetching, pretrained
from mindtwins.hub.pretrained import cache_folder, load_pretrained
from mindtwins.reference import create_reference
from mindtwins.tasks import KINDS, create_task

PUBLISHED = "timm/twins_svt_tiny.in1k"
OTHER = "me/tiny"
SIZE = 56

# timm's config.json of a model that somebody trained, as far as it matters here.
CONFIG = {
    "architecture": "twins_svt_small",
    "num_classes": 10,
    "label_names": [f"digit {number}" for number in range(10)],
    "pretrained_cfg": {
        "input_size": [3, SIZE, SIZE],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(tiny_file: bytes, images: np.ndarray) -> np.ndarray:
    """PyTorch's logits."""
    reference = create_reference("svt_tiny", num_classes=10).eval()
    reference.load_state_dict(load(tiny_file))
    with torch.no_grad():
        return reference(torch.from_numpy(images)).numpy()


def conversions() -> list[Path]:
    return sorted(cache_folder().iterdir()) if cache_folder().is_dir() else []


class TestModel:
    @pytest.fixture(autouse=True)
    def interpreted(self) -> None:
        """Without a graph to build for each."""
        ms.set_context(mode=ms.PYNATIVE_MODE)

    def test_published_weights(self, hub: Hub, images, expected, told: Callable):
        model = mindtwins.create_model("svt_tiny", pretrained=True)
        np.testing.assert_allclose(model(Tensor(images)).asnumpy(), expected, atol=5e-6)
        assert model.metadata["source"]["repository"] == PUBLISHED
        assert model.metadata["preprocessing"]["crop_pct"] == 0.875
        unknown, crop = told()
        assert "is not known here" in unknown and "crop_pct 0.875" in crop and "0.9" in crop

    def test_others(self, hub: Hub, tiny_file: bytes, tmp_path: Path, expected, images):
        (tmp_path / "file.pth").write_bytes(tiny_file)
        for name in (OTHER, f"hf-hub:{OTHER}", tmp_path / "file.pth"):
            model = mindtwins.create_model("svt_tiny", pretrained=name)
            assert model.metadata["num_classes"] == 10
        np.testing.assert_allclose(model(Tensor(images)).asnumpy(), expected, atol=5e-6)

    def test_a_file_asks_nobody(self, hub: Hub, tiny_file: bytes, tmp_path: Path):
        (tmp_path / "file.safetensors").write_bytes(tiny_file)
        mindtwins.create_model("svt_tiny", pretrained=tmp_path / "file.safetensors")
        mindtwins.load_model(tmp_path / "file.safetensors")
        assert not hub.requests

    def test_another_number_of_classes(self, hub: Hub, told: Callable):
        model = mindtwins.create_model("svt_tiny", 4, pretrained=OTHER)
        assert model.head.weight.shape == (4, 128)
        assert told()[-1] == f"notice: the head of {OTHER} has 10 classes: a new one of 4 starts"
        with pytest.raises(UserError, match="has 10 classes, not 4"):
            mindtwins.create_model("svt_tiny", 4, pretrained=OTHER, new_head=False)

    def test_features(self, hub: Hub, images):
        backbone = mindtwins.create_model("svt_tiny", pretrained=OTHER, features_only=True)
        assert [tuple(x.shape) for x in backbone(Tensor(images))][-1] == (2, 128, 1, 1)

    @pytest.mark.parametrize(
        ("arguments", "options", "said"),
        [
            (("svt_tiny",), {"pretrained": OTHER, "ckpt_path": "x.ckpt"}, "both say which weights"),
            (("svt_small",), {"pretrained": OTHER}, "svt_tiny (asked for: svt_small)"),
            (("upernet_svt_small",), {"pretrained": True}, "unknown model"),
            (("svt_tiny",), {"pretrained": "missing.pth"}, "missing.pth does not exist"),
            (("svt_tiny",), {"pretrained": "folder/missing.ckpt"}, "does not exist"),
            (("svt_tiny",), {"pretrained": "me/nothing"}, "there is no repository me/nothing"),
        ],
    )
    def test_mistakes(self, hub: Hub, arguments: tuple, options: dict, said: str):
        with pytest.raises(UserError) as caught:
            mindtwins.create_model(*arguments, **options)
        assert said in str(caught.value)

    def test_nobody_published_it(self):
        with pytest.raises(UserError, match="nobody has published weights of svt_tiny"):
            mindtwins.create_model("svt_tiny", pretrained=True)


class TestRepository:
    def test_it_says_how_it_is_used(self, hub: Hub, told: Callable):
        hub.files[OTHER]["config.json"] = json.dumps(CONFIG).encode()
        model = mindtwins.load_model(OTHER)
        assert model.classes == tuple(CONFIG["label_names"])
        assert model.preprocessing(Image.new("RGB", (90, 80), "white")).max() == 2
        stated = model.metadata["preprocessing"]
        assert (stated["image_size"], stated["crop_pct"]) == (SIZE, 0.9)
        assert "bilinear interpolation; here it is bicubic" in told()[-1]

    def test_in_timm_s_old_form(self, hub: Hub):
        """All of it beside each other, the classes as `labels`."""
        old = CONFIG["pretrained_cfg"] | {"architecture": "twins_svt_small", "num_classes": 10}
        old["labels"] = CONFIG["label_names"]
        hub.files[OTHER]["config.json"] = json.dumps(old).encode()
        model = mindtwins.load_model(OTHER)
        assert model.classes == tuple(CONFIG["label_names"])
        assert model.metadata["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
        assert model.metadata["preprocessing"]["crop_pct"] == 0.9

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"crop_pct": "0.9"}, "says crop_pct 0.9, which is not done here"),
            ({"std": [0.2, 0, 0.2]}, "says std"),
            ({"input_size": 224}, "says input_size 224"),
            ({"input_size": [3, 256, 200]}, "says input_size"),
            ({"crop_mode": "squash"}, "says crop_mode squash"),
            ({"labels": {"0": "cat"}}, "names its classes in no list"),
        ],
    )
    def test_what_is_not_done_here(self, hub: Hub, changes, said):
        config = CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | changes}
        del config["label_names"]
        hub.files[OTHER]["config.json"] = json.dumps(config).encode()
        with pytest.raises(UserError, match=said):
            mindtwins.load_model(OTHER)

    def test_a_new_head_has_no_names(self, hub: Hub):
        hub.files[OTHER]["config.json"] = json.dumps(CONFIG).encode()
        model = mindtwins.create_model("svt_tiny", pretrained=OTHER, new_head=True)
        assert model.classes is None and model.metadata["classes"] is None

    def test_an_empty_name(self):
        with pytest.raises(UserError, match="pretrained is an empty text"):
            mindtwins.create_model("svt_tiny", pretrained="")

    def test_a_copy_is_told_by_its_own_name(self, hub: Hub, tiny_file: bytes, tmp_path: Path):
        for name in ("a", "b"):
            (tmp_path / f"{name}.safetensors").write_bytes(tiny_file)
            model = mindtwins.load_model(tmp_path / f"{name}.safetensors")
            assert model.metadata["source"]["file"] == f"{name}.safetensors"
        assert len(conversions()) == 1

    def test_names_of_more_classes_than_there_are(self, hub: Hub):
        config = CONFIG | {"label_names": ["a", "b"]}
        hub.files[OTHER]["config.json"] = json.dumps(config).encode()
        with pytest.raises(UserError, match=rf"of {OTHER} names 2 classes, its model has 10"):
            mindtwins.load_model(OTHER)

    def test_of_another_architecture(self, hub: Hub):
        config = CONFIG | {"architecture": "resnet50"}
        hub.files[OTHER]["config.json"] = json.dumps(config).encode()
        with pytest.raises(UserError, match=rf"{OTHER} holds a resnet50, which is no Twins"):
            mindtwins.load_model(OTHER)
        assert not [
            path for method, path in hub.requests if "safetensors" in path and method == "GET"
        ]

    def test_of_another_architecture_that_it_does_not_say(self, hub: Hub):
        other = save({"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.weight": torch.zeros(10, 4)})
        hub.files[OTHER]["model.safetensors"] = other
        with pytest.raises(UserError, match=r"model\.safetensors") as caught:
            mindtwins.load_model(OTHER)
        assert "\n" not in str(caught.value)

    def test_without_weights(self, hub: Hub):
        hub.files["me/text"] = {"README.md": b"nothing"}
        with pytest.raises(UserError, match=r"me/text holds neither model\.safetensors nor"):
            mindtwins.load_model("me/text")

    def test_with_weights_of_torch_save(self, hub: Hub, tiny_file: bytes, tmp_path: Path):
        torch.save(load(tiny_file), tmp_path / "saved")
        hub.files["me/old"] = {"pytorch_model.bin": (tmp_path / "saved").read_bytes()}
        assert mindtwins.load_model("me/old").metadata["variant"] == "svt_tiny"

    def test_a_mirror_that_lies(self, hub: Hub, monkeypatch):
        monkeypatch.setitem(fetching.PINNED, PUBLISHED, "0" * 64)
        with pytest.raises(UserError, match="is not what timm published"):
            mindtwins.create_model("svt_tiny", pretrained=True)
        assert not conversions()

    def test_offline_as_before(self, hub: Hub, go_offline: Callable):
        """Also what the repository does not have (here config.json) is known then."""
        before = load_pretrained(KINDS, OTHER)
        go_offline()
        hub.requests.clear()
        assert load_pretrained(KINDS, OTHER).metadata == before.metadata
        assert not hub.requests


@pytest.mark.slow
@pytest.mark.parametrize("name", [PUBLISHED, OTHER])
@pytest.mark.parametrize("place", [0, 5, 9, -1])  # length of the header, header, last weight
def test_a_flipped_bit(hub: Hub, tiny_file: bytes, tmp_path: Path, name: str, place: int):
    """Also where a conversion of the whole file is kept, and whether it can be read or not."""
    before = load_pretrained(KINDS, name)
    (cached,) = (tmp_path / "hub").rglob("model.safetensors")
    damaged = bytearray(tiny_file)
    damaged[place] ^= 1
    cached.resolve().write_bytes(damaged)
    with pytest.raises(UserError, match=r"is damaged \(its hash is .*announced was"):
        load_pretrained(KINDS, name)
    assert load_pretrained(KINDS, name).metadata == before.metadata


def test_damage_on_which_a_reader_fails(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hash comes before whatever error it is; without damage the error is told as it is."""
    load_pretrained(KINDS, OTHER)
    (cached,) = (tmp_path / "hub").rglob("model.safetensors")

    def fail(path: Path) -> None:
        raise IndexError(f"of {path.name}")

    monkeypatch.setattr("mindtwins.hub.pretrained.read_source", fail)
    with pytest.raises(IndexError, match=r"of model\.safetensors"):
        load_pretrained(KINDS, OTHER)
    cached.resolve().write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"is damaged \(its hash is .*announced was"):
        load_pretrained(KINDS, OTHER)


def test_a_flipped_bit_of_a_checkpoint(hub: Hub, tmp_path: Path):
    checkpoint = load_pretrained(KINDS, OTHER)
    save_checkpoint(tmp_path / "sealed.safetensors", checkpoint.tensors, checkpoint.stated)
    whole = (tmp_path / "sealed.safetensors").read_bytes()
    hub.files["me/sealed"] = {"model.safetensors": whole}
    hub.sends["model.safetensors"] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(UserError, match=r"is damaged \(its hash is .*announced was"):
        load_pretrained(KINDS, "me/sealed")
    hub.sends.clear()
    assert load_pretrained(KINDS, "me/sealed").metadata == checkpoint.metadata


class TestKept:
    """A conversion is made once, and found to be damaged where it is."""

    @pytest.fixture
    def made(self, monkeypatch) -> list:
        """A list that has an entry for each conversion that was made."""
        made = []
        original = pretrained.from_torch

        def counted(*arguments):
            made.append(arguments)
            return original(*arguments)

        monkeypatch.setattr(pretrained, "from_torch", counted)
        return made

    def test_once(self, hub: Hub, made: list):
        first = load_pretrained(KINDS, OTHER)
        second = load_pretrained(KINDS, OTHER)
        assert len(made) == len(conversions()) == 1
        assert first.metadata == second.metadata
        for name, array in first.tensors.items():
            np.testing.assert_array_equal(second.tensors[name], array, strict=True)

    @pytest.mark.parametrize("name", [PUBLISHED, OTHER])
    @pytest.mark.parametrize("is_kept", [True, False])
    def test_one_look(self, hub: Hub, go_offline, tiny_file: bytes, monkeypatch, name, is_kept):
        """A file of the hub is hashed once, whether its conversion is kept or not."""
        load_pretrained(KINDS, name)
        go_offline()  # where this hub hashes nothing
        if not is_kept:
            shutil.rmtree(cache_folder())
        sums = []
        sha256 = hashlib.sha256

        class Recorded:
            def __init__(self, data: bytes = b""):
                self.digest = sha256(data)
                self.update = self.digest.update

            def hexdigest(self) -> str:
                sums.append(self.digest.hexdigest())
                return sums[-1]

        monkeypatch.setattr(hashlib, "sha256", Recorded)
        load_pretrained(KINDS, name)
        assert sums.count(sha256(tiny_file).hexdigest()) == 1

    def test_a_damaged_one_is_made_anew(self, hub: Hub, made: list, told: Callable):
        whole = load_pretrained(KINDS, OTHER)
        (kept,) = conversions()
        data = bytearray(kept.read_bytes())
        data[-5] ^= 1
        kept.write_bytes(data)
        again = load_pretrained(KINDS, OTHER)
        assert "was damaged: it is made anew" in told()[-1] and len(made) == 2
        for name, array in whole.tensors.items():
            np.testing.assert_array_equal(again.tensors[name], array)
        assert load_checkpoint(kept).metadata["variant"] == "svt_tiny"

    def test_a_place_that_cannot_be_written(self, hub: Hub, monkeypatch, tmp_path, told: Callable):
        (tmp_path / "file").touch()
        monkeypatch.setenv("MINDTWINS_CACHE", str(tmp_path / "file" / "folder"))
        assert load_pretrained(KINDS, OTHER).stated["variant"] == "svt_tiny"
        assert "are not kept (Not a directory)" in told()[-1] and "MINDTWINS_CACHE" in told()[-1]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
    @pytest.mark.parametrize(
        ("options", "said"),
        [("size=64k", "No space left on device"), ("size=64k,ro", "Read-only file system")],
    )
    def test_a_disk_without_room(self, hub: Hub, tmp_path, told: Callable, options, said):
        cache_folder().mkdir()
        if os.system(f"mount -t tmpfs -o {options} tmpfs {cache_folder()}") != 0:
            pytest.skip("mounting is not allowed here")
        try:
            assert load_pretrained(KINDS, OTHER).stated["variant"] == "svt_tiny"
            assert said in told()[-1] and not conversions()
        finally:
            os.system(f"umount {cache_folder()}")


class TestScripts:
    @pytest.fixture
    def data(self, photographs, tmp_path: Path) -> Path:
        for number, photograph in enumerate(photographs):
            for split in ("train", "val"):
                folder = tmp_path / "data" / split / f"digit {number}"
                folder.mkdir(parents=True)
                for left in (0, 100):
                    photograph.crop((left, 0, left + 80, 80)).save(folder / f"{left}.png")
        return tmp_path / "data"

    def logits(self, tiny_file: bytes, files: list[Path]) -> np.ndarray:
        """PyTorch's of pictures, prepared as CONFIG says."""
        reference = create_reference("svt_tiny", num_classes=10).eval()
        reference.load_state_dict(load(tiny_file))
        pixels = []
        for file in files:
            picture = Image.open(file).convert("RGB").resize((62, 62), Image.Resampling.BICUBIC)
            crop = np.asarray(picture.crop((3, 3, 59, 59)), np.float32) / 255
            pixels.append(((crop - 0.5) / 0.25).transpose(2, 0, 1))
        with torch.no_grad():
            return reference(torch.from_numpy(np.stack(pixels))).numpy()

    @pytest.mark.slow
    def test_infer(self, hub: Hub, tiny_file: bytes, data: Path, tmp_path: Path):
        hub.files[OTHER]["config.json"] = json.dumps(CONFIG).encode()
        files = sorted((data / "val").rglob("*.png"))
        out = tmp_path / "out.json"
        infer.main(["--pretrained", OTHER, "--images", *map(str, files), "--output_json", str(out)])
        found = json.loads(out.read_text())
        best = self.logits(tiny_file, files).argmax(1)
        assert [entry["names"][0] for entry in found] == [f"digit {number}" for number in best]

    @pytest.mark.slow
    def test_validate(self, hub: Hub, tiny_file: bytes, data: Path, tmp_path: Path):
        hub.files[OTHER]["config.json"] = json.dumps(CONFIG).encode()
        files = sorted((data / "val").rglob("*.png"))
        labels = [int(file.parent.name.split()[1]) for file in files]
        out = tmp_path / "out.json"
        words = ["--pretrained", OTHER, "--data_dir", data, "--output_json", out]
        validate.main([*map(str, words), "--num_parallel_workers", "1"])
        result = json.loads(out.read_text())
        right = self.logits(tiny_file, files).argmax(1) == labels
        assert result["top1"] == pytest.approx(100 * right.mean())
        assert result["ckpt_path"] == OTHER

    @pytest.mark.slow
    def test_export(self, hub: Hub, tiny_file: bytes, tmp_path: Path):
        file = tmp_path / "x.onnx"
        export.main(["--pretrained", "--model", "svt_tiny", "--file_name", str(file)])
        images = np.random.default_rng(0).standard_normal((2, 3, 64, 80)).astype(np.float32)
        with torch.no_grad():
            reference = create_reference("svt_tiny", num_classes=10).eval()
            reference.load_state_dict(load(tiny_file))
            expected = reference(torch.from_numpy(images)).numpy()
        exported = mindtwins.load_onnx(file)
        origin = exported.metadata["export"]["checkpoint"]
        assert origin["sha256"] == hashlib.sha256(tiny_file).hexdigest()
        found = exported(images)
        np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())

    def test_export_of_another_model(self, hub: Hub):
        words = ["--pretrained", OTHER, "--model", "svt_small", "--file_name", "x.onnx"]
        with pytest.raises(UserError, match=r"svt_tiny.*svt_small"):
            export.main(words)

    def test_export_of_no_model(self):
        with pytest.raises(UserError, match="--pretrained needs --model"):
            export.main(["--pretrained", "--file_name", "x.onnx"])
        with pytest.raises(UserError, match="say which checkpoint with --ckpt_path, or --pret"):
            export.main(["--file_name", "x.onnx"])

    def test_serve(self, hub: Hub):
        config = parse_config(ServeConfig, ["--pretrained", OTHER], "")
        application, _, model = serve.create_application(config)
        assert "svt_tiny" in model
        assert "/predict" in {route.path for route in application.routes}

    @pytest.mark.slow
    def test_train_starts_from_it(self, hub: Hub, tiny_file: bytes, data: Path, tmp_path: Path):
        flags = {
            **{"pretrained": "", "model": "svt_tiny", "image_size": SIZE, "batch_size": 2},
            **{"num_classes": 10, "data_dir": data, "epoch_size": 1, "lr": 1e-30},
            **{"min_lr": 0, "warmup_lr": 0, "warmup_epochs": 0, "output_dir": tmp_path / "run"},
            "num_parallel_workers": 1,
        }
        words = [
            word for name, value in flags.items() for word in (f"--{name}", str(value)) if word
        ]
        train.main(words)
        (path,) = (tmp_path / "run").glob("step_*.ckpt")
        trained = load_checkpoint(path)
        start = load(tiny_file)
        np.testing.assert_allclose(
            trained.tensors["blocks.1.0.mlp.fc1.weight"],
            start["blocks.1.0.mlp.fc1.weight"].numpy(),
            atol=1e-6,
        )
        assert trained.metadata["recipe"]["pretrained"] == "published"

    def test_there_are_no_published_segmentors(self):
        words = ["--pretrained", "--task", "segmentation", "--model", "upernet_svt_small"]
        with pytest.raises(UserError, match="are classifiers, which are no upernet_svt_small"):
            create_task(parse_config(ValidateConfig, words, ""))

    def test_both_are_a_contradiction(self):
        for cls in (TrainConfig, ValidateConfig, InferConfig):
            with pytest.raises(
                UserError, match=r"pretrained \(published\) and ckpt_path \(a.ckpt\)"
            ):
                parse_config(cls, ["--pretrained", "--ckpt_path", "a.ckpt"], "")

    def test_a_recipe_says_it_of_a_training_only(self, tmp_path: Path):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("pretrained: published\n")
        words = ["--config", str(recipe)]
        assert parse_config(TrainConfig, words, "").pretrained == "published"
        assert parse_config(ValidateConfig, [*words, "--ckpt_path", "a.ckpt"], "").pretrained == ""
        assert parse_config(ValidateConfig, [*words, "--pretrained"], "").pretrained == "published"


# As a user has it: settings in the environment, torch not installed, a model by name.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from mindspore import Tensor
import mindtwins
model = mindtwins.load_model("me/tiny")
np.save(sys.argv[2], model(Tensor(np.load(sys.argv[1]))).asnumpy())
"""


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "home"),
        "MINDTWINS_CACHE": str(folder / "converted"),
    }


@pytest.mark.slow
def test_two_processes_at_once_without_torch(hub: Hub, images, expected, tmp_path: Path):
    np.save(tmp_path / "images.npy", images)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WITHOUT_TORCH, tmp_path / "images.npy", tmp_path / f"{n}.npy"],
            env=environment(hub, tmp_path),
        )
        for n in range(2)
    ]
    assert [process.wait(300) for process in running] == [0, 0]
    for number in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), expected, atol=5e-6)
    assert len(list((tmp_path / "converted").iterdir())) == 1
    assert sum(method == "GET" and "resolve" in path for method, path in hub.requests) == 1


@pytest.mark.endurance
@needs_mpirun
def test_rank_0_fetches(hub: Hub, tmp_path: Path, photographs, monkeypatch):
    for name, value in environment(hub, tmp_path).items():
        monkeypatch.setenv(name, value)
    for number in range(2):
        photographs[number].save(tmp_path / f"{number}.png")
    job = Job(
        *("mpirun", tmp_path, "infer.py", "--pretrained", OTHER, "--image_size", SIZE),
        *("--images", tmp_path / "0.png", tmp_path / "1.png"),
    )
    assert job.wait() == 0, job.output()
    assert "0.png: class" in job.output() and "1.png: class" in job.output()
    gets = [
        count
        for (method, path), count in hub.requests.items()
        if method == "GET" and "resolve" in path
    ]
    assert gets == [1]
