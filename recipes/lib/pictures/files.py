"""Pictures of rows: found in folders, opened as transformers' pipelines open them, made small.

Of a row a picture is bytes or a path, as the datasets library stores it, and not decoded before it
is needed. Nothing here needs torchvision.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # others would start programs
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
COLUMN = "image"
SMALL = 28  # pixels of a side that a yardstick sees
Picture = dict[str, Any]  # bytes, path
OPEN_ERRORS = (OSError, ValueError, SyntaxError, TypeError, KeyError)


def has_pictures(folder: Path) -> bool:
    """Whether pictures lie in a folder, or in folders of it by label, or by split and label."""
    every = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth))
    return any(path.suffix.lower() in SUFFIXES for path in every)


def undecoded(rows: Dataset, places: Sequence[str]) -> Dataset:
    """Rows whose pictures are bytes or paths, and stay that until they are opened.

    Args:
        rows: With a column of pictures, or of their paths.
        places: Where each row stands, such as "line 3 of rows.jsonl": paths begin beside it.
    """
    from datasets import Image, Value

    if isinstance(rows.features[COLUMN], Value):
        files = (Path(place.partition(" of ")[2]) for place in places)
        folders = (file if file.is_dir() else file.parent for file in files)
        named = zip(rows[COLUMN], folders, strict=True)
        paths = [None if name is None else str(folder / str(name)) for name, folder in named]
        rows = rows.remove_columns(COLUMN).add_column(COLUMN, paths)
    return rows.cast_column(COLUMN, Image(decode=False))


def open_picture(picture: Picture, least: int | None = None) -> Image:
    """A picture in three colours, upright, as transformers' pipelines see it.

    Args:
        picture: Its bytes, or its path.
        least: Sides in pixels that are enough, of what can be read smaller than it is.

    Raises:
        UserError: It is not there, or no picture.
    """
    import PIL.Image
    from transformers.image_utils import load_image

    try:
        source = io.BytesIO(picture["bytes"]) if picture["bytes"] else picture["path"]
        with PIL.Image.open(source, formats=FORMATS) as found:
            if least is not None:
                found.draft("RGB", (least, least))
            return load_image(found)
    except (*OPEN_ERRORS, PIL.Image.DecompressionBombError) as error:
        raise UserError(
            f"image={picture['path']}: cannot be opened as a picture ({first_line(error)}); mend "
            "it, or leave its row out."
        ) from error


def picture_fault(picture: Any) -> tuple[str, str] | None:
    """Say why a value cannot be opened: the kind of fault, and a predicate with the value."""
    if picture is None or not (picture.get("bytes") or picture.get("path")):
        return "empty", "is empty"
    try:
        open_picture(picture, least=SMALL)
    except UserError:
        named = repr(picture["path"]) if picture["path"] else "bytes"
        return "picture", f"holds {named}, which cannot be opened as a picture,"
    return None


def pixels(picture: Picture) -> NDArray[Any]:
    """A picture in 28 times 28 pixels of three colours."""
    import numpy as np

    return np.asarray(open_picture(picture, least=SMALL).resize((SMALL, SMALL)))


def content(picture: Picture) -> str:
    """What makes a picture that picture: the hash of its file."""
    found = picture["bytes"] or Path(picture["path"]).read_bytes()
    return hashlib.sha256(found).hexdigest()


def data_uri(picture: Picture, most: int = 128) -> str:
    """A picture for a page, of at most so many pixels on a side."""
    small = open_picture(picture, least=most)
    small.thumbnail((most, most))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
