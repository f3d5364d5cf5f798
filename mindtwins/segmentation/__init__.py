"""Semantic segmentation with Twins backbones: Semantic FPN and UPerNet."""
