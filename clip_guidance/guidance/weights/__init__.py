"""Weights of networks that a gradient passes through: freeze, keep in place, clone."""
