"""How data that is no array becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eqsat_deploy.errors import InputError
from eqsat_extraction.cautions import caution

Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Reading:
    """Choices for what is read.

    Attributes:
        spec: what the model was named by, such as `torchvision:resnet50`: its library knows how to prepare its images.
        image_size: height and width of images. Where one of this, `mean` and `deviation` is given, images are cropped
            to these proportions around their centre and resized to this, whatever the model's library would do.
        mean: of the channels of images scaled to 0..1, ImageNet's when missing.
        deviation: likewise.
        tokenizer: a local folder with a Hugging Face tokenizer, for texts.
        length: tokens of a text, that of the longest when missing.
        skip_bad: leave out what cannot be read, with a warning that names the first, instead of raising.
    """

    spec: str = ""
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    tokenizer: Path | None = None
    length: int | None = None
    skip_bad: bool = False


PLAIN = Reading()


def read_each(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    name: Callable[[Item], str],
    skip_bad: bool,
    limit: int,
) -> list[Read]:
    """What `read` makes of each item, until there are `limit`.

    Raises:
        InputError: `read` fails, and `skip_bad` is not set, or every item is bad; the message names the first.
    """
    found: list[Read] = []
    bad: list[str] = []
    for item in items:
        if len(found) == limit:
            break
        try:
            found.append(read(item))
        except (
            Exception
        ) as error:  # decoders of broken files raise what they will: OSError, SyntaxError, struct.error
            bad.append(f"{name(item)} cannot be read: {_first_line(error)}")
            if not skip_bad:
                raise InputError(f"{bad[0]}; skip_bad=True (--skip-bad) leaves such out") from error
    if bad and not found:
        raise InputError(f"nothing can be read: {bad[0]}")
    if bad:
        caution(f"{len(bad)} left out; {bad[0]}")
    return found


def _first_line(error: Any) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
