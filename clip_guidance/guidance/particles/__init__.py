"""Particles: several candidates of each prompt travel together, and the promising ones multiply on the way."""

from clip_guidance.guidance.particles.particles import Particles as Particles
from clip_guidance.guidance.particles.result import ParticlesResult as ParticlesResult
from clip_guidance.guidance.particles.result import Resampling as Resampling
