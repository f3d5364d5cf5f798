"""Train a Twins model: `mindtwins train --config configs/svt_tiny_digits.yaml`.

The same command after `mpirun -n 8` or as msrun's script trains on several devices.
"""

from __future__ import annotations

from mindtwins.config import TrainConfig, parse_config
from mindtwins.distribution import launch


def main(argv: list[str]) -> None:
    """Read the configuration and train."""
    config = parse_config(TrainConfig, argv, __doc__)
    rank = launch.begin(config.distribute, config.device_target)
    # Only now: these import MindSpore.
    from mindtwins.tasks import create_task
    from mindtwins.training.dry_run import dry_run
    from mindtwins.training.loop import Trainer

    if config.summary:
        task = create_task(config)  # on every rank: weights by name are fetched by all together
        if rank == 0:
            print(task.summary())
    elif config.dry_run:
        dry_run(Trainer(config, create_task))
    else:
        Trainer(config, create_task).train()
