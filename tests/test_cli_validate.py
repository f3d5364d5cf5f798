"""validate.py: mistakes, and what prints without data."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindtwins.checkpoint import save_checkpoint
from mindtwins.commands import validate
from mindtwins.errors import UserError
from mindtwins.models import create_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = create_model("svt_tiny", num_classes=2)
    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
    save_checkpoint(path, tensors, {"variant": "svt_tiny", "num_classes": 2, "in_channels": 3})
    return str(path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "ckpt_path is missing"),
        (["--ckpt_path", "none.ckpt"], "none.ckpt does not exist"),
        (["--ckpt_path", "CHECKPOINT"], "data_dir is missing"),
        (["--ckpt_path", "CHECKPOINT", "--data_dir", "nowhere"], "nowhere does not exist"),
        (["--resume"], "unknown flag '--resume'"),
        (["-c", "none.yaml"], "none.yaml: no such configuration file"),
        (["--summary", "--model", "svt_smal"], "did you mean 'svt_small'?"),
    ],
)
def test_mistakes(argv: list[str], message: str, checkpoint: str):
    with pytest.raises(UserError) as caught:
        validate.main([checkpoint if word == "CHECKPOINT" else word for word in argv])
    assert message in str(caught.value)


def test_an_empty_data_folder(tmp_path: Path, checkpoint: str):
    (tmp_path / "val" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        validate.main(["--ckpt_path", checkpoint, "--data_dir", str(tmp_path)])


def test_summary(capsys: pytest.CaptureFixture):
    validate.main(["--summary"])
    output = capsys.readouterr().out
    assert "svt_small" in output and "24,060,776" in output
