"""Typed configuration: what can be set, and reading it from YAML files and flags."""

from mindtwins.config.options import (
    PUBLISHED_WEIGHTS,
    Config,
    InferConfig,
    PredictConfig,
    ServeConfig,
    TrainConfig,
    ValidateConfig,
)
from mindtwins.config.parsing import as_begun, as_dict, config_diff, parse_config

__all__ = [
    "PUBLISHED_WEIGHTS",
    "Config",
    "InferConfig",
    "PredictConfig",
    "ServeConfig",
    "TrainConfig",
    "ValidateConfig",
    "as_begun",
    "as_dict",
    "config_diff",
    "parse_config",
]
