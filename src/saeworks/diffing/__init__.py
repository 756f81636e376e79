"""What fine-tuning changed in a language model: one dictionary on paired activations of two models, measured.

``latent_scaling`` is the function of :mod:`saeworks.diffing.latent_pass`, loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeworks.diffing.latent_pass import latent_scaling

__all__ = ["latent_scaling"]


def __getattr__(name: str) -> Any:
    if name == "latent_scaling":
        from saeworks.diffing.latent_pass import latent_scaling

        return latent_scaling
    raise AttributeError(f"module 'saeworks.diffing' has no attribute '{name}'")
