"""One optimizer step, compiled: forward, backward, clip, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindtwins.layers import sum_of_squares
from mindtwins.training.groups import parameter_groups
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.optimizer import AdamW


@dataclass(frozen=True)
class MicroBatch:
    """Inputs of one forward and backward pass.

    Attributes:
        images: float32 (N, C, H, W).
        targets: what the loss compares the model's output with: an array, or a tuple of arrays of
            any shapes.
        drop_path_mask: float32 (branches, N), factors of the residual branches; None keeps all.
        dropout_mask: float32 (N, channels), factors of the channels before the classifiers; None
            for models without dropout.
    """

    images: np.ndarray
    targets: np.ndarray | tuple[np.ndarray, ...]
    drop_path_mask: np.ndarray | None = None
    dropout_mask: np.ndarray | None = None


# What a micro-batch becomes before its pass, where targets follow from the model as it is now.
Complete: TypeAlias = Callable[[MicroBatch], MicroBatch]


class StepResult(NamedTuple):
    """What an optimizer step tells.

    Attributes:
        loss: mean over the global batch.
        norm: global norm of the gradient before clipping.
        finite: whether that was finite; if not, nothing was updated.
    """

    loss: float
    norm: float
    finite: bool


class TrainStep:
    """Makes optimizer steps, each of one or more micro-batches.

    Many micro-batches equal one large batch, except where images of a pass depend on each other: by
    batch norms, or by losses divided by what is counted in a pass.

    A step with non-finite gradients leaves weights and moments as they were, and halves a dynamic
    loss scale. The number of micro-batches is fixed; a graph is compiled for each shape of them.

    Args:
        model: (images, drop_path_mask) or (images, drop_path_mask, dropout_mask) -> output.
        loss: (output, *targets) -> float32 scalar, a mean over the images.
        optimizer: its parameters are what is differentiated.
        loss_scale: dynamic, or constantly 1.
        clip: largest global norm of the gradient; 0 for no limit.
        accumulation: micro-batches per optimizer step.
        reducer: averages a tuple of tensors over the ranks; None for a lone process.
        complete: makes of each micro-batch, just before its pass, the one that is learned from;
            None: they are complete as they come.
    """

    def __init__(
        self,
        model: nn.Cell,
        loss: nn.Cell,
        optimizer: AdamW,
        loss_scale: LossScale,
        clip: float = 0.0,
        accumulation: int = 1,
        reducer: nn.Cell | None = None,
        complete: Complete | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self._model = model
        self._complete = complete
        differentiate = _Differentiate(model, loss, optimizer, loss_scale)
        update = _Update(optimizer, loss_scale, clip, accumulation, reducer)
        self.accumulates = accumulation > 1
        if self.accumulates:
            totals = _Totals(optimizer.parameters)
            self._add = _Add(differentiate, totals).set_train()
            self._finish = _Finish(update, totals).set_train()
        else:
            self._step = _Step(differentiate, update).set_train()

    def __call__(self, batches: Sequence[MicroBatch], lr: float) -> StepResult:
        """Make one optimizer step at the learning rate `lr`."""
        if not self._model.training:  # after an evaluation; images of a new size are compiled now
            self._model.set_train()
        rate = Tensor(lr, ms.float32)
        if self.accumulates:
            for batch in batches:
                self._add(*self._inputs(batch))
            results = self._finish(rate)
        else:
            results = self._step(rate, *self._inputs(batches[0]))
        loss, norm, finite = (tensor.asnumpy().item() for tensor in results)
        return StepResult(loss, norm, finite)

    def _inputs(self, batch: MicroBatch) -> tuple[Tensor | None, ...]:
        return _graph_inputs(batch if self._complete is None else self._complete(batch))


def build_train_step(
    model: nn.Cell,
    loss: nn.Cell,
    *,
    weight_decay: float = 0.05,
    no_decay: Sequence[str] = ("1d", "pos_block"),
    layer_decay: float = 1.0,
    freeze_backbone: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip_grad: float = 5.0,
    accumulation: int = 1,
    loss_scale: LossScale | None = None,
    reducer: nn.Cell | None = None,
    complete: Complete | None = None,
) -> TrainStep:
    """A training step of AdamW with the recipes' defaults.

    Args:
        model, loss, accumulation, reducer, complete: see `TrainStep`.
        weight_decay, no_decay, layer_decay, freeze_backbone: see `parameter_groups`.
        betas, eps: see `AdamW`.
        clip_grad: largest global norm of the gradient; 0 for no limit.
        loss_scale: None for none.
    """
    groups = parameter_groups(model, weight_decay, no_decay, layer_decay, freeze_backbone)
    return TrainStep(
        model,
        loss,
        AdamW(groups, betas, eps),
        loss_scale or LossScale(1.0, 1, dynamic=False),
        clip_grad,
        accumulation,
        reducer,
        complete,
    )


def _graph_inputs(batch: MicroBatch) -> tuple[Tensor | None, ...]:
    """Images, masks and targets as the graphs take them, the targets last: there may be several."""
    targets = batch.targets if isinstance(batch.targets, tuple) else (batch.targets,)
    arrays = (batch.images, batch.drop_path_mask, batch.dropout_mask, *targets)
    return tuple(None if array is None else Tensor(array) for array in arrays)


def global_norm(tensors: tuple[Tensor, ...]) -> Tensor:
    """Euclidean norm of all tensors together, a float32 scalar."""
    return ops.sqrt(sum_of_squares(tensors))


_multiply = ops.MultitypeFuncGraph("multiply")
_add_to = ops.MultitypeFuncGraph("add_to")
_clear = ops.MultitypeFuncGraph("clear")


@_multiply.register("Tensor", "Tensor")
def _multiply_one(factor, tensor):
    return tensor * factor


@_add_to.register("Tensor", "Tensor")
def _add_to_one(total, tensor):
    return ops.assign_add(total, tensor)


@_clear.register("Tensor")
def _clear_one(total):
    return ops.assign(total, ops.zeros_like(total))


class _ScaledLoss(nn.Cell):
    """The scaled loss, which is differentiated, and the loss itself."""

    def __init__(self, model: nn.Cell, loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.loss = loss

    def construct(self, scale, images, drop_path_mask, dropout_mask, *targets):
        if dropout_mask is None:
            output = self.model(images, drop_path_mask)
        else:
            output = self.model(images, drop_path_mask, dropout_mask)
        loss = self.loss(output, *targets)
        return loss * scale, loss


class _Differentiate(nn.Cell):
    """Loss and scaled gradients of one micro-batch."""

    def __init__(
        self, model: nn.Cell, loss: nn.Cell, optimizer: AdamW, loss_scale: LossScale
    ) -> None:
        super().__init__(auto_prefix=False)
        self.scaled_loss = _ScaledLoss(model, loss)
        self.scale = loss_scale.scale
        self.grad = ms.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def construct(self, images, drop_path_mask, dropout_mask, *targets):
        (_, loss), gradients = self.grad(self.scale, images, drop_path_mask, dropout_mask, *targets)
        return loss, gradients


class _Update(nn.Cell):
    """Average over ranks, unscale, clip, and update the weights if all is finite."""

    def __init__(
        self,
        optimizer: AdamW,
        loss_scale: LossScale,
        clip: float,
        accumulation: int,
        reducer: nn.Cell | None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.clip = clip
        self.accumulation = accumulation
        self.reducer = reducer
        self.map = ops.HyperMap()

    def construct(self, loss, gradients, lr):
        if self.reducer is not None:
            (loss,) = self.reducer((loss,))
            gradients = self.reducer(gradients)
        factor = 1 / (self.loss_scale.scale * self.accumulation)
        norm = global_norm(gradients) * factor
        finite = ops.isfinite(norm)
        if self.clip > 0:
            # As torch.nn.utils.clip_grad_norm_, its 1e-6 included.
            factor = factor * ops.minimum(self.clip / (norm + 1e-6), Tensor(1.0, ms.float32))
        # Once for both: each product is an operator for each parameter.
        gradients = self.map(ops.partial(_multiply, factor), gradients)
        if finite:
            self.optimizer(gradients, lr)
        self.loss_scale(finite)
        return loss / self.accumulation, norm, finite


class _Step(nn.Cell):
    """An optimizer step of one micro-batch, as one graph."""

    def __init__(self, differentiate: _Differentiate, update: _Update) -> None:
        super().__init__(auto_prefix=False)
        self.differentiate = differentiate
        self.update = update

    def construct(self, lr, images, drop_path_mask, dropout_mask, *targets):
        loss, gradients = self.differentiate(images, drop_path_mask, dropout_mask, *targets)
        return self.update(loss, gradients, lr)


class _Totals(nn.Cell):
    """Sums of losses and gradients over the micro-batches of a step."""

    def __init__(self, parameters: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.loss = Parameter(Tensor(0, ms.float32), "accumulated.loss")
        self.gradients = parameters.clone("accumulated", "zeros")


class _Add(nn.Cell):
    """A micro-batch: add its loss and gradients to the totals."""

    def __init__(self, differentiate: _Differentiate, totals: _Totals) -> None:
        super().__init__(auto_prefix=False)
        self.differentiate = differentiate
        self.totals = totals
        self.map = ops.HyperMap()

    def construct(self, images, drop_path_mask, dropout_mask, *targets):
        loss, gradients = self.differentiate(images, drop_path_mask, dropout_mask, *targets)
        self.map(_add_to, self.totals.gradients, gradients)
        return ops.assign_add(self.totals.loss, loss)


class _Finish(nn.Cell):
    """Update the weights from the totals and clear them."""

    def __init__(self, update: _Update, totals: _Totals) -> None:
        super().__init__(auto_prefix=False)
        self.update = update
        self.totals = totals
        self.map = ops.HyperMap()

    def construct(self, lr):
        results = self.update(self.totals.loss, self.totals.gradients, lr)
        self.map(_clear, self.totals.gradients)
        ops.assign(self.totals.loss, ops.zeros_like(self.totals.loss))
        return results
