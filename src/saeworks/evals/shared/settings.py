"""Kinds of settings that many evals have, checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

Several = TypeVar("Several", bound=Sequence[Any])


def _each_once(values: Several) -> Several:
    if len(set(values)) < len(values):
        raise ValueError("a value stands there twice; give each once")
    return values


#: One or more seeds; the same one twice would count one measurement as two.
Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_each_once)]
#: One or more numbers of latents, bins or questions.
Counts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1), AfterValidator(_each_once)]
#: One or more shares or sizes.
Sizes = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), AfterValidator(_each_once)]
#: One or more names.
Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_each_once)]
