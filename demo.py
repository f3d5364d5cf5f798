"""The main job on embedded data: train, validate, convert, and use the result.

    python demo.py [--task detection] [--output_dir outputs/demo] [--pt_path weights.pth]

Each step is a command that anybody can run on data of their own; it is printed before it runs.
Published weights cannot be shipped with the code, so unless --pt_path names a PyTorch checkpoint
the conversion step makes one of random weights: it shows that nothing is lost, and the classes that
it finds mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

from mindtwins.cli import Parser
from mindtwins.errors import UserError, run_cli
from mindtwins.files import check_readable


def main(argv: list[str]) -> None:
    """Run the demo of a task and print its table."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=DEMOS, default="classification")
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="a new or empty folder; default: outputs/demo_<task>, which each run empties",
    )
    parser.add_argument("--pt_path", type=Path, help="PyTorch checkpoint to convert")
    arguments = parser.parse(argv)
    # The scripts, recipes and data of the demo are the checkout's, from wherever it is started.
    for name in ("output_dir", "pt_path"):
        if getattr(arguments, name) is not None:
            setattr(arguments, name, getattr(arguments, name).absolute())
    os.chdir(Path(__file__).parent)
    if arguments.pt_path is not None:
        check_readable(arguments.pt_path)
    demo = Demo(prepare_folder(arguments.output_dir, arguments.task), arguments.pt_path)
    DEMOS[arguments.task](demo)
    demo.print_table()


def prepare_folder(asked_for: Path | None, task: str) -> Path:
    """An empty folder; only the demo's own is emptied.

    Raises:
        UserError: the folder that was asked for cannot be made or has something in it.
    """
    out = asked_for or Path(f"outputs/demo_{task}")
    if asked_for is None:
        shutil.rmtree(out, ignore_errors=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"--output_dir {out} is not empty: choose a new folder")
    except OSError as error:
        raise UserError(f"cannot write to --output_dir {out}: {error.strerror}") from error
    return out


class Demo:
    """Runs commands and remembers how long each took and what came of it.

    Attributes:
        out: folder of everything that is written.
        pt_path: the PyTorch checkpoint to convert; None for one of random weights.
    """

    def __init__(self, out: Path, pt_path: Path | None) -> None:
        self.out = out
        self.pt_path = pt_path
        self._rows: list[tuple[str, str, str]] = []

    def step(self, title: str, *command: object) -> None:
        """Print a command and run it; `add_result` says what came of it."""
        words = ["python", *map(str, command)]
        print(f"\n== {title}\n$ {shlex.join(words)}", flush=True)
        started = time.perf_counter()
        if subprocess.run([sys.executable, *words[1:]]).returncode:
            raise UserError(f"the demo stopped: `{shlex.join(words)}` failed, see above")
        self._rows.append((title, f"{time.perf_counter() - started:.0f} s", ""))

    def add_result(self, result: str) -> None:
        """What came of the last step."""
        self._rows[-1] = (*self._rows[-1][:2], result)

    def train_and_validate(self, config: str) -> dict:
        """Train a recipe and evaluate its best weights; the evaluation's result."""
        trained, validation = self.out / "trained", self.out / "validation.json"
        self.step("train", "train.py", "-c", config, "--output_dir", trained)
        epochs = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
        losses = f"{epochs[0]['train_loss']:.2f} to {epochs[-1]['train_loss']:.2f}"
        self.add_result(f"{len(epochs)} epochs, mean loss {losses}")
        self.step(
            "validate the checkpoint",
            *("validate.py", "-c", config, "--ckpt_path", trained / "best.ckpt"),
            *("--output_json", validation),
        )
        return json.loads(validation.read_text())

    def use(self, title: str, config: str, data: str) -> Path:
        """Infer four of the images in a folder with the best weights; the folder of what came."""
        pictures, images = self.out / "found", self.out / "some_images"
        images.mkdir()
        for path in sorted(Path(data).iterdir())[:4]:
            shutil.copy(path, images)
        self.step(
            title,
            *("infer.py", "-c", config, "--ckpt_path", self.out / "trained/best.ckpt"),
            *("--images", images, "--output_dir", pictures),
        )
        return pictures

    def convert(self, name: str) -> Path:
        """Convert the PyTorch checkpoint, or a random one of this model, and verify it."""
        source = self.pt_path or write_random_checkpoint(name, self.out / f"{name}.pth")
        converted, report = self.out / "converted.ckpt", self.out / "conversion.json"
        self.step(
            "convert from PyTorch",
            *("convert/pt2ms.py", "--pt_path", source, "--ckpt_path", converted),
            *("--verify", "--report", report),
        )
        self.add_result(describe_conversion(json.loads(report.read_text())))
        return converted

    def print_table(self) -> None:
        """All steps, their times and results."""
        width = max(len(title) for title, _, _ in self._rows)
        print(f"\n{'step':<{width}}  {'time':>5}  result")
        for title, seconds, result in self._rows:
            print(f"{title:<{width}}  {seconds:>5}  {result}")


