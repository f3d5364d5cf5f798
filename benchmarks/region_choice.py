"""What choosing the regions costs a training step of Mask R-CNN: the table.

    python -m benchmarks.region_choice

A step first computes the backbone, the pyramid and the proposals without a gradient, and chooses
regions among these on arrays; then comes the pass that is differentiated. Processor seconds and
seconds of one step, and the part of the former that is spent before that pass.
"""

from __future__ import annotations

import statistics

from benchmarks.command import Table, parser
from benchmarks.inputs import normal, pictured_objects
from benchmarks.timing import Cost, cost_of
from mindtwins.detection.assignment import SECOND_STAGE_SAMPLING, Sampling
from mindtwins.detection.loss import MaskRCNNLoss
from mindtwins.detection.mask_rcnn import MaskRCNN
from mindtwins.detection.regions import RegionChoice
from mindtwins.detection.variants import create_detector
from mindtwins.errors import run_cli
from mindtwins.execution import use_device
from mindtwins.training.step import MicroBatch, build_train_step

# Model, images, height, width, and regions of an image: of the digits' recipe, and of COCO's.
CASES = {
    "maskrcnn_svt_tiny": (8, 128, 128, 32),
    "maskrcnn_svt_small": (1, 416, 672, 512),
}
QUICK = (1, 64, 64, 32)
CLASSES = 10


def main(argv: list[str]) -> None:
    """Train and print."""
    command = parser(__doc__)
    command.add_argument("--models", nargs="+", default=list(CASES), choices=CASES)
    options = command.parse_args(argv)
    use_device(options.device_target)
    columns = ("processor s", "s", "of it choosing")
    table = Table("a step, and choosing its regions", "model", *columns)
    for name in ["maskrcnn_svt_tiny"] if options.quick else options.models:
        count, height, width, regions = QUICK if options.quick else CASES[name]
        objects = pictured_objects(count, (height, width), CLASSES)
        batch = MicroBatch(normal(count, 3, height, width), objects)
        model = create_detector(name, CLASSES, drop_path_rate=0.0).set_train()
        assert isinstance(model, MaskRCNN)
        choose = RegionChoice(model, Sampling(regions, SECOND_STAGE_SAMPLING.positive))
        step = build_train_step(model, MaskRCNNLoss(model), complete=choose)
        step([batch], 1e-5)  # compiles
        costs: dict[str, list[Cost]] = {"step": [], "choice": []}
        for _ in range(1 if options.quick else 5):
            costs["choice"].append(cost_of(lambda: choose(batch)))  # noqa: B023
            costs["step"].append(cost_of(lambda: step([batch], 1e-5)))  # noqa: B023
        of_step, of_choice = (
            Cost(*(statistics.median(values) for values in zip(*measured, strict=True)))
            for measured in costs.values()
        )
        case = f"{name}, {count} x {height} x {width}, {regions} regions"
        share = f"{100 * of_choice.cpu / of_step.cpu:.0f} %"
        table.row(case, f"{of_step.cpu:.2f}", f"{of_step.wall:.2f}", share)


if __name__ == "__main__":
    run_cli(main)
