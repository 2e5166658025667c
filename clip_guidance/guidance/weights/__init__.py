"""Weights of networks that a gradient passes through: freeze them, keep them in place, clone them."""
