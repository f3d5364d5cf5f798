"""Whether a training step fits into the memory of a CPU: else the system kills it without a word.

The figures were measured (docs/performance.md): what a step keeps for its gradients follows from
the model and the image size within a few percent, the rest from the number of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindtwins.errors import UserError
from mindtwins.training.task import Task

GB, MB = 1e9, 1e6
# What the compiler leaves behind, and what each parameter takes: itself, its gradient, two moments.
FIXED, PER_PARAMETER, PER_AVERAGE = 0.5 * GB, 16, 4
# fp16 on a CPU keeps float32 beside it, and all of an MLP; above O1 the attention goes through
# MindSpore's operators.
HALF_PRECISION = {"O0": 1.0, "O1": 1.9, "O2": 6.2, "O3": 6.2}
# Batches on their way from the workers to the step.
BATCHES_AHEAD = 4
# An estimate of so many times the free memory is refused; below it may be the estimate that errs.
FAR_ABOVE = 1.5


@dataclass(frozen=True)
class Estimate:
    """Bytes that one rank takes beyond the imported framework."""

    fixed: float
    per_image: float

    def of(self, images: int) -> float:
        """For a micro-batch of so many images."""
        return self.fixed + images * self.per_image


def estimate(task: Task) -> Estimate:
    """What the training of a task's model takes on a CPU."""
    parts, config = task.parts(), task.config
    parameters = sum(part.parameters for part in parts)
    kept = sum(part.kept for part in parts) * 4 * HALF_PRECISION[config.amp_level]
    ahead = BATCHES_AHEAD * task.loaded_bytes()
    per_parameter = PER_PARAMETER + PER_AVERAGE * config.ema
    return Estimate(FIXED + parameters * per_parameter, kept + ahead)


def check_memory(task: Task, ranks: int, free: int | None) -> str | None:
    """Compare what the ranks of this machine will take with what is free.

    Args:
        task: with the recipe.
        ranks: how many of them share the memory.
        free: in bytes; None if it is not known.

    Returns:
        A sentence if it may not be enough.

    Raises:
        UserError: it will not be enough.
    """
    config = task.config
    # With a frozen backbone hardly anything is kept, on other devices memory is their own.
    if free is None or config.device_target != "CPU" or config.freeze_backbone:
        return None
    needed = estimate(task)
    total = ranks * needed.of(config.batch_size)
    if total <= free:
        return None
    fitting = int((free / ranks - needed.fixed) / needed.per_image) // 2 * 2
    advice = "lower --image_size or take a smaller model"
    if fitting > 0:
        advice = (
            f"lower --batch_size to {fitting} (and raise --gradient_accumulation_steps to keep the "
            "global batch), or lower --image_size"
        )
    shared = f"{ranks} ranks of " if ranks > 1 else ""
    sentence = (
        f"a step is expected to take {total / GB:.1f} GB ({shared}{needed.fixed / GB:.1f} GB and "
        f"{needed.per_image / MB:.0f} MB for each of {config.batch_size} images), but "
        f"{free / GB:.1f} GB are free: {advice}"
    )
    if total > FAR_ABOVE * free:
        raise UserError(f"{sentence}; refused, as it is more than {FAR_ABOVE:g} times as much")
    return sentence


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, of the machine's and of its container's memory.

    None where the system does not say as Linux does. `root` is for tests.
    """
    limits = [_of_the_machine(root), _of_the_container(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _of_the_machine(root: Path) -> int | None:
    numbers = _numbers(root / "proc/meminfo")
    if "MemAvailable:" not in numbers:
        return None
    return 1024 * (numbers["MemAvailable:"] + numbers.get("SwapFree:", 0))


def _of_the_container(root: Path) -> int | None:
    """By the control group, in either of its versions."""
    for folder, limit, usage, cache in (
        (root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            root / "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            free = int((folder / limit).read_text()) - int((folder / usage).read_text())
        except (OSError, ValueError):  # no such version, or "max"
            continue
        return max(free + _numbers(folder / "memory.stat").get(cache, 0), 0)
    return None


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name number ...` of a file of the system's."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}
