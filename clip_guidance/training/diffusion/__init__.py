"""Train the parts of a latent diffusion model, and what makes it cheaper to draw with and to steer."""
