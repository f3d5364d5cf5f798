"""The documentation: every command in it runs, and what else it names or tabulates is there.

A command is a line of a block marked `bash`, or inline code that begins with a program. `COMMANDS`
says of each how it is checked. A command without a row fails, and so does a row without a command.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import ROOT, needs_mpirun
from mindspore import Tensor
from PIL import Image

import demo
import mindtwins
from mindtwins.config import InferConfig, ServeConfig, TrainConfig, ValidateConfig, parse_config
from mindtwins.models.complexity import count
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("python", "make", "mpirun", "msrun", "pip", "taskset")
CONFIGS = {
    "train.py": TrainConfig,
    "validate.py": ValidateConfig,
    "infer.py": InferConfig,
    "serve.py": ServeConfig,
}
TOP_FOLDERS = ("mindtwins/", "tests/", "configs/", "docs/", "benchmarks/", "convert/")


# What is in the pages


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for name, text in FENCED.findall(page.read_text()) if name == language]


def inline_code(page: Path) -> list[str]:
    """What stands between backticks outside of fenced blocks, each on one line."""
    text = FENCED.sub("", page.read_text())
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def commands(page: Path) -> Iterator[str]:
    """The commands of a page, each on one line and without comments."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s)#.*", "", line)
            if line.strip():
                yield " ".join(line.split())
    for code in inline_code(page):
        words = re.sub(r"^([A-Z_]+=\S+ )+", "", code).split()
        if len(words) > 1 and words[0] in PROGRAMS:
            yield code


FOUND: dict[str, str] = {
    command: str(page.relative_to(ROOT)) for page in PAGES for command in commands(page)
}


# How a command is checked


@dataclass(frozen=True)
class Runs:
    """By running it in a folder with small data and checkpoints of the names that it mentions.

    Attributes:
        more: further flags, which make it cheap.
        replace: words to write otherwise.
        tier: "" runs always; "slow" or "endurance" as the marks of that name.
    """

    more: str = ""
    replace: dict[str, str] = field(default_factory=dict)
    tier: str = ""

    def check(self, command: str) -> None:
        for text, other in {" /imagenet": " imagenet", **self.replace}.items():
            command = command.replace(text, other)
        command = f"{command} {self.more}".strip()
        words = shlex.split(command)
        if words[0] == "python" and words[1].endswith(".py") and self.tier != "endurance":
            run_here(*words[1:])
        else:
            run_in_a_shell(command)


@dataclass(frozen=True)
class RunsIn:
    """By another test, `path::function`, which runs it, or the like on less data."""

    test: str
    tier = ""

    def check(self, command: str) -> None:
        path, _, function = self.test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert function in names, f"there is no test {self.test}"


@dataclass(frozen=True)
class Target:
    """By what the rule of a target of the Makefile says."""

    words: tuple[str, ...]
    tier = ""

    def check(self, command: str) -> None:
        name = command.removeprefix("make ")
        makefile = (ROOT / "Makefile").read_text()
        rule = re.search(rf"^{name}:.*\n(\t.*\n)*", makefile, re.MULTILINE)
        assert rule is not None, f"the Makefile has no target {name}"
        for words in self.words:
            assert words in rule.group()


@dataclass(frozen=True)
class NotRun:
    """By the shell's grammar alone, for a reason."""

    why: str
    tier = ""

    def check(self, command: str) -> None:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def run_here(*words: str) -> None:
    """Run a script with its arguments in this process, which has imported MindSpore already."""
    before, sys.argv = sys.argv, list(words)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"exit code {end.code}"
    finally:
        sys.argv = before


def run_in_a_shell(command: str) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    subprocess.run(["bash", "-e", "-c", command], env=environment, check=True)


