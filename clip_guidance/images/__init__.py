"""Any image source to RGB: load, find, hash, and the record that an image carries."""

from clip_guidance.images.load import ImageError as ImageError
from clip_guidance.images.load import ImageSource as ImageSource
from clip_guidance.images.load import load_image as load_image

__all__ = ["ImageError", "ImageSource", "load_image"]
