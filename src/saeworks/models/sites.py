"""Sites: the places in a language model where activations are read or written, and every name they go by.

Canonical names are ``layers.N.KIND`` with these kinds (``d`` is the width of the residual stream):

``resid_pre``   input of layer N, width d
``resid_post``  output of layer N, width d. The last one is taken *before* the final norm of a decoder
``attn_out``    what the attention block adds to the residual stream, width d
``mlp_out``     what the MLP block adds to the residual stream, width d
``attn_z``      input of the attention's output projection: the heads side by side, width heads × head size
``mlp_hidden``  input of the MLP's down projection: the hidden vector after the activation function (and the gate)

"What the block adds" decides the module: Gemma 2, Gemma 3 and OLMo 2 normalise a block's output before adding it, so
there the site is the output of that norm. BERT-like encoders normalise *after* the addition (post-LN): ``attn_out``
and ``mlp_out`` are the outputs of the two dense projections before the residual is added, and ``resid_post`` is the
layer's output after its second LayerNorm, so differences of ``resid_post`` are not sums of the two.

One table row per architecture says where its parts are. An architecture without a row still has ``resid_pre``,
``resid_post`` and module paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from saeworks.errors import InputError, did_you_mean

IO = Literal["in", "out"]
KINDS = ("resid_pre", "attn_z", "attn_out", "mlp_hidden", "mlp_out", "resid_post")


@dataclass(frozen=True, slots=True)
class Site:
    """A resolved site. ``module`` is the module path, read at its input or output (``io``), ``width`` in floats.

    ``layer`` is −1 for a module outside the layers, an embedding for instance.
    """

    name: str
    module: str
    io: IO
    layer: int
    width: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an architecture keeps its parts: ``layers`` below the backbone, the rest below one layer."""

    layers: str
    attention: str  # its output is added to the residual stream
    attention_projection: str  # its input is attn_z
    mlp: str  # its output is added to the residual stream
    mlp_projection: str  # its input is mlp_hidden

    def place(self, kind: str) -> tuple[str, IO]:
        """Module path below the layer and the end of it that is read."""
        places: dict[str, tuple[str, IO]] = {
            "resid_pre": ("", "in"),
            "resid_post": ("", "out"),
            "attn_out": (self.attention, "out"),
            "attn_z": (self.attention_projection, "in"),
            "mlp_out": (self.mlp, "out"),
            "mlp_hidden": (self.mlp_projection, "in"),
        }
        return places[kind]


_LLAMA = Layout("layers", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj")
_GEMMA = replace(_LLAMA, attention="post_attention_layernorm", mlp="post_feedforward_layernorm")
_GPT_2 = Layout("h", "attn", "attn.c_proj", "mlp", "mlp.c_proj")
_BERT = Layout("encoder.layer", "attention.output.dense", "attention.output.dense", "output.dense", "output.dense")

# Keys are the `model_type` of a config.json.
LAYOUTS: dict[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "phi3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _GEMMA,
    "gemma3": replace(_GEMMA, layers="language_model.layers"),
    "gpt2": _GPT_2,
    "gpt_neo": replace(_GPT_2, attention_projection="attn.attention.out_proj"),
    "gpt_neox": Layout("layers", "attention", "attention.dense", "mlp", "mlp.dense_4h_to_h"),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "mpnet": replace(_BERT, attention="attention.attn.o", attention_projection="attention.attn.o"),
    "distilbert": Layout("transformer.layer", "attention.out_lin", "attention.out_lin", "ffn.lin2", "ffn.lin2"),
    "modernbert": Layout("layers", "attn", "attn.Wo", "mlp", "mlp.Wo"),
}

_NUMBER = r"(-?\d+)"
# Other tools' names, each with the kind it stands for: TransformerLens before and since its version 3, nnterp, short.
_ALIASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern.replace("#", _NUMBER)), kind)
    for pattern, kind in (
        (r"blocks\.#\.hook_resid_pre", "resid_pre"),
        (r"blocks\.#\.hook_resid_post", "resid_post"),
        (r"blocks\.#\.hook_attn_out", "attn_out"),
        (r"blocks\.#\.hook_mlp_out", "mlp_out"),
        (r"blocks\.#\.attn\.hook_z", "attn_z"),
        (r"blocks\.#\.mlp\.hook_post", "mlp_hidden"),
        (r"blocks\.#\.hook_in", "resid_pre"),
        (r"blocks\.#\.hook_out", "resid_post"),
        (r"blocks\.#\.attn\.hook_out", "attn_out"),
        (r"blocks\.#\.mlp\.hook_out", "mlp_out"),
        (r"layers_input\[#\]", "resid_pre"),
        (r"layers_output\[#\]", "resid_post"),
        *((rf"layers\.#\.{kind}", kind) for kind in KINDS),
        *((rf"{kind}:#", kind) for kind in KINDS),
    )
)


def parse_site(name: str) -> tuple[str, int] | None:
    """``(kind, layer)`` for a canonical name or an alias, ``None`` for anything else (a module path, a typo)."""
    for pattern, kind in _ALIASES:
        if match := pattern.fullmatch(name.strip()):
            return kind, int(match.group(1))
    return None


