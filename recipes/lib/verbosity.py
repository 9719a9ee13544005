"""Keeps the libraries' chatter out of a run's output; progress bars and errors stay."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = "accelerate bitsandbytes datasets huggingface_hub lm_eval peft transformers".split()
# Those set their own level on import, from these variables.
VARIABLES = {
    "datasets": "DATASETS_VERBOSITY",
    "huggingface_hub": "HF_HUB_VERBOSITY",
    "transformers": "TRANSFORMERS_VERBOSITY",
}


def hush() -> None:
    """Lets only errors through, unless the environment asks for more."""
    for name in LIBRARIES:
        if VARIABLES.get(name, "") not in os.environ:
            logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_is_error)  # it sets its level on import
    for variable in VARIABLES.values():
        os.environ.setdefault(variable, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"recipes\.")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def restore(level: str) -> None:
    """Sets the libraries to the level that the user asked for with `--log_level`.

    Args:
        level: A name that transformers knows; "passive" leaves things as they are.
    """
    names = {"detail": "DEBUG", "passive": "ERROR"}
    number = logging.getLevelName(names.get(level, level.upper()))
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(number)
    if number < logging.ERROR:
        logging.getLogger("DeepSpeed").removeFilter(_is_error)
        if not sys.warnoptions:
            warnings.resetwarnings()


@contextmanager
def short_bars_hidden() -> Iterator[None]:
    """Hides the libraries' bars for what takes a second: reading, tokenizing, loading and writing.

    Those of training and sampling stay. For a conductor, whose data are known to be small, and for
    loads that are none of the run's own.
    """
    import datasets
    import transformers

    are_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if are_shown:
            datasets.enable_progress_bars()
            transformers.utils.logging.enable_progress_bar()
