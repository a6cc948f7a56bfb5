"""What a job file can put between a dataset and the model, by name and in order: numpy, Pillow, torchvision, or a callable of your own."""

from neural_tune.transforms.steps import TRANSFORMS, Step, stacked, transforms
from neural_tune.transforms.transform import Batch, Transform

__all__ = ["TRANSFORMS", "Batch", "Step", "Transform", "stacked", "transforms"]
