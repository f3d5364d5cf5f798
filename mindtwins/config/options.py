"""The dataclasses that say what can be set: the one list of options.

Defaults, `--help`, value checks and the docs come from them. Keys are flat and unique over all
sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mindtwins.errors import UserError


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    resume_safe: bool = False,
    bare: Any = None,
    path: bool = False,
    formerly: Any = None,
) -> Any:
    """A field of a section.

    Args:
        resume_safe: the option does not change what is learned, so a resumed run may change it.
        bare: the value of the flag when it is given without one (`--resume`).
        path: a file or folder; `~` stands for the user's own. Relative ones start from where the
            script runs.
        formerly: what runs did that began before there was the option. A run that is continued
            keeps what it did, unless a flag says otherwise.
    """
    return field(
        default=default,
        metadata={
            "doc": doc,
            "choices": choices,
            "at_least": at_least,
            "at_most": at_most,
            "above": above,
            "resume_safe": resume_safe,
            "bare": bare,
            "path": path,
            "formerly": formerly,
        },
    )


# `pretrained` as a flag without a value: the weights that the authors published.
PUBLISHED_WEIGHTS = "published"

# How a training starts: a recipe may state it, but it says nothing of trained weights.
STARTING_POINT = ("drop_head", "pretrained_backbone")


@dataclass(frozen=True)
class Section:
    """A group of options; the docstring of each is its title in `--help`."""


@dataclass(frozen=True)
class ModelSection(Section):
    """model"""

    task: str = option(
        "classification",
        "what to train for",
        choices=("classification", "segmentation", "detection"),
    )
    model: str = option(
        "svt_small",
        "variant, such as svt_small; with task segmentation upernet_svt_small, with task detection "
        "retinanet_svt_small",
    )
    num_classes: int = option(1000, "number of classes", at_least=1)
    image_size: int = option(
        224,
        "height and width of the input in pixels (segmentation: while training; detection: see "
        "resize_scale)",
        at_least=32,
    )
    ckpt_path: str = option(
        "",
        "checkpoint to start from (train) or to evaluate (validate)",
        resume_safe=True,
        path=True,
    )
    pretrained: str = option(
        "",
        "instead of ckpt_path: a PyTorch file, a folder or a hub repository (owner/name) with the "
        "weights; without a value: those that the authors published for the model, from the hub",
        resume_safe=True,
        bare=PUBLISHED_WEIGHTS,
        path=True,
    )
    drop_head: bool = option(
        False,
        "train: start with fresh classifiers: do not load the last layers of ckpt_path (or "
        "pretrained)",
        resume_safe=True,
    )
    pretrained_backbone: str = option(
        "",
        "train, segmentation and detection: classification checkpoint whose backbone to start "
        "from (not with ckpt_path or pretrained)",
        resume_safe=True,
        path=True,
    )
    drop_path_rate: float = option(
        0.0, "stochastic depth of the last block, growing linearly from 0", at_least=0, at_most=0.99
    )
    window_padding: str = option(
        "",
        "rule for feature maps that are not a multiple of 7; empty: the checkpoint's, else zeros "
        "(segmentation: mask)",
        choices=("none", "zeros", "mask"),
    )
    patch_rounding: str = option(
        "",
        "rule for images that are not a multiple of the patch; empty: the checkpoint's, else floor "
        "(segmentation: ceil)",
        choices=("floor", "ceil"),
    )


@dataclass(frozen=True)
class DataSection(Section):
    """data"""

    dataset: str = option(
        "imagefolder",
        "imagefolder: class folders; list: files of `path label` lines; ade20k: images/ and "
        "annotations/; pairs: the same with class_names; coco: folders of pictures, and "
        "annotations/instances_*.json; digits: scikit-learn's digits, written to data_dir if they "
        "are not there",
        choices=("imagefolder", "list", "ade20k", "pairs", "coco", "digits"),
    )
    data_dir: str = option(
        "",
        "folder with the splits, or (validate) the ImageFolder itself; segmentation: the folder "
        "with images/ and annotations/; detection: COCO's folder",
        resume_safe=True,
        path=True,
    )
    class_names: str = option(
        "",
        "text file with a class name per line, or JSON (infer; dataset: pairs)",
        resume_safe=True,
        path=True,
    )
    ignore_label_zero: bool = option(
        False, "dataset pairs: label 0 is ignored, and class k has label k + 1"
    )
    train_split: str = option(
        "train", "folder of the training split, below data_dir (coco: train2017, if it is there)"
    )
    val_split: str = option(
        "val", "folder of the validation split, below data_dir (coco: val2017, if it is there)"
    )
    train_list: str = option("", "list file of the training split (dataset: list)", path=True)
    val_list: str = option("", "list file of the validation split (dataset: list)", path=True)
    crop_pct: float = option(
        0.875, "evaluation: the crop's share of the resized image", above=0, at_most=1
    )
    mean: tuple[float, float, float] = option(
        (0.485, 0.456, 0.406), "mean per channel, pixels in [0, 1]"
    )
    std: tuple[float, float, float] = option(
        (0.229, 0.224, 0.225), "standard deviation per channel, pixels in [0, 1]"
    )
    exif_orientation: bool = option(
        False,
        "turn pictures upright by their EXIF orientation (the published accuracies were measured "
        "without)",
    )
    max_pixels: int = option(
        178_956_970, "pictures of more pixels are refused", at_least=1, resume_safe=True
    )
    num_parallel_workers: int = option(
        8,
        "workers that decode and augment (capped at the machine's cores)",
        at_least=1,
        resume_safe=True,
    )
    python_multiprocessing: bool = option(
        False, "decode and augment in processes instead of threads", resume_safe=True
    )
    skip_bad_images: bool = option(
        False,
        "log and count unreadable images instead of stopping at the first",
        resume_safe=True,
    )


@dataclass(frozen=True)
class AugmentationSection(Section):
    """augmentation"""

    scale: tuple[float, float] = option(
        (0.08, 1.0), "random resized crop: range of the area, as a share of the image's"
    )
    ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "random resized crop: range of width / height"
    )
    interpolation: str = option(
        "bicubic", "of the random resized crop", choices=("bicubic", "bilinear", "random")
    )
    hflip: float = option(0.5, "probability of a horizontal flip", at_least=0, at_most=1)
    auto_augment: str = option(
        "", "RandAugment policy in timm's words, such as rand-m9-mstd0.5-inc1; empty: none"
    )
    color_jitter: float = option(
        0.0,
        "strength of brightness, contrast and saturation jitter (as timm: ignored with "
        "auto_augment)",
        at_least=0,
        at_most=1,
    )
    re_prob: float = option(0.0, "probability of random erasing", at_least=0, at_most=1)
    re_mode: str = option(
        "pixel",
        "what an erased area is filled with: zeros, one random color, or random pixels",
        choices=("const", "rand", "pixel"),
    )
    re_count: int = option(1, "most areas erased in one image", at_least=1)
    mixup: float = option(0.0, "alpha of mixup; 0: off", at_least=0)
    cutmix: float = option(0.0, "alpha of cutmix; 0: off", at_least=0)
    mixup_prob: float = option(
        1.0, "probability of mixing at all (mixup or cutmix)", at_least=0, at_most=1
    )
    mixup_switch_prob: float = option(
        0.5, "probability of cutmix where both are on", at_least=0, at_most=1
    )
    mixup_mode: str = option(
        "batch",
        "one mix for the whole batch, per pair of images, or per image",
        choices=("batch", "pair", "elem"),
    )
    mixup_draws: str = option(
        "rank",
        "mixup_mode batch: one mix for each rank's part of a global batch, as each of the authors' "
        "processes drew its own, or one for all of it, which no number of ranks changes",
        choices=("rank", "global"),
        formerly="global",
    )
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes", at_least=0, at_most=0.99
    )


@dataclass(frozen=True)
class SegmentationSection(Section):
    """segmentation"""

    resize_scale: tuple[int, int] = option(
        (2048, 512),
        "long and short side that images are resized to fit, keeping their aspect (detection too)",
    )
    resize_ratio: tuple[float, float] = option(
        (0.5, 2.0), "training: range of the factor of resize_scale"
    )
    category_max_ratio: float = option(
        0.75, "training: largest share of one class in a crop", above=0, at_most=1
    )
    photometric_distortion: bool = option(
        True, "training: random brightness, contrast, saturation and hue"
    )
    auxiliary_weight: float = option(
        0.4, "training: weight of the auxiliary head's loss (UPerNet)", at_least=0
    )
    test_mode: str = option(
        "whole", "evaluation: the whole image at once, or in windows", choices=("whole", "slide")
    )
    test_crop: int = option(512, "slide: height and width of the window", at_least=32)
    test_stride: int = option(341, "slide: distance of the windows, at most test_crop", at_least=1)
    test_ratios: tuple[float, ...] = option(
        (1.0,), "evaluation: factors of resize_scale whose probabilities are averaged"
    )
    test_flip: bool = option(False, "evaluation: also average over mirrored images")


@dataclass(frozen=True)
class DetectionSection(Section):
    """detection"""

    multi_scale: bool = option(
        False,
        "training: sizes and crops by DETR's policy (short side 480 to 800 pixels) instead of "
        "resize_scale",
    )
    size_steps: int = option(
        0,
        "training: batches are padded so that each side is one of so many even parts of "
        "resize_scale's, as every size compiles a graph of its own; 0: to multiples of 32, as "
        "MMDetection does",
        at_least=0,
    )
    region_samples: int = option(
        512,
        "training: regions of a picture that Mask R-CNN's second stage learns from, a quarter of "
        "them at most of objects",
        at_least=4,
        at_most=2000,
    )


@dataclass(frozen=True)
class OptimizationSection(Section):
    """optimization (AdamW)"""

    batch_size: int = option(
        128, "images per rank and micro-batch", at_least=1, resume_safe=True
    )  # resume_safe: what must not change is the global batch (or, by the task, that of a pass)
    gradient_accumulation_steps: int = option(
        1, "micro-batches per optimizer step", at_least=1, resume_safe=True
    )
    betas: tuple[float, float] = option((0.9, 0.999), "decay of the two moments")
    eps: float = option(1e-8, "added to the root of the second moment", above=0)
    weight_decay: float = option(0.05, "decoupled decay", at_least=0)
    no_decay: tuple[str, ...] = option(
        ("1d", "pos_block"),
        "what is not decayed: 1d (biases, norms), norm (layer norms), pos_block; empty: all is",
        choices=("1d", "norm", "pos_block"),
    )
    clip_grad: float = option(5.0, "largest global norm of the gradient; 0: no limit", at_least=0)
    layer_decay: float = option(
        1.0, "factor of the learning rate per block, counted from the head", above=0, at_most=1
    )
    freeze_backbone: bool = option(False, "train the heads only")
    ema: bool = option(False, "keep and evaluate a moving average of the weights")
    ema_decay: float = option(0.9999, "decay of the average per step", above=0, at_most=0.999999)
    amp_level: str = option(
        "O0",
        "fp16: O0 nothing; O1 linear layers and convolutions; O2 everything but norms and the "
        "loss; O3 everything but the loss and batch norms",
        choices=("O0", "O1", "O2", "O3"),
    )
    loss_scale: float = option(
        65536.0,
        "initial dynamic loss scale (amp_level O1 to O3)",
        at_least=1,
        at_most=2**24,
    )
    loss_scale_window: int = option(
        2000, "finite steps in a row after which the loss scale doubles", at_least=1
    )


@dataclass(frozen=True)
class ScheduleSection(Section):
    """schedule"""

    epoch_size: int = option(300, "number of epochs", at_least=1)
    epoch_steps: int = option(
        0, "optimizer steps that count as an epoch; 0: one pass over the images", at_least=0
    )
    scheduler: str = option(
        "cosine",
        "cosine: per step; cosine_per_epoch: the authors', a step per epoch, one epoch late; poly: "
        "per step, (1 - done) ** poly_power; step: a tenth from each of lr_epochs on",
        choices=("cosine", "cosine_per_epoch", "poly", "step"),
    )
    lr_epochs: tuple[int, ...] = option(
        (), "scheduler step: epochs, counted from 0, from which on the rate is a tenth of before"
    )
    poly_power: float = option(0.9, "exponent of scheduler poly", above=0)
    lr: float = option(5e-4, "peak learning rate (see lr_reference_batch)", above=0)
    lr_reference_batch: int = option(
        0, "if not 0, lr is multiplied by global batch / lr_reference_batch", at_least=0
    )
    min_lr: float = option(1e-5, "learning rate at the end", at_least=0)
    warmup_lr: float = option(1e-6, "learning rate at the start", at_least=0)
    warmup_epochs: int = option(5, "epochs of linear warmup", at_least=0)
    warmup_steps: int = option(0, "steps of linear warmup, on top of warmup_epochs", at_least=0)


@dataclass(frozen=True)
class RuntimeSection(Section):
    """runtime"""

    device_target: str = option(
        "CPU", "where to run", choices=("CPU", "GPU", "Ascend"), resume_safe=True
    )
    allow_tf32: bool = option(
        False, "GPU: float32 products and convolutions in TF32, with 10 bits of mantissa"
    )
    distribute: bool = option(
        True,
        "use the ranks that mpirun or msrun started (a lone process is one rank)",
        resume_safe=True,
    )
    seed: int = option(
        0,
        "seed of the weights, the sampling and every augmentation",
        at_least=0,
        at_most=2**32 - 1,
    )
    eval_batch_size: int = option(
        0,
        "images per rank in evaluation; 0: one and a half times batch_size (segmentation: "
        "batch_size; detection: 1)",
        at_least=0,
        resume_safe=True,
    )


@dataclass(frozen=True)
class OutputSection(Section):
    """output"""

    output_dir: str = option(
        "",
        "folder of log, curve and checkpoints; empty: outputs/<name of the config>",
        resume_safe=True,
        path=True,
    )
    log_interval: int = option(
        50, "steps between lines of steps.jsonl", at_least=1, resume_safe=True
    )
    val_interval: int = option(1, "epochs between evaluations", at_least=1, resume_safe=True)
    save_every_epochs: int = option(1, "epochs between checkpoints", at_least=1, resume_safe=True)
    save_every_steps: int = option(
        0, "also save after every so many steps; 0: only at epochs", at_least=0, resume_safe=True
    )
    keep_checkpoint_max: int = option(
        3, "newest checkpoints that are kept, beside the best", at_least=1, resume_safe=True
    )
    tensorboard: bool = option(
        False, "also write the log for TensorBoard, to output_dir/tensorboard", resume_safe=True
    )


@dataclass(frozen=True)
class TrainSection(Section):
    """train only"""

    resume: str = option(
        "",
        "continue from a checkpoint; without a value: from the newest one in output_dir",
        resume_safe=True,
        bare="auto",
        path=True,
    )
    overwrite: bool = option(
        False, "start over in an output_dir that holds a run", resume_safe=True
    )
    max_steps: int = option(
        0,
        "stop (and save) after this many steps of the whole run; 0: at the end",
        at_least=0,
        resume_safe=True,
    )
    dry_run: bool = option(
        False,
        "build everything, run two steps, report time and memory, write nothing",
        resume_safe=True,
    )
    summary: bool = option(False, "print the model's summary and exit", resume_safe=True)


@dataclass(frozen=True)
class ExportedSection(Section):
    """validate, infer and serve"""

    onnx_path: str = option(
        "",
        "an ONNX file of mindtwins export, run by onnxruntime in place of a checkpoint",
        resume_safe=True,
        path=True,
    )


@dataclass(frozen=True)
class ValidateSection(Section):
    """validate only"""

    output_json: str = option("", "also write the result to this file", resume_safe=True, path=True)
    summary: bool = option(False, "print the model's summary and exit", resume_safe=True)


@dataclass(frozen=True)
class PredictSection(Section):
    """infer and serve"""

    top_k: int = option(
        5,
        "how many classes (or objects) to show for each image",
        at_least=1,
        resume_safe=True,
    )


@dataclass(frozen=True)
class InferSection(Section):
    """infer only"""

    images: tuple[str, ...] = option(
        (),
        "images, folders with all that lie in them, and patterns such as 'photos/*.jpg'",
        resume_safe=True,
        path=True,
    )
    output_json: str = option("", "also write the result to this file", resume_safe=True, path=True)
    output_png: str = option(
        "", "draw the images with their classes on one sheet", resume_safe=True, path=True
    )
    least_score: float = option(
        0.3,
        "detection: objects with a lower score are left out",
        at_least=0,
        at_most=1,
        resume_safe=True,
    )


@dataclass(frozen=True)
class ServeSection(Section):
    """serve only"""

    host: str = option(
        "127.0.0.1",
        "address to listen at: this machine alone; 0.0.0.0 is every network that it is in",
        resume_safe=True,
    )
    port: int = option(
        8000,
        "port to listen at; 0: any free one",
        at_least=0,
        at_most=65535,
        resume_safe=True,
    )
    max_batch: int = option(
        8, "most pictures that the model sees at once", at_least=1, resume_safe=True
    )
    max_wait_ms: float = option(
        5.0,
        "milliseconds that a picture waits for others to be computed with it",
        at_least=0,
        resume_safe=True,
    )
    max_queue: int = option(
        128, "requests without an answer; more are refused", at_least=1, resume_safe=True
    )
    max_upload_mb: float = option(
        20.0, "megabytes of a request; larger ones are refused", above=0, resume_safe=True
    )
    timeout_s: float = option(
        60.0, "seconds until a request without an answer is given up", above=0, resume_safe=True
    )


def show(value: Any) -> str:
    """A value as a recipe or a flag states it."""
    if isinstance(value, tuple | list):
        return ",".join(show(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) or "empty"


@dataclass(frozen=True)
class Config(
    OutputSection,
    RuntimeSection,
    ScheduleSection,
    OptimizationSection,
    DetectionSection,
    SegmentationSection,
    AugmentationSection,
    DataSection,
    ModelSection,
):
    """A recipe: everything that a YAML file may state.

    Attributes:
        stated: where each option that a YAML file or a flag states was stated; the others have
            their defaults, and give way to what a checkpoint records.
    """

    stated: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def weights(self) -> str:
        """What names the weights to take, whichever option does; empty for none."""
        return self.ckpt_path or self.pretrained

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"{name} must be a range 0 < low <= high, not {low},{high}")
        for name in ("std", "resize_scale", "resize_ratio", "test_ratios"):
            values = getattr(self, name)
            if min(values, default=0) <= 0:
                raise UserError(f"{name} must be above 0, not {show(values)}")
        if self.test_mode == "slide" and self.test_stride > self.test_crop:
            raise UserError(
                f"test_stride ({self.test_stride}) must not be above test_crop ({self.test_crop}): "
                "pixels between the windows would have no class"
            )
        # What float32, which they are computed in, makes neither 0 nor 1.
        if not all(2**-149 < beta < 1 - 2**-25 for beta in self.betas):
            raise UserError(f"betas must lie between 0 and 1 in float32, not {show(self.betas)}")
        if self.warmup_epochs >= self.epoch_size:
            raise UserError(
                f"warmup_epochs ({self.warmup_epochs}) must be fewer than epoch_size "
                f"({self.epoch_size}): set --warmup_epochs {self.epoch_size // 2}, for one"
            )
        if self.pretrained and self.ckpt_path:
            raise UserError(
                f"pretrained ({self.pretrained}) and ckpt_path ({self.ckpt_path}) both say which "
                "weights to take: leave one of them out"
            )
        if self.dataset == "list" and not self.val_list:
            raise UserError("dataset: list needs val_list (and train_list to train)")


@dataclass(frozen=True)
class TrainConfig(TrainSection, Config):
    """What `mindtwins train` takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise UserError(
                "resume and overwrite contradict each other: the one continues the run in "
                "output_dir, the other deletes it"
            )
        if self.drop_head and not self.weights:
            raise UserError("drop_head needs ckpt_path, the checkpoint whose head is left out")
        if self.pretrained_backbone and (self.weights or self.task == "classification"):
            raise UserError(
                "pretrained_backbone is for segmentation and detection without ckpt_path or "
                "pretrained, which hold a backbone"
            )


@dataclass(frozen=True)
class ValidateConfig(ValidateSection, ExportedSection, Config):
    """What `mindtwins validate` takes."""


@dataclass(frozen=True)
class PredictConfig(PredictSection, ExportedSection, Config):
    """What all commands take that predict."""


@dataclass(frozen=True)
class InferConfig(InferSection, PredictConfig):
    """What `mindtwins infer` takes."""


@dataclass(frozen=True)
class ServeConfig(ServeSection, PredictConfig):
    """What `mindtwins serve` takes."""

    # Pictures come from anybody, and several are decoded at once.
    max_pixels: int = option(
        50_000_000, "pictures of more pixels are refused", at_least=1, resume_safe=True
    )
