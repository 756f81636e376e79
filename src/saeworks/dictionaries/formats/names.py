"""Names of sites and models in other tools, and ours for them."""

from __future__ import annotations

import re

from saeworks.models.sites import parse_site

_HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "attn_z": "blocks.{}.attn.hook_z",
    "mlp_hidden": "blocks.{}.mlp.hook_post",
}
# A module named in sparsify's way means its output.
_MODULES = {"": "resid_post", ".mlp": "mlp_out", ".self_attn": "attn_out", ".attn": "attn_out"}


def site_of(name: str) -> str | None:
    """Our name of a site that another tool calls ``name``: the name itself where we have none, None for nothing.

    Understands TransformerLens hooks (``blocks.3.hook_resid_post``), dictionary_learning's submodules
    (``resid_post_layer_3``) and sparsify's hook points (``layers.3``, ``layers.3.mlp``).
    """
    if not name:
        return None
    parsed = parse_site(name)
    if parsed is not None:
        return f"layers.{parsed[1]}.{parsed[0]}"
    if match := re.fullmatch(r"(resid_pre|resid_post|mlp_out|attn_out)_layer_(\d+)", name):
        return f"layers.{match[2]}.{match[1]}"
    if (match := re.fullmatch(r"(?:layers|h)\.(\d+)(\.\w+)?", name)) and (match[2] or "") in _MODULES:
        return f"layers.{match[1]}.{_MODULES[match[2] or '']}"
    return name


def hook_of(site: str) -> str:
    """The TransformerLens hook of one of our sites; other names are returned as they are."""
    parsed = parse_site(site)
    return _HOOKS[parsed[0]].format(parsed[1]) if parsed is not None and parsed[0] in _HOOKS else site


def layer_of(site: str) -> int:
    """The layer that a site or hook belongs to; 0 when its name has no number."""
    numbers = re.findall(r"\d+", site)
    return int(numbers[0]) if numbers else 0


def model_of(name: str) -> str | None:
    """The hub name of a model that another tool calls ``name``; names with an owner are returned as they are."""
    if not name:
        return None
    if "/" in name:
        return name
    if name.startswith("gpt2"):
        return "openai-community/" + name.replace("gpt2-small", "gpt2")
    for start, owner in (("pythia-", "EleutherAI"), ("gemma-", "google"), ("Llama-3", "meta-llama")):
        if name.startswith(start):
            return f"{owner}/{name}"
    return name
