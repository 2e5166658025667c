"""Train a CLIP: the loop, its objective, checkpoints, batches and what is measured on the way."""
