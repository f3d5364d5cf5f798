"""What the detectors share: backbone, pyramid and the way of a picture through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from mindtwins.detection.boxes import anchors_of_level
from mindtwins.detection.detections import Detections, Geometry
from mindtwins.detection.postprocessing import PostProcessing
from mindtwins.errors import UserError
from mindtwins.models.feature_pyramid import FeaturePyramid
from mindtwins.models.twins import Backbone, Dialect, checked_images


class Detector(nn.Cell):
    """A backbone and a pyramid, which subclasses put their heads on.

    Args:
        backbone: gives four maps.
        neck: the pyramid of its maps.
        num_classes: of the objects; the background is none of them.
        postprocessing: after the network.
        dialect: of the backbone.
        backbone_variant: its name, by which its weights are recognized.

    Attributes:
        first_stage: the first of the backbone's stages that the pyramid is made of.
        strides: of the pyramid's levels, in pixels of the image.
        scales: of the anchors' sides, in strides.
        in_channels: of the images.
        drop_path_rates: of the backbone's residual branches.
    """

    first_stage = 0
    strides: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()

    def __init__(
        self,
        backbone: Backbone,
        neck: FeaturePyramid,
        num_classes: int,
        postprocessing: PostProcessing,
        dialect: Dialect,
        backbone_variant: str,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.num_classes = num_classes
        self.postprocessing = postprocessing
        self.dialect = dialect
        self.backbone_variant = backbone_variant
        self.in_channels = backbone.in_channels
        self.drop_path_rates = backbone.drop_path_rates

    def features(self, images: Tensor, drop_path_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Images (N, C, H, W) -> the backbone's four maps (N, H_i, W_i, C_i), channels-last."""
        return self.backbone.stages(images, drop_path_mask)

    def pyramid(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The backbone's maps -> the five levels (N, H_i, W_i, channels)."""
        return self.neck(maps[self.first_stage :])

    def anchors(self, height: int, width: int) -> list[np.ndarray]:
        """The anchors (n, 4) of each level for images of such a size."""
        sizes = []
        for embedding in self.backbone.patch_embeds:
            height, width = embedding.size_of(height), embedding.size_of(width)
            sizes.append((height, width))
        sizes = sizes[self.first_stage :]
        while len(sizes) < len(self.strides):
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return [
            anchors_of_level(*size, stride, self.scales)
            for size, stride in zip(sizes, self.strides, strict=True)
        ]

    def predict(self, images: Tensor, geometries: Sequence[Geometry]) -> list[Detections]:
        """The objects in each of a batch of images (N, C, H, W).

        The network's parts are graphs of fixed shapes; what is between them runs on arrays. A
        detector in training evaluates for this call, without stochastic depth.

        Args:
            images: normalized, padded at the bottom and the right.
            geometries: of each picture.

        Raises:
            UserError: the network's outputs are not finite.
            ValueError: there are not as many geometries as images.
        """
        if len(geometries) != images.shape[0]:
            raise ValueError(f"{images.shape[0]} images have {len(geometries)} geometries")
        if not self.training:
            return self._detect(images, geometries)
        self.set_train(False)
        try:
            return self._detect(images, geometries)
        finally:
            self.set_train()

    def _detect(self, images: Tensor, geometries: Sequence[Geometry]) -> list[Detections]:
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """See `Backbone.check_size`."""
        self.backbone.check_size(height, width)

    def __call__(self, images: Tensor, *args: Tensor | None) -> Any:
        images = checked_images(images, self.in_channels)
        return super().__call__(images, *args)


def arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The values of a head's outputs, float32.

    Raises:
        UserError: some are not finite, which no box or mask can be made of.
    """
    values = [tensor.asnumpy().astype(np.float32, copy=False) for tensor in tensors]
    if not all(np.isfinite(array).all() for array in values):
        raise UserError(
            "the detector's outputs are not all finite numbers: its weights are damaged or of a "
            "training that diverged, or fp16 is too narrow for them, where amp_level O0 is not"
        )
    return values