def classification(demo: Demo) -> None:
    """Handwritten digits; then two photographs with a converted SVT-S."""
    found = demo.train_and_validate("configs/svt_tiny_digits.yaml")
    demo.add_result(f"top-1 {found['top1']:.2f} % of {found['images']} held-out images")
    converted = demo.convert("svt_small")
    predictions = demo.out / "predictions.json"
    demo.step(
        "classify two photographs",
        *("infer.py", "--ckpt_path", converted, "--output_json", predictions),
        *("--images", resources.files("sklearn.datasets.images")),
    )
    classes = [
        f"{Path(image['file']).name}: class {image['classes'][0]}"
        for image in json.loads(predictions.read_text())
    ]
    demo.add_result(", ".join(classes))


def segmentation(demo: Demo) -> None:
    """Handwritten digits on textures; then a converted UPerNet SVT-S."""
    config = "configs/fpn_svt_tiny_digits.yaml"
    found = demo.train_and_validate(config)
    demo.add_result(
        f"mIoU {found['miou']:.2f} %, pixels {found['aacc']:.2f} % of {found['images']} held-out"
        " images"
    )
    pictures = demo.use("segment images", config, "data/segmentation_digits/images/validation")
    demo.add_result(f"see {pictures}/*_overlay.png")
    demo.convert("upernet_svt_small")


def detection(demo: Demo) -> None:
    """Handwritten digits on textures, with their masks; then a converted Mask R-CNN SVT-S."""
    config = "configs/maskrcnn_svt_tiny_digits.yaml"
    found = demo.train_and_validate(config)
    demo.add_result(
        f"box AP {found['box']['AP']:.2f} %, AP50 {found['box']['AP50']:.2f} %, "
        f"mask AP {found['mask']['AP']:.2f} % of {found['images']} held-out images"
    )
    pictures = demo.use("find objects", config, "data/detection_digits/val")
    demo.add_result(f"see {pictures}/*_objects.png")
    demo.convert("maskrcnn_svt_small")


DEMOS = {"classification": classification, "segmentation": segmentation, "detection": detection}


def describe_conversion(report: dict) -> str:
    """One line of a conversion report: what was used, and the outputs' largest deviation."""
    outputs = [row for row in report["verification"] if not row["stage"].startswith("stage")]
    worst = max(row["max_abs"] for row in outputs)
    floor = max(row["max_abs_floor"] for row in outputs)
    return (
        f"{report['metadata']['variant']}: {len(report['account']['used'])} tensors, outputs within"
        f" {worst:.1e} of their std (PyTorch's own rounding: {floor:.1e})"
    )


def write_random_checkpoint(name: str, path: Path) -> Path:
    """A PyTorch state dict of seeded random weights, as the authors' and OpenMMLab's files are."""
    import torch

    from mindtwins import list_models
    from mindtwins.detection.variants import list_detectors
    from mindtwins.reference import create_reference
    from mindtwins.reference.detection import create_detection_reference
    from mindtwins.reference.segmentation import create_segmentation_reference
    from mindtwins.reference.weights import randomize

    if name in list_models():
        content = {"model": randomize(create_reference(name)).state_dict()}
    else:
        is_detector = name in list_detectors()
        create = create_detection_reference if is_detector else create_segmentation_reference
        content = {"state_dict": randomize(create(name)).state_dict()}
    torch.save(content, path)
    print(f"\nwrote {path}: random weights, since no published ones can be shipped")
    return path


if __name__ == "__main__":
    run_cli(main)
