"""train.py and validate.py as a user runs them, on the digits."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mindtwins.commands import train, validate
from mindtwins.errors import UserError

# Processes that compile a training step each.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
OUTPUT = Path("outputs/svt_tiny_digits")
CONFIG = str(ROOT / "configs" / "svt_tiny_digits.yaml")

# Everything that draws random numbers or holds state is on.
RECIPE = [
    "--epoch_size=2",
    "--warmup_epochs=1",
    "--batch_size=64",
    "--gradient_accumulation_steps=2",
    "--drop_path_rate=0.2",
    "--auto_augment=rand-m9-mstd0.5-inc1",
    "--re_prob=0.25",
    "--cutmix=1",
    "--ema",
    "--ema_decay=0.9",
    "--save_every_steps=2",
    "--log_interval=1",
    "--val_interval=1",
]
STEPS = 22


def start(script: str, cwd: Path, *argv: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), "--config", CONFIG, *argv],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "GLOG_v"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script: str, cwd: Path, *argv: str, code: int = 0) -> str:
    process = start(script, cwd, *argv)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    assert "[WARNING]" not in output  # MindSpore's, where a user has not silenced them
    return output


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """As `run`, in this process: for what needs none of its own, which begins with imports."""

    def run_here(main: Callable[[list[str]], None], cwd: Path, *argv: str) -> str:
        monkeypatch.chdir(cwd)
        main(["--config", CONFIG, *argv])
        return capfd.readouterr().out

    return run_here


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mindtwins.data.digits import write_digits

    return f"--data_dir={write_digits(tmp_path_factory.mktemp('data') / 'digits')}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, digits: str) -> Path:
    """The working directory of a whole run."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    output = run("train.py", cwd, digits, *RECIPE)
    assert "compiling the training step" in output and "done: 22 steps" in output
    return cwd


def assert_same_files(first: Path, second: Path) -> None:
    """Bit for bit: weights, all of the state, the curve of losses, the metrics."""
    for name in (
        "final.ckpt",
        "final_ema.ckpt",
        "best.ckpt",
        f"step_{STEPS:08d}.ckpt",
        "steps.jsonl",
        "log.jsonl",
    ):
        assert (first / OUTPUT / name).read_bytes() == (second / OUTPUT / name).read_bytes(), name


def test_the_log_has_the_official_keys(uninterrupted: Path):
    folder = uninterrupted / OUTPUT
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1]
    for key in ("train_lr", "train_loss", "test_loss", "test_acc1", "test_acc5", "n_parameters"):
        assert all(key in record for record in records)
    assert records[1]["train_loss"] < records[0]["train_loss"]
    assert len((folder / "steps.jsonl").read_text().splitlines()) == STEPS
    assert len(list(folder.glob("step_*.ckpt"))) == 3
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "suffix"), [("final.ckpt", ""), ("final_ema.ckpt", "_ema"), ("step_00000022.ckpt", "")]
)
def test_validate_gives_the_last_evaluations_numbers(
    uninterrupted: Path, digits: str, here: Callable, name: str, suffix: str
):
    last = json.loads((uninterrupted / OUTPUT / "log.jsonl").read_text().splitlines()[-1])
    arguments = [digits, f"--ckpt_path={OUTPUT / name}", "--output_json=result.json"]
    if name == "final_ema.ckpt":  # more rows than images: as many as there are images
        arguments.append("--eval_batch_size=10000000")
        output = run("validate.py", uninterrupted, *arguments)
    else:
        output = here(validate.main, uninterrupted, *arguments)
    result = json.loads((uninterrupted / "result.json").read_text())
    assert result["top1"] == last[f"test_acc1{suffix}"]
    assert result["top5"] == last[f"test_acc5{suffix}"]
    # Another batch size than in training may change the last bit of a logit.
    assert result["loss"] == pytest.approx(last[f"test_loss{suffix}"], rel=1e-6)
    assert f"top-1 {result['top1']:.2f} %" in output and "355 images" in output


def test_a_run_is_not_overwritten(uninterrupted: Path, digits: str):
    output = run("train.py", uninterrupted, digits, *RECIPE, code=1)
    assert output.startswith("error: outputs/svt_tiny_digits already holds a run")


def test_starting_over_does_not_delete_what_it_starts_from(
    uninterrupted: Path, digits: str, here: Callable
):
    start = f"--ckpt_path={OUTPUT / 'final.ckpt'}"
    with pytest.raises(UserError, match=f"--overwrite would delete the {start.replace('=', ' ')}"):
        here(train.main, uninterrupted, digits, *RECIPE, start, "--overwrite")
    assert (uninterrupted / OUTPUT / "log.jsonl").exists()


@pytest.mark.endurance
def test_a_start_that_saved_nothing_is_started_over(digits: str, tmp_path: Path):
    """A bad image ends the first start after some steps; the error's advice works at once."""
    data = tmp_path / "digits"
    shutil.copytree(digits.removeprefix("--data_dir="), data)
    arguments = [f"--data_dir={data}", *RECIPE, "--save_every_steps=0", "--max_steps=12"]
    from mindtwins.data.sampler import epoch_order

    paths = sorted((data / "train").glob("*/*.png"))
    bad = paths[epoch_order(len(paths), 0, 0)[128 * 8 + 3]]
    bad.write_bytes(b"no image")
    output = run("train.py", tmp_path, *arguments, code=1)
    assert f"cannot read image {bad}" in output and "--skip_bad_images" in output
    assert (tmp_path / OUTPUT / "steps.jsonl").exists()
    assert not list((tmp_path / OUTPUT).glob("*.ckpt"))
    output = run("train.py", tmp_path, *arguments, "--skip_bad_images")
    assert "holds the log of a start that saved nothing: it begins anew" in output
    lines = (tmp_path / OUTPUT / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(12))


