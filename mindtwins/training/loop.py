"""The training loop."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import islice
from typing import cast

import mindspore as ms
from tqdm import tqdm

from mindtwins.checkpoint import save_checkpoint
from mindtwins.config import TrainConfig, as_begun
from mindtwins.data.loader import TrainingBatch
from mindtwins.distribution.connection import RankLost
from mindtwins.errors import UserError
from mindtwins.execution import use_device
from mindtwins.files import atomic_write
from mindtwins.training.distributed import World, join_world
from mindtwins.training.log import RunLog
from mindtwins.training.memory import check_memory, free_memory
from mindtwins.training.resume import check_continuation, run_identity
from mindtwins.training.run_folder import RunFolder
from mindtwins.training.schedule import create_schedule
from mindtwins.training.signals import StopRequest
from mindtwins.training.step import StepResult
from mindtwins.training.task import Metrics, Task
from mindtwins.training.train_state import TrainState

# A loss scale below this means that the gradients are broken, not that fp16 is short of range.
SMALLEST_LOSS_SCALE = 2.0**-10
FILES_NAMED = 4
# Seconds between lines within an epoch, where no bar shows how it goes.
SECONDS_BETWEEN_LINES = 60.0
# The share of the images that an epoch may leave out without a word.
SMALL_SHARE = 0.05


@dataclass
class Progress:
    """Where a run is: beside the train_state's tensors, all that a continuation needs.

    Attributes:
        step: optimizer steps done.
        epoch_loss: sum of the losses of the current epoch's steps so far.
        best: highest score in percent so far (top-1, mIoU), of the weights or their average.
        best_epoch: when that was.
    """

    step: int = 0
    epoch_loss: float = 0.0
    best: float = -1.0
    best_epoch: int = -1


class Trainer:
    """A training run: everything that it needs is built and checked before the first step.

    Args:
        config: the recipe.
        create_task: from a recipe to what it says of models, data and losses.

    Raises:
        UserError: a mistake in the recipe, the data or the output folder.
    """

    def __init__(self, config: TrainConfig, create_task: Callable[[TrainConfig], Task]) -> None:
        use_device(config.device_target, config.allow_tf32)
        self.world = join_world(config.distribute)
        self.run_folder = RunFolder(config)
        self._continued = None if config.dry_run else self.run_folder.read_continued()
        if self._continued is not None:
            begun = self._continued.stated.get("recipe", {})
            config = as_begun(config, begun)
        self.config = config
        task = create_task(config)
        ranks_here = self.world.ranks_here()
        self._memory_doubt = check_memory(task, ranks_here, free_memory())
        train_data, test_data = task.find_data("train"), task.find_data("val")
        task.check_same_classes(train_data, test_data)
        # A task fills in what the recipe leaves open; its class stays.
        self.config = config = cast(TrainConfig, task.config)
        self.loader = task.training_loader(train_data, self.world)
        self.steps_per_epoch = config.epoch_steps or self.loader.steps_per_epoch
        self.last_step = config.epoch_size * self.steps_per_epoch
        self.global_batch = self.loader.sampler.global_batch
        self.schedule = create_schedule(config, self.steps_per_epoch, self.global_batch)
        ms.set_seed(config.seed)  # the initial weights
        model, self.metadata = task.build_model(self.world)
        entries = task.entries(train_data)
        self.identity = run_identity(config, entries, self.global_batch, self.metadata)
        self._couples_images = task.couples_images
        mean = self.world.mean_over_ranks()
        self.train_state = TrainState(
            model, task.loss(model), config, self.global_batch, mean, task.completion(model)
        )
        self.evaluator = task.evaluator(model, test_data, self.world)
        self.score_name = task.score_name
        self._size = task.size_in_words()
        self.progress = Progress()
        self.folder = self.run_folder.path
        self.log = RunLog(self.folder, task.curves, config.tensorboard and self.world.is_main)
        self._has_compiled = False
        self._activity = "this step"
        self._epoch_started, self._epoch_first_step = 0.0, 0
        self._last_line = 0.0

    def train(self) -> None:
        """Train from where the run is to its end, to `max_steps`, or to a signal."""
        self.run_folder.check()
        if self._continued is not None:
            self._take_up()
        self._check_same_start()
        self._prepare_folder()
        self.introduce()
        stop_at = min(self.config.max_steps or self.last_step, self.last_step)
        signal = 0
        with StopRequest(self._announce_stop) as request, closing(self.log):
            for batches in self.step_batches(self.progress.step, stop_at):
                signal = self._agreed_signal(request)
                if signal == 0:
                    self.train_step(batches)
                    if self.progress.step % self.steps_per_epoch == 0:
                        self._finish_epoch()
                stops = self.progress.step == stop_at or signal != 0
                if stops or self._save_is_due():
                    self._save()
                if stops:
                    break
        if self.progress.step == self.last_step:
            self._finish()
            return
        self.say(self._how_to_continue())
        if signal != 0:
            sys.exit(128 + signal)

    def introduce(self) -> None:
        """Say what is going to be trained, and how."""
        config = self.config
        self.say(
            f"{self.metadata['variant']}: {self.train_state.n_parameters:,} parameters, "
            f"{config.num_classes} classes, {self._size}, "
            f"{config.device_target}, amp_level {config.amp_level}"
        )
        self.say(
            f"{len(self.loader.dataset)} training images, {config.epoch_size} epochs of "
            f"{self.steps_per_epoch} steps; global batch {self.global_batch} = "
            f"{config.batch_size} images x {self.world.size} ranks x "
            f"{config.gradient_accumulation_steps} micro-batches"
        )
        if config.lr_reference_batch:
            self.say(
                f"peak learning rate {self.schedule.peak:g} = {config.lr:g} x global batch "
                f"{self.global_batch} / {config.lr_reference_batch}"
            )

        for notice in self._doubts():
            self.say(f"notice: {notice}")

    def _doubts(self) -> Iterator[str]:
        """What is allowed, but hardly meant."""
        config, peak = self.config, self.schedule.peak
        if self._memory_doubt:
            yield self._memory_doubt
        for name in ("min_lr", "warmup_lr"):
            rate = getattr(config, name)
            if rate > peak and (name == "min_lr" or self.schedule.warmup_epochs):
                yield (
                    f"{name} {rate:g} is above the peak learning rate {peak:g}, so the rate "
                    f"{'rises to it' if name == 'min_lr' else 'falls in the warmup'}: lower "
                    f"--{name} or raise --lr"
                )
        images, steps = len(self.loader.dataset), self.loader.steps_per_epoch
        unused = images - steps * self.global_batch
        if unused > SMALL_SHARE * images:
            yield (
                f"each pass leaves out {unused} of the {images} training images (others each time) "
                f"that fill no whole global batch: {steps} step{'s' * (steps > 1)} of "
                f"{self.global_batch} images; a smaller --batch_size leaves out fewer"
            )

    # Before the first step

    def _take_up(self) -> None:
        """Go on where the checkpoint is that `--resume` found."""
        checkpoint = self._continued
        assert checkpoint is not None
        for notice in check_continuation(checkpoint, self.identity, self._couples_images):
            self.say(f"notice: {notice}")
        self.train_state.restore(checkpoint)
        self.progress = Progress(**checkpoint.stated["progress"])
        self._continued = replace(checkpoint, tensors={})  # the memory is needed

    def _prepare_folder(self) -> None:
        if not self.world.is_main:
            return
        for notice in self.run_folder.take_over(self._continued):
            self.say(f"notice: {notice}")
        self.log.rewind(self.progress.step // self.steps_per_epoch, self.progress.step)
        if self._continued is not None:
            self.say(f"continuing from {self._continued.path}, after step {self.progress.step}")
        elif self.config.resume:
            self.say(f"nothing to continue in {self.folder}: starting from the beginning")

    def _check_same_start(self) -> None:
        """Make sure that all ranks start from the same state and data, and wait for them.

        Nothing is written before: a rank that is still looking would find files of this run.
        """
        if self.world.size == 1:
            return
        state = hashlib.sha256()
        for name, tensor in self.train_state.state().items():
            state.update(name.encode() + tensor.tobytes())
        for what, here in (
            ("recipe or data", json.dumps(self.identity, sort_keys=True).encode()),
            ("progress", json.dumps(asdict(self.progress)).encode()),
            ("weights or optimizer state", state.digest()),
        ):
            first, *others = self.world.exchange(what, here)
            for rank, there in enumerate(others, start=1):
                if there != first:
                    raise UserError(
                        f"rank {rank} starts with another {what} than rank 0: all ranks need the "
                        "same files under the same paths"
                    )

    def _agreed_signal(self, request: StopRequest) -> int:
        """The signal that came to any of the ranks, 0 for none: they stop after the same step.

        Every rank comes here once per step, with its batch in hand. When one does not, the others
        are not yet waiting for its gradients, and still have the state after the last step.
        """
        try:
            return self.world.largest(f"step {self.progress.step}", request.signal or 0)
        except RankLost as loss:
            if loss.is_reporter:
                self._write_checkpoint()
                tqdm.write(self._how_to_continue())
            raise

    def _how_to_continue(self) -> str:
        return (
            f"stopped after step {self.progress.step} of {self.last_step}; continue with: "
            f"{_command(self.world)} --resume"
        )

    def _announce_stop(self) -> None:
        """Answer a signal at once: what is under way may take a while."""
        if self.world.connection is None:
            more = "press Ctrl-C again to stop at once"
        else:  # the launcher may end what it shows before the ranks do
            more = f"continue with: {_command(self.world)} --resume"
        self.say(f"stopping after {self._activity}; {more}")

    # Steps

    def step_batches(self, start: int, stop: int) -> Iterator[list[TrainingBatch]]:
        """The micro-batches of each optimizer step in [start, stop), under a bar per epoch."""
        batches = self.loader.batches(start, stop)
        while start < stop:
            epoch, done = divmod(start, self.steps_per_epoch)
            end = min(start - done + self.steps_per_epoch, stop)
            with tqdm(
                desc=f"epoch {epoch}",
                initial=done * self.global_batch,
                total=self.steps_per_epoch * self.global_batch,
                unit=" images",
                leave=False,
                disable=None if self.world.is_main else True,
            ) as bar:
                self._epoch_started, self._epoch_first_step = time.perf_counter(), start
                for _ in range(start, end):
                    yield list(islice(batches, self.config.gradient_accumulation_steps))
                    bar.update(self.global_batch)
            start = end

    def train_step(self, batches: list[TrainingBatch]) -> None:
        """Make the next optimizer step."""
        step = self.progress.step
        lr = self.schedule(step)
        started = time.perf_counter()
        if not self._has_compiled:
            self._activity = "this step (compiling it may take minutes)"
            self.say("compiling the training step ...")
        result = self.train_state.step(batches, lr)
        if not self._has_compiled:
            self._activity = "this step"
            self._has_compiled = True
            self.say(f"compiled; the first step took {time.perf_counter() - started:.0f} s")
            # The epoch's images/s leave the compilation out.
            self._epoch_started, self._epoch_first_step = time.perf_counter(), step + 1
            self._last_line = time.perf_counter()
        scale = self.train_state.loss_scale.scale.asnumpy().item()
        self._check_finite(result, lr, scale, batches)
        self.progress.epoch_loss += result.loss
        self.progress.step += 1
        if self.world.is_main and step % self.config.log_interval == 0:
            norm = result.norm if result.finite else None
            self.log.add_step(
                step=step, train_loss=result.loss, train_lr=lr, grad_norm=norm, loss_scale=scale
            )
        if time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._tell_progress(result.loss)

    def _tell_progress(self, loss: float) -> None:
        """A line within an epoch, for a log file or a launcher: a terminal has a bar instead."""
        self._last_line = time.perf_counter()
        if sys.stderr.isatty():
            return
        speed = self._images_per_second()
        if speed is None:
            return
        epoch, done = divmod(self.progress.step, self.steps_per_epoch)
        if done == 0:  # the epoch's own line follows
            return
        in_epoch, in_all = (
            timedelta(seconds=round(steps * self.global_batch / speed))
            for steps in (self.steps_per_epoch - done, self.last_step - self.progress.step)
        )
        self.say(
            f"epoch {epoch}: step {done} of {self.steps_per_epoch}, loss {loss:.4f}, "
            f"{_rate(speed)} images/s, {in_epoch} left in the epoch, {in_all} in all"
        )

    def _images_per_second(self) -> float | None:
        """Of the epoch so far, compilation left out; None if nothing else was left to measure."""
        images = (self.progress.step - self._epoch_first_step) * self.global_batch
        return images / (time.perf_counter() - self._epoch_started) if images else None

    def _check_finite(
        self, result: StepResult, lr: float, scale: float, batches: list[TrainingBatch]
    ) -> None:
        skippable = self.train_state.loss_scale.dynamic and scale >= SMALLEST_LOSS_SCALE
        if math.isfinite(result.loss) and (result.finite or skippable):
            return
        files = [self.loader.dataset.paths[i] for batch in batches for i in batch.index]
        everyones = self.world.exchange("files", json.dumps(files).encode())
        files = [path for part in everyones for path in json.loads(part)]
        listing = self.folder / f"non_finite_step_{self.progress.step}.txt"
        if self.world.is_main and self.folder.is_dir():
            with atomic_write(listing) as file:
                file.write("".join(f"{path}\n" for path in files).encode(errors="surrogateescape"))
        raise UserError(
            f"step {self.progress.step} is not finite: loss {result.loss:g}, gradient norm "
            f"{result.norm:g}, learning rate {lr:g}, loss scale {scale:g}; its weights were not "
            f"saved; its images are listed in {listing}: {', '.join(files[:FILES_NAMED])}, ..."
        )

    # Between steps

    def _finish_epoch(self) -> None:
        progress, config = self.progress, self.config
        epoch = progress.step // self.steps_per_epoch - 1
        speed = self._images_per_second()
        record = {
            "train_lr": self.schedule(progress.step - 1),
            "train_loss": progress.epoch_loss / self.steps_per_epoch,
            "epoch": epoch,
            "n_parameters": self.train_state.n_parameters,
        }
        progress.epoch_loss = 0.0
        said = [f"epoch {epoch}: train loss {record['train_loss']:.4f}"]
        if (epoch + 1) % config.val_interval == 0 or progress.step == self.last_step:
            metrics = self._evaluate("model")
            record |= {f"test_{key}": value for key, value in metrics.record().items()}
            said.append(f"test {metrics}")
            if self.train_state.average is not None:
                with self.train_state.average.applied():
                    metrics = self._evaluate("ema")
                record |= {f"test_{key}_ema": value for key, value in metrics.record().items()}
                said.append(f"moving average {metrics}")
        said.append("speed not measured" if speed is None else f"{_rate(speed)} images/s")
        self.say("; ".join(said))
        self._last_line = time.perf_counter()
        if self.world.is_main:
            self.log.add_epoch(**record)

    def _evaluate(self, weights: str) -> Metrics:
        """Evaluate the weights that the model has now; keep them if they are the best so far."""
        self._activity = "the evaluation"
        metrics = self.evaluator.evaluate()
        self._activity = "this step"
        if metrics.score > self.progress.best:
            self.progress.best = metrics.score
            self.progress.best_epoch = self.progress.step // self.steps_per_epoch - 1
            self._save_weights("best.ckpt", weights)
        return metrics

    def _save_is_due(self) -> bool:
        step, config = self.progress.step, self.config
        epochs, in_epoch = divmod(step, self.steps_per_epoch)
        if config.save_every_steps and step % config.save_every_steps == 0:
            return True
        return in_epoch == 0 and epochs % config.save_every_epochs == 0

    def _save(self) -> None:
        if self.world.is_main:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        """Write all that a continuation needs."""
        metadata = self.identity | {"progress": asdict(self.progress)}
        self.run_folder.checkpoints.save(self.progress.step, self.train_state.state(), metadata)

    def _save_weights(self, name: str, weights: str) -> None:
        """Write the model's weights alone, as `create_model` loads them."""
        if self.world.is_main:
            trained = {"step": self.progress.step, "weights": weights}
            path = self.folder / name
            save_checkpoint(path, self.train_state.weights(), self.metadata | {"trained": trained})

    def _finish(self) -> None:
        self._save_weights("final.ckpt", "model")
        if self.train_state.average is not None:
            with self.train_state.average.applied():
                self._save_weights("final_ema.ckpt", "ema")
        self.say(
            f"done: {self.progress.step} steps, best {self.score_name} "
            f"{self.progress.best:.2f} % in epoch {self.progress.best_epoch}"
        )
        skipped = self.world.total("skipped", self.loader.skipped)
        if skipped:
            self.say(f"{skipped} unreadable training images were skipped")
        for name, what in (
            ("final.ckpt", "weights at the end"),
            ("best.ckpt", f"weights with the best {self.score_name}"),
            ("log.jsonl", "losses and test metrics per epoch"),
            ("curve.png", "their curves"),
        ):
            self.say(f"  {self.folder / name}  {what}")

    def say(self, text: str) -> None:
        """Print, on rank 0 only, without tearing a progress bar.

        That nobody reads any more (`| head`, a lost terminal) does not end a run.
        """
        if self.world.is_main:
            with suppress(OSError):
                tqdm.write(text)
                sys.stdout.flush()


def _rate(per_second: float) -> str:
    """Whole numbers, but for slow ones, which are never 0."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _command(world: World) -> str:
    """The command that started this run, without flags that a continuation does not want."""
    python, *given = sys.orig_argv
    words, dropping = [], False
    for word in given:
        if word.startswith("-"):
            dropping = word.split("=")[0] in ("--resume", "--overwrite", "--max_steps")
        if not dropping:
            words.append(word)
    return shlex.join([*world.launched_by(python), *words])
