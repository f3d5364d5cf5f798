"""A dry run: does a recipe start, and what will it take?"""

from __future__ import annotations

import resource
import time

import mindspore as ms

from mindtwins.training.loop import Trainer

GIB = 2**30


def dry_run(trainer: Trainer) -> None:
    """Make a step that compiles and one that is timed, and report; nothing is written."""
    trainer.introduce()
    seconds: list[float] = []
    for batches in trainer.step_batches(0, min(2, trainer.last_step)):
        started = time.perf_counter()
        result = trainer.train_state.step(batches, trainer.schedule(len(seconds)))
        seconds.append(time.perf_counter() - started)
        trainer.say(f"step {len(seconds)}: loss {result.loss:.4f}, {seconds[-1]:.2f} s")
    hours = seconds[-1] * trainer.last_step / 3600
    trainer.say(
        f"all {trainer.last_step} steps: about {hours:.2f} hours, evaluation and waiting for data "
        "left out"
    )
    trainer.say(f"peak memory {_peak_memory(trainer.config.device_target) / GIB:.1f} GiB")
    trainer.say("dry run: no log and no checkpoint were written")


def _peak_memory(device_target: str) -> int:
    """Bytes: of this process on CPU, else of the device."""
    if device_target == "CPU":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ms.runtime.max_memory_allocated()
