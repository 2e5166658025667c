"""One guided step: attach, record the denoiser, take the gradient, write the shift back."""
