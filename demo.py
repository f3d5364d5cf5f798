"""The main job on embedded data: train, validate, convert, classify.

    python demo.py [--output_dir outputs/demo] [--pt_path alt_gvt_small.pth]

Each step is a command that anybody can run on data of their own; it is printed before it runs.
Published weights cannot be shipped with the code, so unless --pt_path names a PyTorch checkpoint
the conversion step makes one of random weights: it shows that nothing is lost, and its class
numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

from mindtwins.errors import UserError, run_cli

CONFIG = "configs/svt_tiny_digits.yaml"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--pt_path", type=Path, help="PyTorch checkpoint to convert")
    arguments = parser.parse_args(argv)
    out = arguments.output_dir
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    digits, rows = out / "digits", []

    def step(title: str, *command: object) -> None:
        words = ["python", *map(str, command)]
        print(f"\n== {title}\n$ {shlex.join(words)}", flush=True)
        started = time.perf_counter()
        if subprocess.run([sys.executable, *words[1:]]).returncode:
            raise UserError(f"the demo stopped: `{shlex.join(words)}` failed, see above")
        rows.append([title, f"{time.perf_counter() - started:.0f} s", ""])

    step("train on digits", "train.py", "-c", CONFIG, "--output_dir", digits)
    step(
        "validate the checkpoint",
        *("validate.py", "-c", CONFIG, "--ckpt_path", digits / "best.ckpt"),
        *("--output_json", out / "validation.json"),
    )
    validation = json.loads((out / "validation.json").read_text())
    rows[-1][2] = f"top-1 {validation['top1']:.2f} % of {validation['images']} held-out images"

    source = arguments.pt_path or write_random_checkpoint(out / "alt_gvt_small.pth")
    converted, report = out / "converted.ckpt", out / "conversion.json"
    step(
        "convert from PyTorch",
        *("convert/pt2ms.py", "--pt_path", source, "--ckpt_path", converted),
        *("--verify", "--report", report),
    )
    rows[-1][2] = describe_conversion(json.loads(report.read_text()))

    predictions = out / "predictions.json"
    step(
        "classify two photographs",
        *("infer.py", "--ckpt_path", converted, "--output_json", predictions),
        *("--images", resources.files("sklearn.datasets.images")),
    )
    found = json.loads(predictions.read_text())
    rows[-1][2] = ", ".join(
        f"{Path(image['file']).name}: class {image['classes'][0]}" for image in found
    )
    width = max(len(title) for title, _, _ in rows)
    print(f"\n{'step':<{width}}  {'time':>5}  result")
    for title, seconds, result in rows:
        print(f"{title:<{width}}  {seconds:>5}  {result}")


def describe_conversion(report: dict) -> str:
    """One line of a conversion report: what was used, and the largest deviation of the logits."""
    logits = [row for row in report["verification"] if row["stage"] in ("logits", "pooled")]
    worst = max(row["max_abs"] for row in logits)
    floor = max(row["max_abs_floor"] for row in logits)
    return (
        f"{report['metadata']['variant']}: {len(report['account']['used'])} tensors, logits within"
        f" {worst:.1e} of their std (PyTorch's own rounding: {floor:.1e})"
    )


def write_random_checkpoint(path: Path) -> Path:
    """A PyTorch SVT-S state dict in the official layout, of seeded random weights."""
    import torch

    from mindtwins.reference import create_reference
    from mindtwins.reference.weights import randomise

    torch.save({"model": randomise(create_reference("svt_small")).state_dict()}, path)
    print(f"\nwrote {path}: random weights, since no published ones can be shipped")
    return path


if __name__ == "__main__":
    run_cli(main)
