"""What is known of diffusers: pipelines, latent layouts, schedulers and unsupported classes."""
