"""Object detection and instance segmentation with Twins backbones: RetinaNet and Mask R-CNN."""
