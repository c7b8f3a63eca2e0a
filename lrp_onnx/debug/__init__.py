"""DeepBug: variations of images, videos, labelled regions, two models side by side, models in training."""
