"""The one entry to language models: load one by name, then tokenize, harvest, score and generate with it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.errors import InputError, did_you_mean
from saeworks.models import hooks, tokens
from saeworks.models.checkpoints import Head, fingerprint_directory, fingerprint_parameters, read_checkpoint
from saeworks.models.interventions import Intervention, apply
from saeworks.models.sites import Site, SiteMap
from saeworks.models.tokens import Offsets, TokenBatch
from saeworks.runtime import resolve_device, resolve_dtype


def load_language_model(name: str | Path = "world", device: str = "auto", dtype: str = "float32") -> LanguageModel:
    """Load a causal or masked language model with its tokenizer, ready for inference.

    Args:
        name: ``"world"`` (or ``"world:base"``) and ``"world:chat"`` for the embedded models, the directory of a
            Hugging Face model, or a hub name (``owner/name``, optionally ``owner/name@revision``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``float32``, ``bfloat16`` or ``float16``, whatever the checkpoint was saved in.

    Raises:
        InputError: one sentence about whatever is missing, damaged, unknown or unreachable.
    """
    where, precision = resolve_device(device), resolve_dtype(dtype)
    given = str(name)
    found = read_checkpoint(_source(given), precision)
    return LanguageModel(
        found.module.to(where),
        found.tokenizer,
        name=given,
        head=found.head,
        directory=found.directory,
        revision=found.revision,
    )


def _source(name: str) -> str:
    """The directory of an embedded model; every other name as it is."""
    from saeworks.world.model_files import NAMES, model_path

    if name in NAMES:
        return str(model_path(NAMES[name]))
    if name.startswith("world:") and not Path(name).exists():
        raise InputError(f"There is no embedded model '{name}'.{did_you_mean(name, NAMES)}")
    return name


class LanguageModel:
    """A Hugging Face model plus tokenizer, with named sites.

    Attributes:
        name: as it was asked for.
        module: the transformers model, in eval mode, no parameter requires a gradient.
        tokenizer: its tokenizer.
        device, dtype: of the parameters.
        d_model: width of the residual stream.
        n_layers: number of layers.
        is_causal: True when it predicts the next token, False for masked models and sentence encoders.
        revision: commit hash of the hub repository, ``None`` for local models.
        max_context: the most tokens in a row, ``None`` when the architecture sets no limit.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        *,
        name: str,
        head: Head,
        directory: Path | None = None,
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.revision = revision
        self._directory = directory
        self._head: Head = head
        self._backbone: Any = module.base_model if head != "none" else module
        config = module.config.get_text_config()
        self.is_causal = _is_causal(module.config, head)
        embeddings = module.get_input_embeddings()
        parameter = next(module.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self.d_model = int(getattr(config, "hidden_size", None) or embeddings.weight.shape[1])
        self._map = SiteMap(module, self._backbone, module.config.model_type)
        self.n_layers = self._map.n_layers
        self.max_context = _max_context(config)
        self._rules = tokens.read_rules(tokenizer, int(embeddings.weight.shape[0]), self.max_context, self.is_causal)
        self._widths: dict[tuple[str, str], int] = {}
        self._as_made = self._state()
        self._fingerprint: tuple[tuple[tuple[int, int], ...], str] | None = None

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self._map.model_type}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{self.dtype}, {self.device})"
        )

    # --- identity and sites -------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """What the model is, wherever it lies: ``repository@commit`` for the hub, else a sha256 over config, weights
        and tokenizer files, else (a model made in memory, or weights that were changed since it was loaded) over the
        parameters. Computed once for each state of the weights; writing through ``parameter.data`` is not noticed.
        """
        state = self._state()
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, self._identity(changed=state != self._as_made)
        return self._fingerprint[1]

    def _identity(self, changed: bool) -> str:
        if self._directory is not None and not changed:
            return fingerprint_directory(self._directory)
        if self.revision is not None and not changed:
            return f"{self.name.partition('@')[0]}@{self.revision}"
        return fingerprint_parameters(self.module)

    def _state(self) -> tuple[tuple[int, int], ...]:
        """Which parameters there are, and how often each was changed in place (inference tensors do not count)."""
        return tuple((id(p), 0 if p.is_inference() else p._version) for p in self.module.parameters())

    def sites(self) -> list[str]:
        """Canonical names of all sites, layer by layer in the order of computation."""
        return self._map.names()

    def site(self, name: str) -> Site:
        """Resolve a site name or alias (see ``docs/models.md``).

        Raises:
            InputError: unknown name (with the nearest known one), layer out of range, kind that the architecture
                lacks, or a module that holds no hidden vectors.
        """
        place = self._map.locate(name)
        key = (place.module, place.io)
        if key not in self._widths:
            self._widths[key] = self._measure_width(place)
        return replace(place, width=self._widths[key])

    def _measure_width(self, place: Site) -> int:
        if place.name.endswith((".resid_pre", ".resid_post", ".mlp_out", ".attn_out")) and place.layer >= 0:
            return self.d_model
        # Every other width is read off a pass over one token: no architecture has to be asked how it counts heads.
        probe = tokens.batch_from_ids(self._rules, [[0]]).to(self.device)
        taken = hooks.capture(self.module, [place], lambda: self._run_backbone(probe))
        return taken[place.module, place.io].shape[-1]

    # --- tokens -------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str], context_length: int, prepend_bos: bool | None = None) -> TokenBatch:
        """Token batch of texts, one row each, cut to ``context_length`` tokens; see :func:`tokens.tokenize`."""
        return tokens.tokenize(self.tokenizer, self._rules, texts, context_length, prepend_bos)

    def batch_from_ids(self, rows: Sequence[Sequence[int]], offsets: Offsets | None = None) -> TokenBatch:
        """Token batch of rows that are token ids already, special tokens included."""
        return tokens.batch_from_ids(self._rules, rows, offsets)

    # --- forward passes -----------------------------------------------------------------------------------------

    def harvest(self, batch: TokenBatch, sites: Sequence[str]) -> dict[str, Tensor]:
        """Activations at several sites from one forward pass, which ends at the deepest of them.

        The language-model head is never computed. Positions outside ``batch.keep`` are returned too.

        Returns:
            ``{name as given: [row, position, width]}`` in the model's dtype, on its device. Two names of one site
            share a tensor.

        Raises:
            InputError: no sites, a name that does not resolve, or a module that the pass does not reach.
        """
        if isinstance(sites, str):
            raise InputError(f"harvest() takes a list of sites, but got the string '{sites}'; put it in a list.")
        if not sites:
            raise InputError("harvest() got no sites; give at least one, such as 'layers.0.resid_post'.")
        places = {name: self._map.locate(name) for name in sites}
        moved = batch.to(self.device)
        taken = hooks.capture(self.module, list(places.values()), lambda: self._run_backbone(moved))
        return {name: taken[place.module, place.io] for name, place in places.items()}

    def logits(self, batch: TokenBatch, interventions: Sequence[Intervention] = ()) -> Tensor:
        """Logits ``[row, position, vocabulary]`` float32, with interventions active during the pass.

        Interventions at one site act in the order given; later sites see what earlier ones changed.

        Raises:
            InputError: the model has no language-model head, or an intervention does not fit its site.
        """
        if self._head == "none":
            raise InputError(
                f"Model '{self.name}' has no language-model head, so it has no logits; "
                "its sites can be harvested, but losses need a causal or masked language model."
            )
        moved = batch.to(self.device)
        with torch.no_grad(), self._intervening(interventions, _Keep(moved.keep)):
            return self.module(**self._inputs(moved)).logits.float()

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        interventions: Sequence[Intervention] = (),
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Continuations of the prompts, without the prompts and without special tokens.

        Args:
            max_new_tokens: the most tokens to add to each prompt.
            interventions: active while the prompt is read and for every new token.
            temperature: 0 picks the likeliest token; above 0 draws from the softmax of logits / temperature.
            seed: of the draws; the caller's random state is left as it was.
            stop: tokens that end a continuation, beside the model's own end token, and are no part of it.

        Raises:
            InputError: the model is not causal, prompt and new tokens exceed its context, or a stop is no single token.
        """
        if not self.is_causal or self._head != "causal":
            raise InputError(f"Model '{self.name}' does not predict the next token, so it cannot generate text.")
        limit = self.max_context
        if max_new_tokens < 1 or temperature < 0:
            raise InputError(
                f"max_new_tokens is {max_new_tokens} and temperature {temperature}; give at least 1 and at least 0."
            )
        batch = self.tokenize(prompts, limit or 1_000_000)
        width = batch.token_ids.shape[1]
        if limit is not None and width + max_new_tokens > limit:
            raise InputError(
                f"A prompt of {width} tokens and {max_new_tokens} new ones exceed the model's {limit} positions; "
                "shorten one of them."
            )
        if not bool(batch.attention_mask.any(dim=1).all()):
            raise InputError(
                "A prompt is empty and the tokenizer has no BOS token to start from; write at least a word."
            )
        stops = [self._token(text) for text in stop]
        ids, mask = _left_padded(batch)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        if stops:
            own: int | list[int] | None = self.module.generation_config.eos_token_id
            sampling["eos_token_id"] = [*stops, *([own] if isinstance(own, int) else own or [])]
        keep = _Keep(batch.keep)
        random_devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.no_grad(),
            torch.random.fork_rng(random_devices),
            self._intervening(interventions, keep),
            self._following(keep),
        ):
            torch.manual_seed(seed)
            grown = self.module.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device).long(),
                max_new_tokens=max_new_tokens,
                pad_token_id=self._rules.pad_id,
                use_cache=True,
                **sampling,
            )
        rows = [_before(row, stops) for row in grown[:, width:].tolist()]
        return list(self.tokenizer.batch_decode(rows, skip_special_tokens=True))

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the assistant's next turn, by the tokenizer's chat template.

        Args:
            messages: the turns so far, ``{"role": "system" | "user" | "assistant", "content": text}``.

        Raises:
            InputError: the tokenizer has no chat template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(f"The tokenizer of model '{self.name}' has no chat template; it is no chat model.")
        turns = [dict(message) for message in messages]
        prompt: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        # Tokenizing a prompt for a causal model puts this token in front; a second one would be unlike any training.
        return prompt.removeprefix(self.tokenizer.bos_token or "")

    # --- inside -------------------------------------------------------------------------------------------------

    def _token(self, text: str) -> int:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"The stop '{text}' is {len(ids)} tokens for model '{self.name}'; give a single token.")
        return ids[0]

    def _inputs(self, batch: TokenBatch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.token_ids, "attention_mask": batch.attention_mask.long()}
        if self.is_causal and "use_cache" in inspect.signature(self._backbone.forward).parameters:
            inputs["use_cache"] = False
        return inputs

    def _run_backbone(self, batch: TokenBatch) -> Any:
        return self._backbone(**self._inputs(batch))

    def _intervening(
        self, interventions: Sequence[Intervention], keep: _Keep
    ) -> contextlib.AbstractContextManager[None]:
        edits: list[tuple[Site, Callable[[Tensor], Tensor]]] = []
        for intervention in interventions:
            if not isinstance(intervention, Intervention):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InputError(
                    f"A {type(intervention).__name__} is no intervention; use Splice, Steer and their like."
                )
            site = self.site(intervention.site)
            intervention.check(site.width)
            edits.append((site, _edit(intervention, keep)))
        return hooks.editing(self.module, edits)

    @contextlib.contextmanager
    def _following(self, keep: _Keep) -> Generator[None, None, None]:
        """While generating, each pass sees only the newest tokens: derive the mask from what the pass receives."""

        def before(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            ids: Tensor = kwargs["input_ids"]
            mask = kwargs.get("attention_mask")
            newest = mask[:, -ids.shape[1] :].bool() if isinstance(mask, Tensor) and mask.ndim == 2 else ids >= 0
            keep.mask = self._rules.keep(ids, newest)

        handle = self.module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class _Keep:
    """The mask of the pass that is running."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask


def _edit(intervention: Intervention, keep: _Keep) -> Callable[[Tensor], Tensor]:
    return lambda x: apply(intervention, x, keep.mask)


def _before(row: list[int], stops: Sequence[int]) -> list[int]:
    """The row up to its first stop."""
    return row[: next((at for at, token in enumerate(row) if token in stops), len(row))]


def _is_causal(config: Any, head: Head) -> bool:
    if head != "none":
        return head == "causal"
    from transformers.models.auto import modeling_auto

    if getattr(config, "is_decoder", False):
        return True
    return (
        config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _max_context(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    # RoBERTa and its kin start to count positions after the padding id.
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return positions - int(config.pad_token_id or 0) - 1
    return positions


def _left_padded(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Ids and mask with the padding in front, as generation needs it."""
    order = torch.argsort(batch.attention_mask.int(), dim=1, stable=True)
    return batch.token_ids.gather(1, order), batch.attention_mask.gather(1, order)