class SiteMap:
    """The sites of one loaded module tree.

    Args:
        module: the whole model, with or without a language-model head.
        backbone: the part of it that computes hidden states (``module`` itself when there is no head).
        model_type: the key into ``LAYOUTS``.

    Raises:
        InputError: when no stack of layers can be found.
    """

    def __init__(self, module: nn.Module, backbone: nn.Module, model_type: str) -> None:
        self.module = module
        self.model_type = model_type
        self.prefix = next(path for path, child in module.named_modules() if child is backbone)
        self._known = {path for path, _ in module.named_modules()}
        layout = LAYOUTS.get(model_type)
        if layout is None or self._join(self.prefix, layout.layers) not in self._known:
            layout = None
        self.layout = layout
        self.layers = self._join(self.prefix, layout.layers) if layout else self._longest_stack(backbone)
        stack = module.get_submodule(self.layers)
        assert isinstance(stack, nn.ModuleList)
        self.n_layers = len(stack)
        self.kinds = tuple(kind for kind in KINDS if self._has(kind))

    def names(self) -> list[str]:
        """Canonical names of all sites, layer by layer in the order of computation."""
        return [f"layers.{layer}.{kind}" for layer in range(self.n_layers) for kind in self.kinds]

    def locate(self, name: str) -> Site:
        """Resolve a name; ``width`` is left at 0 for the caller, who can run the model, to fill in.

        Raises:
            InputError: unknown name, layer out of range, or a kind this architecture has no row for.
        """
        parsed = parse_site(name)
        if parsed is None:
            return self._locate_module(name.strip())
        kind, layer = parsed
        if not 0 <= layer < self.n_layers:
            raise InputError(
                f"Site '{name}' asks for layer {layer}, but the model has {self.n_layers} layers "
                f"(0 to {self.n_layers - 1}); choose one of these."
            )
        if kind not in self.kinds:
            raise InputError(
                f"Site '{name}' is not available: the architecture '{self.model_type}' has no entry for its {kind}; "
                f"use resid_pre, resid_post or a module path such as '{self._example_path(layer)}'."
            )
        path, io = self._place(kind, layer)
        return Site(f"layers.{layer}.{kind}", path, io, layer, 0)

    def _locate_module(self, name: str) -> Site:
        path, _, end = name.partition(":")
        if end not in ("", "in", "out"):
            raise self._unknown(name)
        io: IO = "in" if end == "in" else "out"
        # Paths may be written from the whole model or from its backbone.
        found = next((p for p in (path, self._join(self.prefix, path)) if path and p in self._known), None)
        if found is None:
            raise self._unknown(name)
        if self.prefix and not (found + ".").startswith(self.prefix + "."):
            raise InputError(
                f"Module '{found}' belongs to the language-model head; activations are read inside "
                f"'{self.prefix}' only, so name a module below it."
            )
        below = re.match(re.escape(self.layers) + r"\.(\d+)(?:\.|$)", found)
        layer = int(below.group(1)) if below else -1
        if layer >= 0:
            for kind in self.kinds:
                if self._place(kind, layer) == (found, io):
                    return Site(f"layers.{layer}.{kind}", found, io, layer, 0)
        return Site(found + (":in" if io == "in" else ""), found, io, layer, 0)

    def _place(self, kind: str, layer: int) -> tuple[str, IO]:
        if kind == "resid_pre":
            return f"{self.layers}.{layer}", "in"
        if kind == "resid_post":
            return f"{self.layers}.{layer}", "out"
        assert self.layout is not None
        path, io = self.layout.place(kind)
        return f"{self.layers}.{layer}.{path}", io

    def _has(self, kind: str) -> bool:
        if kind.startswith("resid"):
            return True
        # A variant of a known architecture (a mixture of experts, say) may lack a part in some layers.
        return self.layout is not None and all(self._place(kind, i)[0] in self._known for i in range(self.n_layers))

    def _unknown(self, name: str) -> InputError:
        kinds = ", ".join(self.kinds)
        parts = (path for path in self._known if path.startswith(self.layers + "."))
        hint = did_you_mean(name, self._near(name) + sorted(parts))
        return InputError(
            f"Unknown site '{name}'; expected layers.N.KIND with KIND one of {kinds}, or a module path.{hint}"
        )

    def _near(self, name: str) -> list[str]:
        """Canonical names and aliases with the layer number that was written, so that the suggestion keeps it."""
        numbers = [int(n) for n in re.findall(r"\d+", name) if int(n) < self.n_layers] or [0]
        near: list[str] = []
        for layer in numbers:
            near += [f"layers.{layer}.{kind}" for kind in self.kinds]
            near += [f"blocks.{layer}.hook_{kind}" for kind in self.kinds if kind not in ("attn_z", "mlp_hidden")]
            near += [f"{kind}:{layer}" for kind in self.kinds]
        return near

    def _example_path(self, layer: int) -> str:
        start = f"{self.layers}.{layer}."
        inside = sorted(path for path in self._known if path.startswith(start))
        return next((path for path in inside if "mlp" in path or "ff" in path), inside[0] if inside else start[:-1])

    @staticmethod
    def _join(*parts: str) -> str:
        return ".".join(part for part in parts if part)

    def _longest_stack(self, backbone: nn.Module) -> str:
        """Path of the longest outermost ``ModuleList``: lists inside a layer (experts, say) are not layers."""
        outermost = sorted(_outer_lists(backbone, ""), key=lambda item: -len(item[1]))
        if not outermost or len(outermost[0][1]) == 0:
            raise InputError(
                f"The architecture '{self.model_type}' has no list of layers, so it has no sites; "
                "use a transformer language model."
            )
        return self._join(self.prefix, outermost[0][0])


def _outer_lists(module: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield below, child
        else:
            yield from _outer_lists(child, below)
