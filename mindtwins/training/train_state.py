"""Everything that changes while training, and how one step changes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mindspore import nn

from mindtwins.checkpoint import Checkpoint, load_into
from mindtwins.config import Config
from mindtwins.data.loader import TrainingBatch
from mindtwins.training.drop_masks import draw_drop_masks
from mindtwins.training.ema import MovingAverage
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.step import Complete, MicroBatch, StepResult, build_train_step


class TrainState:
    """A model, its optimizer, loss scale and moving average.

    Attributes:
        model: what is trained.
        average: moving average of its weights; None without one.
        loss_scale: constantly 1 at amp_level O0.
        n_parameters: number of weights of the model, running statistics left out.
    """

    def __init__(
        self,
        model: nn.Cell,
        loss: nn.Cell,
        config: Config,
        global_batch: int,
        reducer: nn.Cell | None = None,
        complete: Complete | None = None,
    ) -> None:
        self.model = model
        self.n_parameters = sum(math.prod(p.shape) for p in model.trainable_params())
        self.loss_scale = LossScale(
            config.loss_scale, config.loss_scale_window, dynamic=config.amp_level != "O0"
        )
        self.average = MovingAverage(model, config.ema_decay) if config.ema else None
        self._step = build_train_step(
            model,
            loss,
            weight_decay=config.weight_decay,
            no_decay=config.no_decay,
            layer_decay=config.layer_decay,
            freeze_backbone=config.freeze_backbone,
            betas=config.betas,
            eps=config.eps,
            clip_grad=config.clip_grad,
            accumulation=config.gradient_accumulation_steps,
            loss_scale=self.loss_scale,
            reducer=reducer,
            complete=complete,
        )
        self._seed = config.seed
        self._global_batch = global_batch

    def step(self, batches: Sequence[TrainingBatch], lr: float) -> StepResult:
        """Make one optimizer step with all its micro-batches."""
        result = self._step([self._inputs(batch) for batch in batches], lr)
        if self.average is not None:
            self.average()
        return result

    def _inputs(self, batch: TrainingBatch) -> MicroBatch:
        drop_path_mask, dropout_mask = draw_drop_masks(
            self.model, self._seed, batch.step, batch.positions, self._global_batch
        )
        return MicroBatch(batch.images, batch.targets, drop_path_mask, dropout_mask)

    def weights(self) -> dict[str, np.ndarray]:
        """The model's weights, by name."""
        return {p.name: p.asnumpy() for p in self.model.get_parameters()}

    def state(self) -> dict[str, np.ndarray]:
        """All that an exact continuation needs: weights, optimizer, loss scale and average."""
        return {p.name: p.asnumpy() for p in self._everything().get_parameters()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state that a checkpoint holds.

        Raises:
            UserError: it is not the state of such a run.
        """
        load_into(self._everything(), checkpoint)

    def _everything(self) -> nn.Cell:
        parts = [self.model, self._step.optimizer, self.loss_scale]
        if self.average is not None:
            parts.append(self.average)
        return _Parts(parts)


class _Parts(nn.Cell):
    """Cells side by side, their parameters' names unchanged."""

    def __init__(self, parts: Sequence[nn.Cell]) -> None:
        super().__init__(auto_prefix=False)
        for number, part in enumerate(parts):
            setattr(self, f"part{number}", part)