LAUNCHERS_FLAGS = {
    *("--worker_num", "--local_worker_num", "--join"),
    *("--master_addr", "--master_port", "--node_rank"),
    *("--allow-run-as-root", "--oversubscribe", "--bind-to"),
}
CURLS_FLAGS = {"--data-binary"}
TINY = "--device_target CPU --model svt_tiny --num_classes 2 --image_size 64 --batch_size 2"
TINY_UPERNET = "--device_target CPU --model upernet_svt_tiny --resize_scale 64,64"
TINY_FPN = "--device_target CPU --model fpn_svt_tiny --image_size 64 --resize_scale 64,64"
TWO_RANKS = (
    "tests/training/test_recipe.py::test_svt_s_gpu_runs_on_two_cpu_ranks_and_resumes_after_a_kill"
)
TWO_SEGMENTING_RANKS = (
    "tests/segmentation/test_runs.py::test_two_ranks_learn_what_one_does_with_twice_the_batch"
)
DETECTING = "tests/detection/test_task.py::test_a_run_that_was_stopped_goes_on_bit_for_bit"
MSRUN = (
    "tests/training/test_distributed.py"
    "::test_killed_rank_ends_the_job_with_its_number_and_a_checkpoint"
)
VERIFIED = "tests/conversion/test_scripts.py::test_verification_report_and_summary"
A_RUN = "tests/test_cli_train.py::test_validate_gives_the_last_evaluations_numbers"
JOURNEY = "tests/test_docs.py::test_the_journey"
THE_WHEEL = "tests/test_packaging.py::test_a_wheel_without_torch_trains_and_validates"
SERVED = "tests/serving/test_command.py::test_what_is_accepted_is_answered_at_the_end"
ASKED = "tests/serving/test_app.py"
UNDER_LOAD = "tests/serving/test_load.py::test_load"
ON_GPU = "tests/benchmarks/test_commands.py::test_all_of_it_on_a_cpu"
TRAIN = "train.py --config configs/svt_s_gpu.yaml --data_dir /imagenet"
FINETUNE = "python train.py -c configs/finetune.yaml"
LONGER = (
    f"{FINETUNE} --ckpt_path outputs/finetune/final.ckpt --data_dir my_pets"
    " --output_dir outputs/longer --epoch_size 4 --lr 5e-5 --warmup_epochs 0"
)
COMMANDS: dict[str, list[Runs | RunsIn | Target | NotRun]] = {
    # Targets of the Makefile
    "make demo": [
        Target(("python demo.py",)),
        Runs(replace={"make demo": "python demo.py"}, tier="endurance"),
    ],
    "make demo-seg": [
        Target(("python demo.py --task segmentation",)),
        Runs(replace={"make demo-seg": "python demo.py --task segmentation"}, tier="endurance"),
    ],
    "make demo-det": [
        Target(("python demo.py --task detection",)),
        Runs(replace={"make demo-det": "python demo.py --task detection"}, tier="endurance"),
    ],
    "make bench": [
        Target(("python -m benchmarks.speed", "python -m benchmarks.data_pipeline")),
        Runs(replace={"make bench": "python -m benchmarks.speed --quick"}, tier="endurance"),
        Runs(
            replace={"make bench": "python -m benchmarks.data_pipeline --quick"}, tier="endurance"
        ),
    ],
    "make docs": [
        Target(("python docs/build_api.py outputs/docs",)),
        Runs(replace={"make docs": f"python {ROOT}/docs/build_api.py pages"}, tier="endurance"),
    ],
    "make install": [Target(("$(VENV)/installed",))],
    "make lint": [Target(("ruff check .", "ruff format --check .", "mypy"))],
    "make test": [Target(("lint", 'pytest -n 2 -m "not endurance"'))],
    "make test-fast": [Target(("lint", 'pytest -n 2 -m "not slow and not endurance"'))],
    "make test-endurance": [Target(("pytest -m endurance",))],
    "make test-oldest": [Target(("MINDSPORE=$(OLDEST_MINDSPORE) test-fast",))],
    "make wheel": [Target(("MINDTWINS_RELEASE=1", "python -m build", "auditwheel repair"))],
    'pip install ".[demo]"': [RunsIn(THE_WHEEL)],
    "mindtwins train -c svt_tiny_digits": [RunsIn(THE_WHEEL)],
    "mindtwins validate -c svt_tiny_digits --ckpt_path outputs/svt_tiny_digits/final.ckpt": [
        RunsIn(THE_WHEEL)
    ],
    "source .venv/bin/activate": [NotRun("the environment of these tests may be another one")],
    # Conversion
    # The desk is made with these two, without --verify.
    "python convert/pt2ms.py --pt_path alt_gvt_small.pth --ckpt_path svt_small.ckpt --verify": [
        RunsIn(VERIFIED)
    ],
    "python convert/pt2ms.py --pt_path twins_svt-s_uperhead.pth"
    " --ckpt_path upernet_svt_small.ckpt --verify": [
        RunsIn("tests/conversion/test_segmentors.py::test_verification")
    ],
    "python convert/ms2pt.py --ckpt_path svt_small.ckpt --pt_path back.pth": [Runs()],
    "python convert/pt2ms.py --pt_path alt_gvt_small.pth --ckpt_path svt_small.ckpt --verify"
    " --report report.json": [RunsIn(VERIFIED)],
    "python convert/pt2ms.py --pt_path svt_s_new.ckpt --ckpt_path svt_small.ckpt --verify": [
        RunsIn("tests/conversion/test_mindcv.py::test_converted_verified_and_what_is_told")
    ],
    # Published weights: with a hub on this machine
    "python infer.py --pretrained --model svt_small --images photographs/": [
        RunsIn("tests/hub/test_pretrained.py::test_infer")
    ],
    "python infer.py --pretrained alt_gvt_small.pth --images photographs/": [
        RunsIn("tests/hub/test_pretrained.py::test_infer")
    ],
    "python validate.py --pretrained --model pcpvt_large --data_dir /imagenet": [
        RunsIn("tests/hub/test_pretrained.py::test_validate")
    ],
    "python export.py --pretrained --model svt_small --file_name svt_small.onnx": [
        RunsIn("tests/hub/test_pretrained.py::test_export")
    ],
    "python serve.py --pretrained --model svt_small": [
        RunsIn("tests/hub/test_pretrained.py::test_serve")
    ],
    "python train.py -c configs/finetune.yaml --pretrained --data_dir my_pets": [
        RunsIn("tests/hub/test_pretrained.py::test_train_starts_from_it")
    ],
    "pip install huggingface_hub": [NotRun("the environment of these tests has it")],
    # Training
    f"python {TRAIN}": [RunsIn(TWO_RANKS)],
    f"mpirun -n 8 python {TRAIN}": [RunsIn(TWO_RANKS)],
    "mpirun -n 8 mindtwins train -c svt_s_gpu --data_dir /imagenet": [RunsIn(THE_WHEEL)],
    f"msrun --worker_num=8 --local_worker_num=8 --join=True {TRAIN}": [RunsIn(MSRUN)],
    "mpirun --allow-run-as-root --oversubscribe ...": [Runs(replace={"...": "-n 2 true"})],
    "mpirun --bind-to none ...": [Runs(replace={"...": "-n 2 true"})],
    "mpirun -x MS_SCHED_HOST=ADDRESS ...": [
        Runs(replace={"ADDRESS": "127.0.0.1", "...": "-n 2 printenv MS_SCHED_HOST"})
    ],
    "python train.py --model svt_small --summary": [Runs()],
    "python train.py -c configs/upernet_svt_s_ade20k.yaml --summary": [Runs()],
    "python train.py --config configs/svt_s_gpu.yaml --device_target CPU --data_dir images"
    " --dry_run": [Runs(TINY, tier="slow")],
    "python train.py -c configs/finetune.yaml --ckpt_path svt_small.ckpt --data_dir my_pets": [
        Runs("--image_size 64 --batch_size 2 --dry_run", tier="endurance")
    ],
    f"{FINETUNE} --ckpt_path svt_small.ckpt --data_dir my_pets --epoch_size 3": [RunsIn(JOURNEY)],
    "python validate.py --ckpt_path outputs/finetune/best.ckpt --data_dir my_pets": [
        RunsIn(JOURNEY)
    ],
    "python infer.py --ckpt_path outputs/finetune/best.ckpt --images photographs/"
    " --output_png classes.png": [RunsIn(JOURNEY)],
    LONGER: [RunsIn(JOURNEY)],
    f"{LONGER} --resume": [RunsIn(JOURNEY)],
    "python train.py -c configs/fpn_svt_s_ade20k.yaml --dataset pairs --data_dir fields"
    " --train_split train --val_split val --class_names fields/classes.txt --num_classes 7": [
        Runs(f"{TINY_FPN} --batch_size 2 --dry_run", tier="endurance")
    ],
    "mpirun -n 8 python train.py -c configs/upernet_svt_s_ade20k.yaml --data_dir"
    " ADEChallengeData2016 --pretrained_backbone svt_small.ckpt": [RunsIn(TWO_SEGMENTING_RANKS)],
    "python train.py --config configs/svt_tiny_digits.yaml": [RunsIn(A_RUN)],
    "python train.py -c configs/finetune.yaml --ckpt_path outputs/finetune/final.ckpt"
    " --data_dir my_pets --output_dir outputs/longer --epoch_size 20 --lr 1e-4 --warmup_epochs 0": [
        RunsIn("tests/test_cli_train.py::test_going_back_and_training_longer")
    ],
    # Evaluation and prediction
    "python validate.py -c configs/svt_tiny_digits.yaml"
    " --ckpt_path outputs/svt_tiny_digits/final.ckpt": [RunsIn(A_RUN)],
    "python validate.py --ckpt_path svt_small.ckpt --data_dir /imagenet": [
        Runs("--image_size 64 --batch_size 4 --class_names names.txt", tier="slow")
    ],
    "python validate.py -c configs/upernet_svt_s_ade20k.yaml --ckpt_path upernet_svt_small.ckpt"
    " --data_dir ADEChallengeData2016": [Runs(TINY_UPERNET, tier="slow")],
    "python infer.py --ckpt_path svt_small.ckpt --images photographs/ --output_png classes.png": [
        Runs("--image_size 64")
    ],
    "python infer.py --ckpt_path upernet_svt_small.ckpt --images photographs/"
    " --output_dir segmented": [Runs("--resize_scale 64,48", tier="slow")],
    "python demo.py --pt_path alt_gvt_small.pth": [Runs(tier="endurance")],
    # Detection
    "python validate.py --ckpt_path detector.ckpt --data_dir coco --output_json result.json": [
        RunsIn("tests/detection/test_task.py::test_validation_of_a_checkpoint_alone")
    ],
    "python infer.py --ckpt_path detector.ckpt --images photographs/ --output_dir found"
    " --least_score 0.5": [
        RunsIn("tests/detection/test_task.py::test_prediction_of_a_checkpoint_alone")
    ],
    "python train.py -c configs/retinanet_svt_s_1x.yaml --data_dir coco --pretrained_backbone"
    " svt_small.ckpt": [RunsIn(DETECTING)],
    "python train.py -c configs/retinanet_svt_s_1x.yaml --summary": [Runs()],
    "python train.py -c configs/maskrcnn_svt_s_1x.yaml --data_dir coco --pretrained_backbone"
    " svt_small.ckpt": [RunsIn(DETECTING)],
    **{
        f"python train.py -c configs/{model}_digits.yaml": [
            RunsIn(DETECTING),
            Runs("--data_dir digits --dry_run", tier="endurance"),
        ]
        for model in ("retinanet_svt_tiny", "maskrcnn_svt_tiny")
    },
    **{
        f"python validate.py -c configs/{model}_digits.yaml"
        f" --ckpt_path outputs/{model}_digits/final.ckpt": [
            RunsIn("tests/detection/test_task.py::test_validation_of_a_checkpoint_alone")
        ]
        for model in ("retinanet_svt_tiny", "maskrcnn_svt_tiny")
    },
    # Serving
    'pip install -e ".[serve]"': [NotRun("the Makefile installs all extras")],
    "python serve.py --ckpt_path svt_small.ckpt": [RunsIn(UNDER_LOAD)],
    "python serve.py --onnx_path svt_small.onnx --port 8080": [RunsIn(SERVED)],
    "python -m pytest -m endurance -s tests/serving/test_load.py": [RunsIn(UNDER_LOAD)],
    "curl --data-binary @photograph.jpg http://127.0.0.1:8000/predict": [
        RunsIn(f"{ASKED}::test_a_picture_as_body_and_in_a_form")
    ],
    "curl -F image=@photograph.jpg http://127.0.0.1:8000/predict": [
        RunsIn(f"{ASKED}::test_a_picture_as_body_and_in_a_form")
    ],
    "curl --data-binary @photograph.jpg -o overlay.png"
    ' "http://127.0.0.1:8000/predict?output=overlay"': [
        RunsIn(f"{ASKED}::test_pictures_of_an_answer")
    ],
    # Benchmarks
    "python -m benchmarks.parity": [Runs("--quick", tier="endurance")],
    "python -m benchmarks.step_parity": [Runs("--quick", tier="endurance")],
    "python -m benchmarks.region_choice": [Runs("--quick", tier="endurance")],
    "python -m benchmarks.operations": [Runs("--quick", tier="endurance")],
    "OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.operations": [
        Runs("--quick", tier="endurance")
    ],
    "python -m benchmarks.speed --threads 1 --parts inference training --models svt_small": [
        Runs("--quick", tier="endurance")
    ],
    "python -m benchmarks.speed --parts segmentation": [Runs("--quick", tier="endurance")],
    "python -m benchmarks.speed --parts other_pytorch": [Runs("--quick", tier="endurance")],
    "python -m benchmarks.speed --parts inference other_runtimes training"
    " --models svt_small pcpvt_small": [Runs("--quick", tier="endurance")],
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=0 python -m benchmarks.speed --parts inference training"
    " --models svt_small --cases inference,224,1 inference,224,16 training,224,8": [
        Runs("--quick", tier="endurance")
    ],
    "python -m benchmarks.speed --parts detection detection_training features segmentation"
    " --torch_python tv/bin/python": [
        Runs("--quick", replace={" --torch_python tv/bin/python": ""}, tier="endurance")
    ],
    "python -m benchmarks.speed --parts memory --models svt_small --cases inference,224,1": [
        Runs("--quick", tier="endurance")
    ],
    "python -m benchmarks.speed --parts memory --models svt_small"
    " --cases training,512,7 training,512,8": [Runs("--quick", tier="endurance")],
    "python -m benchmarks.gpu": [RunsIn(ON_GPU)],
    # Exports
    "python export.py --ckpt_path svt_small.ckpt --file_name svt_small.onnx": [
        Runs("--image_size 64", tier="slow")
    ],
    "python export.py --ckpt_path svt_small.ckpt --file_name svt_small.mindir": [
        Runs("--image_size 64 --batch_size 1", tier="slow")
    ],
    "python export.py --ckpt_path svt_small.ckpt --file_name pictures.onnx --preprocess": [
        RunsIn("tests/export/test_preprocess.py::test_the_command_tells_how_many_differ")
    ],
    "python export.py --ckpt_path svt_small.ckpt --file_name svt_small_int8.onnx"
    " --precision int8": [
        RunsIn("tests/export/test_precision.py::test_int8_is_as_far_off_as_it_says")
    ],
    "python export.py --ckpt_path svt_small.ckpt --file_name svt_small_bf16.onnx"
    " --precision bf16": [
        RunsIn("tests/export/test_precision.py::test_bf16_is_a_float32_file_for_openvino")
    ],
    "python validate.py --onnx_path svt_small.onnx --data_dir /imagenet": [
        RunsIn("tests/test_export.py::test_the_exported_file_has_the_checkpoint_s_accuracy")
    ],
    "python infer.py --onnx_path svt_small.onnx --images photographs/": [
        RunsIn("tests/test_export.py::test_the_exported_file_predicts_what_the_checkpoint_does")
    ],
    'pip install "onnx>=1.17,<2" "onnxruntime>=1.20" "numpy<2" scikit-learn': [
        NotRun("the Makefile does the same")
    ],
    "pip install openvino": [NotRun("the Makefile does the same")],
    # MindSpore with CUDA
    "python3.11 -m venv .venv && . .venv/bin/activate": [NotRun("the Makefile does the same")],
    'pip install mindspore==2.10.0 -e ".[convert,demo]"': [NotRun("the Makefile does the same")],
    "pip install nvidia-cuda-runtime-cu11==11.8.89 nvidia-cuda-nvrtc-cu11==11.8.89"
    " nvidia-cublas-cu11==11.11.3.6 nvidia-cudnn-cu11==8.9.6.50 nvidia-cufft-cu11==10.9.0.58"
    " nvidia-curand-cu11==10.3.0.86 nvidia-cusolver-cu11==11.4.1.48"
    " nvidia-cusparse-cu11==11.7.5.86": [NotRun("gigabytes that only a GPU needs")],
    "export CUDA_HOME=/usr/local/cuda-11.8 PATH=/usr/local/cuda-11.8/bin:$PATH": [Runs()],
    """site=$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')""": [
        Runs("&& test -d $site/mindspore/lib")
    ],
    "export LD_LIBRARY_PATH=$site/mindspore/lib:$site/mindspore/lib/plugin/gpu11.6:"
    "$(echo $site/nvidia/*/lib | tr ' ' ':'):$LD_LIBRARY_PATH": [Runs()],
    """python -c 'import mindspore as ms; ms.set_device("GPU"); ms.run_check()'""": [
        RunsIn(ON_GPU)
    ],
}


