"""Draw images: settings, the generator behind ``clip-guidance generate``, and :func:`load_pipeline`."""
