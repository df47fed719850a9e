"""Data sets in YOLO and COCO form, the letterbox, batches, calibration sets, augmentation, and the demo set."""

from repq.data.augment import Placement, SamplePlan, plan_sample, render, warp
from repq.data.cache import ImageCache
from repq.data.calibration_set import calibration_set, read_manifest, write_manifest
from repq.data.classes import class_places, fit_classes, fit_splits
from repq.data.dataset import DetectionDataset, ImageRecord, fingerprint, image_hashes, pixel_boxes
from repq.data.demo import make_demo_set
from repq.data.guards import demand_objects, overlap_note, warn_of_overlap
from repq.data.images import decode_image, image_size, read_image
from repq.data.letterbox import LetterboxTransform, letterbox, letterbox_transform
from repq.data.load import listed_images, load_dataset
from repq.data.loader import Batch, LetterboxedImages, batches, to_input

__all__ = [
    "Batch",
    "DetectionDataset",
    "ImageCache",
    "ImageRecord",
    "LetterboxTransform",
    "LetterboxedImages",
    "Placement",
    "SamplePlan",
    "batches",
    "calibration_set",
    "class_places",
    "decode_image",
    "demand_objects",
    "fingerprint",
    "fit_classes",
    "fit_splits",
    "image_hashes",
    "image_size",
    "letterbox",
    "letterbox_transform",
    "listed_images",
    "load_dataset",
    "make_demo_set",
    "overlap_note",
    "pixel_boxes",
    "plan_sample",
    "read_image",
    "read_manifest",
    "render",
    "to_input",
    "warn_of_overlap",
    "warp",
    "write_manifest",
]
