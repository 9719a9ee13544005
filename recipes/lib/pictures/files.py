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
IMAGE, IMAGES = "image", "images"
SHOWN = 128  # pixels of a side on a page
SMALL = 28  # pixels of a side that a yardstick sees
Picture = dict[str, Any]  # bytes, path
OPEN_ERRORS = (OSError, ValueError, SyntaxError, TypeError, KeyError)


def has_pictures(folder: Path) -> bool:
    """Whether pictures lie in a folder, or in folders of it by label, or by split and label."""
    every = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth))
    return any(path.suffix.lower() in SUFFIXES for path in every)


def undecoded(rows: Dataset, places: Sequence[str], column: str = IMAGE) -> Dataset:
    """Rows whose pictures are bytes or paths, and stay that until they are opened.

    Args:
        rows: With a column of pictures or of their paths: one each, or where it is `images` a list.
        places: Where each row stands, such as "line 3 of rows.jsonl": paths begin beside it.
        column: Its name.
    """
    from datasets import Image, List, Value

    feature = rows.features[column]
    inside = getattr(feature, "feature", feature)
    if isinstance(inside, Value) and inside.dtype in ("binary", "large_binary"):
        rows = _replaced(rows, column, rows[column], lambda one, _: {"bytes": one, "path": None})
    elif isinstance(inside, Value):
        files = (Path(place.partition(" of ")[2]) for place in places)
        folders = [file if file.is_dir() else file.parent for file in files]
        rows = _replaced(rows, column, folders, lambda one, at: str(at / str(one)))
    kind = Image(decode=False)
    try:
        return rows.cast_column(column, kind if column == IMAGE else List(kind))
    except (TypeError, ValueError, ArithmeticError) as error:
        what = "a picture" if column == IMAGE else "a list of pictures"
        raise UserError(
            f"column {column!r} holds {feature}, and not {what}; give paths, or what the datasets "
            f"library makes of them{'' if column == IMAGE else ', in a list for each row'}."
        ) from error


def _replaced(rows: Dataset, column: str, beside: Sequence[Any], make: Any) -> Dataset:
    def of(value: Any, other: Any) -> Any:
        if isinstance(value, list):
            return [of(one, other) for one in value]
        return None if value is None else make(value, other)

    made = [of(value, other) for value, other in zip(rows[column], beside, strict=True)]
    return (
        rows.add_column(f"_{column}", made)
        .remove_columns(column)
        .rename_column(f"_{column}", column)
    )


def with_pictures(rows: Dataset, places: Sequence[str]) -> Dataset:
    """Rows with a column `images`, undecoded, where they have that or `image`; others as they are.

    Args:
        rows: The rows; one without a picture has an empty list.
        places: As of `undecoded`.
    """
    from datasets import Features, Image, List

    if not {IMAGE, IMAGES} & {*rows.column_names}:
        return rows
    names = [name for name in (IMAGE, IMAGES) if name in rows.column_names]
    for name in names:
        rows = undecoded(rows, places, name)
    others = {name: kind for name, kind in rows.features.items() if name != IMAGE}
    features = Features(others | {IMAGES: List(Image(decode=False))})

    def gather(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        alone = batch.get(IMAGE) or [None] * len(batch[names[0]])
        many = batch.get(IMAGES) or [None] * len(alone)
        both = zip(many, alone, strict=True)
        return {IMAGES: [some or ([] if one is None else [one]) for some, one in both]}

    # In batches, and not in memory where the rows are not.
    return rows.map(
        gather,
        batched=True,
        batch_size=100,
        features=features,
        remove_columns=[IMAGE] if IMAGE in names else None,
    )


def pictured(rows: Dataset) -> bool:
    """Whether rows have passed `with_pictures`, and have some."""
    from datasets import Image

    kind = getattr(rows.features.get(IMAGES), "feature", None)
    return isinstance(kind, Image) and not kind.decode


def opened(rows: Dataset | None) -> Dataset | None:
    """Rows whose pictures are opened as they are read, as TRL's trainers want them."""
    from datasets import Image, List

    if rows is None or IMAGES not in rows.column_names:
        return rows
    return rows.cast_column(IMAGES, List(Image(mode="RGB")))


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
            if found.mode[0] in "IF":
                raise ValueError(f"mode {found.mode}, whose brightness would be cut off at 255")
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
    if isinstance(picture, list):
        return next(filter(None, map(picture_fault, picture)), None)
    if not isinstance(picture, dict) or not (picture.get("bytes") or picture.get("path")):
        return "empty", "is empty"
    try:
        open_picture(picture, least=SMALL)
    except UserError:
        named = repr(picture["path"])[:200] if picture["path"] else "bytes"
        return "picture", f"holds {named}, which cannot be opened as a picture,"
    return None


def pixels(picture: Picture) -> NDArray[Any]:
    """A picture in 28 times 28 pixels of three colours."""
    import numpy as np

    return np.asarray(open_picture(picture, least=SMALL).resize((SMALL, SMALL)))


def content(picture: Any) -> Any:
    """What makes a picture that picture, the hash of its file; of several, those of each."""
    if isinstance(picture, list):
        return [content(one) for one in picture]
    if not isinstance(picture, dict):
        return picture  # a name, of rows whose pictures are not looked at
    found = picture["bytes"] or Path(picture["path"]).read_bytes()
    return hashlib.sha256(found).hexdigest()


def data_uri(picture: Image) -> str:
    """A picture for a page, made smaller where it is large."""
    small, file = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((SHOWN, SHOWN))
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
