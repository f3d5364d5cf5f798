"""PyTorch checkpoints to MindSpore's and back, with nothing guessed and nothing left over."""
