"""Train a CLIP: the loop, its objective, checkpoints, batches and evaluation."""
