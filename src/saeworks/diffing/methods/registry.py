"""All methods by name, and the one call that runs any of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from saeworks.diffing.methods.activation_difference import ActivationDifference
from saeworks.diffing.methods.crosscoder import Crosscoder
from saeworks.diffing.methods.difference_lens import DifferenceLens
from saeworks.diffing.methods.difference_pca import DifferencePCA
from saeworks.diffing.methods.difference_sae import DifferenceSAE
from saeworks.diffing.methods.interface import Method, MethodResult
from saeworks.diffing.methods.per_token_kl import PerTokenKL
from saeworks.diffing.pairs import PairedSource
from saeworks.errors import InputError, did_you_mean

#: In the order in which to try them: what costs least comes first.
METHODS: dict[str, type[Any]] = {
    method.name: method
    for method in (PerTokenKL, ActivationDifference, DifferenceLens, DifferencePCA, DifferenceSAE, Crosscoder)
}


def method(name: str, **settings: Any) -> Method:
    """The method called ``name`` with some settings; ``InputError`` for an unknown name or setting."""
    if name not in METHODS:
        raise InputError(f"There is no method '{name}' of comparing models.{did_you_mean(name, METHODS)}")
    known = [f.name for f in fields(METHODS[name])]
    for setting in settings:
        if setting not in known:
            raise InputError(f"The method '{name}' has no setting '{setting}'.{did_you_mean(setting, known)}")
    return METHODS[name](**settings)


def diff(source: PairedSource, name: str, tokens: int | None = None, **settings: Any) -> MethodResult:
    """What one method finds between the two models of a source, on at most ``tokens`` tokens of it.

    Raises:
        InputError: an unknown method or setting, or a source that the method cannot use.
    """
    return method(name, **settings).run(source, tokens)
