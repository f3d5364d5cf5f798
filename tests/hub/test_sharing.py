"""A model's folder, and the same on a hub: what is in it, and that it is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from loopback_hub import Hub
from mindspore import Tensor
from safetensors import safe_open

import mindtwins
from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.commands import convert, export
from mindtwins.errors import UserError

OTHER = "me/tiny"
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def converted(tiny_file: bytes, tmp_path_factory) -> Path:
    """A converted checkpoint, the report of its conversion beside it."""
    folder = tmp_path_factory.mktemp("converted")
    (folder / "tiny.safetensors").write_bytes(tiny_file)
    words = {
        "--pt_path": folder / "tiny.safetensors",
        "--ckpt_path": folder / "tiny.ckpt",
        "--report": folder / "report.json",
    }
    convert.main([str(word) for pair in words.items() for word in pair])
    return folder / "tiny.ckpt"


def report_of(converted: Path, path: Path, **changes: object) -> Path:
    """The report with a row of a verification."""
    row = {"weights": "amplified", "stage": "logits", "max_abs": 1.2e-6, "max_abs_floor": 1.1e-6}
    stated = json.loads((converted.parent / "report.json").read_text())
    path.write_text(json.dumps(stated | {"verification": [row]} | changes))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(found, expected) -> None:
    """The same weights under the same names, and the same use."""
    assert found.metadata == expected.metadata and found.classes == expected.classes
    theirs = {parameter.name: parameter.asnumpy() for parameter in expected.get_parameters()}
    for parameter in found.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), theirs.pop(parameter.name))
    assert not theirs


def test_a_checkpoint_and_back(converted: Path, tmp_path: Path):
    mindtwins.save_pretrained(converted, tmp_path / "model")
    assert sorted(contents(tmp_path / "model")) == FILES
    assert_same(mindtwins.load_model(tmp_path / "model"), mindtwins.load_model(converted))
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config.items() >= load_checkpoint(converted).metadata.items()
    with safe_open(tmp_path / "model/model.safetensors", "np") as file:
        assert "blocks.0.0.attn.qkv.weight" in file.keys()  # noqa: SIM118


def test_the_same_bytes_each_time(converted: Path, tmp_path: Path):
    mindtwins.save_pretrained(converted, tmp_path / "model")
    first = contents(tmp_path / "model")
    mindtwins.save_pretrained(converted, tmp_path / "model")
    assert contents(tmp_path / "model") == first


def test_a_model_with_the_weights_that_it_has_now(converted: Path, tmp_path: Path):
    model = mindtwins.load_model(converted)
    model.head.bias.set_data(Tensor(np.arange(10, dtype=np.float32)))
    mindtwins.save_pretrained(model, tmp_path / "model")
    assert_same(mindtwins.load_model(tmp_path / "model"), model)


def test_a_model_with_another_head(hub: Hub, tmp_path: Path):
    model = mindtwins.create_model("svt_tiny", 4, pretrained=OTHER, window_padding="mask")
    mindtwins.save_pretrained(model, tmp_path / "model")
    again = mindtwins.load_model(tmp_path / "model")
    assert_same(again, model)
    assert again.head.weight.shape == (4, 128) and again.dialect.window_padding == "mask"


def test_a_training_checkpoint_without_its_state(converted: Path, tmp_path: Path):
    whole = load_checkpoint(converted)
    tensors = {**whole.tensors, "optimizer.step": np.ones(1, np.float32)}
    save_checkpoint(tmp_path / "step.ckpt", tensors, whole.metadata)
    mindtwins.save_pretrained(tmp_path / "step.ckpt", tmp_path / "model")
    assert_same(mindtwins.load_model(tmp_path / "model"), mindtwins.load_model(converted))


@pytest.mark.slow
def test_a_training_s_recipe_stays_at_home(converted: Path, tmp_path: Path):
    whole = load_checkpoint(converted)
    metadata = {**whole.metadata, "recipe": {"data_dir": "/home/me/secret"}, "progress": {}}
    del metadata["source"]
    save_checkpoint(tmp_path / "step.ckpt", whole.tensors, metadata)
    mindtwins.save_pretrained(tmp_path / "step.ckpt", tmp_path / "model")
    for file in FILES:
        assert b"secret" not in (tmp_path / "model" / file).read_bytes()
    # And what one trained can be exported from there.
    words = ["--pretrained", tmp_path / "model", "--file_name", tmp_path / "x.onnx"]
    export.main([str(word) for word in words])
    origin = mindtwins.load_onnx(tmp_path / "x.onnx").metadata["export"]["checkpoint"]
    assert origin == {"name": str(tmp_path / "model")}


def test_a_home_folder(converted: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mindtwins.save_pretrained(converted, "~/model")
    assert sorted(contents(tmp_path / "model")) == FILES


class TestCard:
    def card(self, converted: Path, folder: Path, **options) -> tuple[dict, str]:
        """The front matter and the text."""
        mindtwins.save_pretrained(converted, folder / "model", **options)
        _, front, text = (folder / "model/README.md").read_text().split("---\n", 2)
        return yaml.safe_load(front), text

    def test_what_it_says(self, converted: Path, tmp_path: Path):
        report = report_of(converted, tmp_path / "report.json")
        front, text = self.card(converted, tmp_path, report=report, license="mit")
        assert front == {
            "license": "mit",
            "library_name": "mindtwins",
            "pipeline_tag": "image-classification",
            "tags": ["mindspore", "twins", "svt_tiny"],
        }
        source = load_checkpoint(converted).metadata["source"]
        for row in (
            "| parameters | 726,666 |",
            "| preprocessing: crop_pct | 0.875 |",
            "| convention: block_epsilon | 1e-06 |",
            f"| its sha256 | {source['sha256']} |",
            "| license of the weights | mit |",
            "| amplified | logits | 1.2e-06 | 1.1e-06 |",
        ):
            assert row in text.splitlines(), row
        assert "mindtwins.load_model('model')" in text

    def test_what_it_does_not_know(self, converted: Path, tmp_path: Path, told: Callable):
        front, text = self.card(converted, tmp_path)
        assert "license" not in front and "| license of the weights | not stated |" in text
        assert "Not measured" in text
        assert told() == ["notice: the card of model states no license: give it as license="]

    def test_published_weights_have_the_authors_license(self, hub: Hub, tmp_path: Path):
        model = mindtwins.create_model("svt_tiny", pretrained=True)
        front, text = self.card(model, tmp_path)
        assert front["license"] == "apache-2.0"
        assert "| converted from | timm/twins_svt_tiny.in1k |" in text


class TestMistakes:
    def test_a_report_of_another_model(self, converted: Path, tmp_path: Path):
        source = {"source": {"sha256": "0" * 64}}
        report = report_of(converted, tmp_path / "report.json", metadata=source)
        with pytest.raises(UserError, match="is of another model"):
            mindtwins.save_pretrained(converted, tmp_path / "model", report)
        assert not (tmp_path / "model").exists()

    def test_a_report_of_a_model_in_memory(self, converted: Path, tmp_path: Path):
        report = report_of(converted, tmp_path / "report.json")
        model = mindtwins.load_model(converted)
        with pytest.raises(UserError, match="a model may have other weights by now: save the file"):
            mindtwins.save_pretrained(model, tmp_path / "model", report)

    def test_a_report_without_a_comparison(self, converted: Path, tmp_path: Path):
        with pytest.raises(UserError, match="compares nothing: convert with --verify"):
            mindtwins.save_pretrained(
                converted, tmp_path / "model", converted.parent / "report.json"
            )

    def test_no_report(self, converted: Path, tmp_path: Path):
        (tmp_path / "text").write_text("[]")
        with pytest.raises(UserError, match="is no report of a conversion"):
            mindtwins.save_pretrained(converted, tmp_path / "model", tmp_path / "text")

    def test_a_model_that_does_not_say_what_it_is(self, tmp_path: Path):
        model = mindtwins.create_model("svt_tiny", 10)
        with pytest.raises(UserError, match="does not say what it is"):
            mindtwins.save_pretrained(model, tmp_path / "model")

    def test_a_backbone_alone(self, hub: Hub, tmp_path: Path):
        backbone = mindtwins.create_model("svt_tiny", pretrained=OTHER, features_only=True)
        with pytest.raises(UserError, match=r"it lacks norm\.gamma"):
            mindtwins.save_pretrained(backbone, tmp_path / "model")

    def test_a_place_that_cannot_be(self, converted: Path, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot make the folder"):
            mindtwins.save_pretrained(converted, tmp_path / "file" / "model")

    def test_a_damaged_folder(self, converted: Path, tmp_path: Path):
        mindtwins.save_pretrained(converted, tmp_path / "model")
        path = tmp_path / "model/model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match="does not match its checksum"):
            mindtwins.load_model(tmp_path / "model")


class TestHub:
    @pytest.mark.slow
    @pytest.mark.parametrize("of_a_folder", [False, True])
    def test_there_and_back(self, hub: Hub, converted: Path, tmp_path: Path, of_a_folder: bool):
        source = converted
        if of_a_folder:
            source = tmp_path / "model"
            mindtwins.save_pretrained(converted, source)
            (source / "notes.txt").write_text("not for the hub")
        where = mindtwins.push_to_hub(source, "me/mine", token="hf_mine")
        assert where == f"{hub.endpoint}/me/mine"
        assert sorted(hub.files["me/mine"]) == FILES
        assert b"mindtwins.load_model('me/mine')" in hub.files["me/mine"]["README.md"]
        assert_same(mindtwins.load_model("me/mine"), mindtwins.load_model(converted))

    def test_a_folder_says_its_license_itself(self, hub: Hub, converted: Path, tmp_path: Path):
        mindtwins.save_pretrained(converted, tmp_path / "model")
        with pytest.raises(UserError, match="has a model card already"):
            mindtwins.push_to_hub(tmp_path / "model", "me/mine", license="mit")
        (tmp_path / "model/README.md").unlink()
        with pytest.raises(UserError, match=r"lacks README\.md: write the folder with"):
            mindtwins.push_to_hub(tmp_path / "model", "me/mine")
        assert "me/mine" not in hub.files

    def test_a_hub_that_lets_nobody_write(self, hub: Hub, converted: Path):
        hub.statuses["me/mine"] = (403, "")
        with pytest.raises(UserError, match=r"cannot put me/mine on .*403.*HF_TOKEN") as caught:
            mindtwins.push_to_hub(converted, "me/mine", token="hf_mine")
        assert "\n" not in str(caught.value)

    def test_nobody_answers(self, hub: Hub, converted: Path):
        hub.__exit__()
        with pytest.raises(UserError, match=r"cannot put me/mine on .*refused"):
            mindtwins.push_to_hub(converted, "me/mine", token="hf_mine")
