"""What we know of diffusers: pipelines, latent layouts, noise levels, predictions, and what cannot be guided."""
