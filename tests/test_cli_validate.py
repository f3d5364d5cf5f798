"""validate.py: mistakes, and what prints without data."""

from __future__ import annotations

from pathlib import Path

import pytest

import validate
from mindtwins.errors import UserError


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "ckpt_path is missing"),
        (["--ckpt_path", "none.ckpt"], "data_dir is missing"),
        (["--ckpt_path", "none.ckpt", "--data_dir", "nowhere"], "nowhere does not exist"),
        (["--resume"], "unknown flag '--resume'"),
        (["-c", "none.yaml"], "none.yaml: no such configuration file"),
        (["--summary", "--model", "svt_smal"], "did you mean 'svt_small'?"),
    ],
)
def test_mistakes(argv: list[str], message: str):
    with pytest.raises(UserError) as caught:
        validate.main(argv)
    assert message in str(caught.value)


def test_a_missing_checkpoint_or_data_folder(tmp_path: Path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        validate.main(["--ckpt_path", "none.ckpt", "--data_dir", str(tmp_path)])


def test_summary(capsys: pytest.CaptureFixture):
    validate.main(["--summary"])
    output = capsys.readouterr().out
    assert "svt_small" in output and "24,060,776" in output
