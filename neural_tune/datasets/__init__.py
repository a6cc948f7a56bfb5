"""Data that a job file can name: arrays, images and tables on disk, or the user's own loader.

A dataset is one of `DATASETS`; `neural_tune.transforms` changes its batches. Data files are read without pickle, so a data file is never code; a
`factory` names a Python callable, so a job file is. What reads one kind of file is in `neural_tune.data_files`.
"""

from neural_tune.datasets.arrays import ArrayDataset
from neural_tune.datasets.factories import Factory, factory
from neural_tune.datasets.kinds import DATASETS, INC_DATASETS, dataset
from neural_tune.datasets.loader import BatchLoader
from neural_tune.datasets.samples import Dataset

__all__ = ["DATASETS", "INC_DATASETS", "ArrayDataset", "BatchLoader", "Dataset", "Factory", "dataset", "factory"]