def test_another_recipe_does_not_continue(uninterrupted: Path, digits: str, here: Callable):
    with pytest.raises(UserError, match=r"another recipe \(lr: 0\.002 -> 1\.0\)"):
        here(train.main, uninterrupted, digits, *RECIPE, "--lr=1", "--resume")


def start_and_kill(cwd: Path, digits: str, chance: random.Random) -> None:
    """At a random moment while stepping, evaluating or saving, but after some steps."""
    process = start("train.py", cwd, digits, *RECIPE, "--resume")
    wait_for_steps(process, cwd, chance.randint(1, STEPS - 4))
    time.sleep(chance.uniform(0, 0.5))
    process.kill()
    process.communicate()


def wait_for_steps(process: subprocess.Popen, cwd: Path, count: int) -> None:
    steps = cwd / OUTPUT / "steps.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if steps.exists() and len(steps.read_text().splitlines()) >= count:
            break
        time.sleep(0.02)


@pytest.mark.endurance
def test_killed_twenty_times(uninterrupted: Path, digits: str, tmp_path: Path):
    chance = random.Random(0)
    for _ in range(20):
        start_and_kill(tmp_path, digits, chance)
    run("train.py", tmp_path, digits, *RECIPE, "--resume")
    assert_same_files(uninterrupted, tmp_path)


def test_killed_stopped_and_damaged_equals_uninterrupted(
    uninterrupted: Path, digits: str, tmp_path: Path
):
    start_and_kill(tmp_path, digits, random.Random(1))
    assert 0 < len((tmp_path / OUTPUT / "steps.jsonl").read_text().splitlines()) < STEPS

    process = start("train.py", tmp_path, digits, *RECIPE, "--resume")
    wait_for_steps(process, tmp_path, STEPS - 6)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopping after this step" in output  # said at once
    command = output.splitlines()[-1].split("continue with: ")[1]
    assert command.startswith(sys.executable) and command.endswith(" --resume")

    newest = max((tmp_path / OUTPUT).glob("step_*.ckpt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 16
    newest.write_bytes(data)
    # What the line said, word for word; the interrupt was none of the file's fault.
    process = subprocess.run(shlex.split(command), cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert f"notice: cannot load {OUTPUT / newest.name}" in process.stdout
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == data
    assert_same_files(uninterrupted, tmp_path)


def test_going_back_and_training_longer(
    uninterrupted: Path, digits: str, tmp_path: Path, here: Callable
):
    """Back to an earlier step: the same again, and nothing lost. Then the way to train longer."""
    folder = tmp_path / OUTPUT
    shutil.copytree(uninterrupted / OUTPUT, folder)
    newest, earlier = sorted(folder.glob("step_*.ckpt"), reverse=True)[:2]
    content = newest.read_bytes()
    options = [digits, *RECIPE, f"--resume={OUTPUT / earlier.name}"]
    output = run("train.py", tmp_path, *options)
    assert f"{OUTPUT / newest.name} is not of the run from here on: kept as" in output
    assert newest.with_name(f"{newest.name}.set_aside").read_bytes() == content
    assert_same_files(uninterrupted, tmp_path)

    longer = [digits, *RECIPE, "--epoch_size=3", "--max_steps=2"]
    with pytest.raises(UserError) as refusal:
        here(train.main, tmp_path, *longer, "--resume")
    (start,) = re.findall(r"--ckpt_path \S+", str(refusal.value))
    output = here(train.main, tmp_path, *longer, "--output_dir=longer", *start.split())
    assert "stopped after step 2 of 33" in output
    losses = [
        json.loads((path / "steps.jsonl").read_text().splitlines()[0])["train_loss"]
        for path in (folder, tmp_path / "longer")
    ]
    assert losses[1] < 0.9 * losses[0]  # the same first step, from what was learned


def test_a_step_that_is_not_finite_stops_the_run(digits: str, tmp_path: Path, here: Callable):
    arguments = [digits, "--std=1e-38,1e-38,1e-38", "--output_dir=run", "--mixup=0"]
    with pytest.raises(UserError) as caught:
        here(train.main, tmp_path, *arguments)
    said = str(caught.value)
    assert said.startswith("step 0 is not finite: loss ")
    assert re.search("gradient norm (nan|inf), learning rate 1e-06, loss scale 1", said)
    listed = (tmp_path / "run" / "non_finite_step_0.txt").read_text().splitlines()
    assert len(listed) == 64 and all(Path(path).is_file() for path in listed)
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_dry_run_writes_nothing(digits: str, tmp_path: Path, here: Callable):
    output = here(train.main, tmp_path, digits, "--dry_run")
    assert "peak memory" in output and "all 660 steps: about" in output
    assert list(tmp_path.iterdir()) == []
