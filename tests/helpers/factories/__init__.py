"""Tiny models of random weights: CLIPs, saved folders of them, and pipelines."""

from helpers.factories.clips import *  # noqa: F403
from helpers.factories.pipelines import *  # noqa: F403
from helpers.factories.saved import *  # noqa: F403
