"""From a checkpoint to a file that other programs run, compared with the live model."""