# The desk: a folder in which commands find what they name


def photograph(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 72, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def label_map(path: Path, classes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(0).integers(0, classes, (64, 72), np.uint8)
    Image.fromarray(labels).save(path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, small data, and checkpoints; what the docs call svt_small is svt_tiny here."""
    folder = tmp_path_factory.mktemp("desk")
    for name in (
        "train.py",
        "validate.py",
        "infer.py",
        "export.py",
        "demo.py",
        "convert",
        "configs",
    ):
        (folder / name).symlink_to(ROOT / name)
    photograph(folder / "photographs" / "china.jpg")
    for name, split, number in product(("imagenet", "images", "my_pets"), ("train", "val"), "0123"):
        photograph(folder / name / split / f"class{int(number) % 2}" / f"{number}.jpg")
    for name, splits, classes in (
        ("ADEChallengeData2016", ("training", "validation"), 151),
        ("fields", ("train", "val"), 7),
    ):
        for split, number in product(splits, "01"):
            photograph(folder / name / "images" / split / f"{number}.jpg")
            label_map(folder / name / "annotations" / split / f"{number}.png", classes)
    for path, names in (("names.txt", 1000), ("fields/classes.txt", 7)):
        (folder / path).write_text("".join(f"class{i}\n" for i in range(names)))

    classifier = randomize(create_reference("svt_tiny")).state_dict()
    torch.save({"model": classifier}, folder / "alt_gvt_small.pth")
    demo.write_random_checkpoint("upernet_svt_tiny", folder / "twins_svt-s_uperhead.pth")
    for source, target in (
        ("alt_gvt_small.pth", "svt_small.ckpt"),
        ("twins_svt-s_uperhead.pth", "upernet_svt_small.ckpt"),
    ):
        paths = ("--pt_path", str(folder / source), "--ckpt_path", str(folder / target))
        run_here(str(ROOT / "convert" / "pt2ms.py"), *paths)
    return folder


# The tests


def checks() -> list:
    """A command and a way to check it, each under the command's name and in its tier."""
    found = []
    for command, ways in COMMANDS.items():
        for way in ways:
            marks = [getattr(pytest.mark, way.tier)] if way.tier else []
            if isinstance(way, Runs) and "mpirun" in command:
                marks.append(needs_mpirun)
            name = f"{command} [{type(way).__name__}]"
            found.append(pytest.param(command, way, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("command", "way"), checks())
def test_command(command: str, way: Runs | RunsIn | Target | NotRun, request, monkeypatch):
    if isinstance(way, Runs):
        monkeypatch.chdir(request.getfixturevalue("desk"))
    way.check(command)


@pytest.mark.endurance
def test_the_journey(desk: Path, monkeypatch: pytest.MonkeyPatch):
    """Its commands after each other, from the converted file on, with a small model."""
    monkeypatch.chdir(desk)
    cheap = {FINETUNE: "--image_size 64 --batch_size 2", LONGER: "--max_steps 2"}
    _, *steps = commands(ROOT / "docs/journey.md")
    for command in steps:
        more = [flags for begin, flags in cheap.items() if command.startswith(begin)]
        if "--resume" in command:
            more.remove("--max_steps 2")
        run_here(*shlex.split(" ".join([command, *more]))[1:])
    log = [json.loads(line) for line in Path("outputs/longer/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(4))
    assert Path("classes.png").exists() and Path("outputs/longer/best.ckpt").exists()


def test_every_command_has_a_row_and_every_row_a_command():
    missing = [f"{page}: {command}" for command, page in FOUND.items() if command not in COMMANDS]
    assert missing == [], "COMMANDS says nothing of them"
    assert [command for command in COMMANDS if command not in FOUND] == [], "no page has them"


@pytest.mark.parametrize("command", [c for c in FOUND if any(s in c.split() for s in CONFIGS)])
def test_the_configuration_of_a_command_is_valid(command: str, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    script = next(script for script in CONFIGS if script in words)
    parse_config(CONFIGS[script], words[words.index(script) + 1 :], "")


def test_every_flag_exists():
    sources = [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/**/*.py")]
    sources += [*ROOT.glob("mindtwins/commands/*.py"), ROOT / "mindtwins/__main__.py"]
    sources.append(ROOT / "mindtwins/config/parsing.py")
    known = {flag for path in sources for flag in re.findall(r'"(--\w+)"', path.read_text())}
    known |= {f"--{item.name}" for config in CONFIGS.values() for item in fields(config)}
    known |= {"--help", *LAUNCHERS_FLAGS, *CURLS_FLAGS}
    for page in PAGES:
        code = [*inline_code(page), *blocks(page, "bash")]
        named = {flag for text in code for flag in re.findall(r"(?<![\w-])--\w[\w-]*", text)}
        assert named <= known, page


def test_every_file_and_link_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target
        for code in inline_code(page):
            if code.startswith(TOP_FOLDERS) and " " not in code:
                for pattern in expand_braces(code):
                    assert list(ROOT.glob(pattern)), f"{page}: {pattern}"


def expand_braces(pattern: str) -> list[str]:
    """As the shell does: `a{b,c}` is ab and ac."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, after = rest.partition("}")
    return [before + word + end for word in inside.split(",") for end in expand_braces(after)]


def test_blocks_have_a_language():
    """So that a block of commands is not overlooked."""
    for page in PAGES:
        assert {name for name, _ in FENCED.findall(page.read_text())} <= {"bash", "python", "text"}


@pytest.mark.slow
def test_python_of_the_readme(desk: Path, monkeypatch):
    monkeypatch.chdir(desk)
    scope = {"images": Tensor(np.zeros((2, 3, 64, 64), np.float32))}
    classify, segment = (
        # The checkpoints of that name are small.
        re.sub(r'(create_\w+\("\w*svt_)small', r"\1tiny", block)
        for block in blocks(ROOT / "README.md", "python")
    )
    exec(classify, scope)
    assert f"# {mindtwins.list_models()}" in classify
    assert scope["logits"].shape == (2, 1000)
    assert [64 // stage_map.shape[2] for stage_map in scope["maps"]] == [4, 8, 16, 32]
    assert scope["trained"].metadata["variant"] == "svt_tiny"
    assert scope["trained"].classes[281] == "tabby, tabby cat"
    exec(segment, scope)
    assert scope["logits"].shape == (2, 150, 16, 16)


def rows(page: Path, first_cell: str) -> list[list[str]]:
    """The cells of the rows of a page's tables whose first cell is like that, without backticks."""
    found = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in page.read_text().splitlines()
        if line.startswith("|")
    ]
    return [row for row in found if re.fullmatch(first_cell, row[0])]


def test_models_of_the_readme():
    table = rows(ROOT / "README.md", r"(pcpvt|svt)_(small|base|large)")
    table = [row for row in table if row[4].endswith(".pth")]  # the other is of parity
    assert [row[0] for row in table] == mindtwins.list_models()
    for name, parameters, products, *_ in table:
        parts = count(name)
        assert parameters == f"{sum(part.parameters for part in parts):,}"
        assert products == f"{sum(part.layer_products for part in parts) / 1e9:.1f} G"


def test_recipes_of_the_readme():
    table = rows(ROOT / "README.md", r"configs/\w+\.yaml")
    assert len(table) == 6
    for path, images, peak, drop_path, warmup in table:
        config = parse_config(TrainConfig, ["-c", str(ROOT / path)], "")
        assert images == f"8 x {config.batch_size}"
        global_batch = 8 * config.batch_size
        assert float(peak) == pytest.approx(config.lr * global_batch / config.lr_reference_batch)
        assert float(drop_path.split()[0]) == config.drop_path_rate
        assert int(warmup) == config.warmup_epochs


def test_layout_of_the_readme():
    """It names each package and module of `mindtwins`."""
    (layout,) = (text for text in blocks(ROOT / "README.md", "text") if "mindtwins/" in text)
    inside = re.findall(r"^  (\S.*?)  ", layout, re.MULTILINE)
    named = {name.rstrip("/") for names in inside for name in names.split()}
    there = {path.parent.name for path in ROOT.glob("mindtwins/*/__init__.py")}
    there |= {path.name for path in ROOT.glob("mindtwins/*.py")} - {"__init__.py"}
    assert named == there
