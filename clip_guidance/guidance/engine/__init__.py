"""One guided step: attach to a pipeline, record the denoiser, take the reward's gradient, write the shift back."""
