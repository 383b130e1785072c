"""From files to tensors, and from tensors to batches.

rusttorch.data.read_csv(path)               a file of comma-separated values, by all threads
rusttorch.data.read_image(path)             an image, decoded; ImageFolder(root), a dataset of such
rusttorch.data.images_to_batch(images, size)
                                            images, cropped, resized, flipped and normalized into a batch, by one op
rusttorch.data.transforms                   random augmentations of batches of images, by torchvision's names
rusttorch.data.functional                   what they do, with a parameter for each image
rusttorch.data.Loader(dataset, batch_size)  batches, made by threads ahead of their use
rusttorch.data.normalize(x), create_batches(x, y, batch_size), shuffle_indices(n), train_val_test_split(x, y)
                                            tables that are tensors
"""

from . import functional, transforms
from .csv import Table, read_csv
from .images import ImageFolder, images_to_batch, read_image
from .loader import Loader
from .tabular import create_batches, normalize, shuffle_indices, train_val_test_split

__all__ = [
    "ImageFolder",
    "Loader",
    "Table",
    "create_batches",
    "functional",
    "images_to_batch",
    "normalize",
    "read_csv",
    "read_image",
    "shuffle_indices",
    "train_val_test_split",
    "transforms",
]
