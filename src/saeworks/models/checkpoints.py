"""Finding and reading a checkpoint: directory or hub name in; config, module and tokenizer out; errors as sentences."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from saeworks.errors import InputError
from saeworks.files import read_json, sha256_bytes, sha256_file
from saeworks.models.hub import offline_unless_reachable, quiet_hub_client

Head = Literal["causal", "masked", "none"]

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model read from disk or from the hub.

    Attributes:
        directory: the local directory, ``None`` for a hub repository.
        revision: commit hash of a hub repository when known.
    """

    module: Any
    tokenizer: Any
    head: Head
    directory: Path | None
    revision: str | None


def read_checkpoint(name: str, dtype: torch.dtype) -> Checkpoint:
    """Read a local directory, or a hub repository given as ``owner/name`` or ``owner/name@revision``.

    Code that comes with a repository is never executed.

    Raises:
        InputError: whatever is wrong with the directory, the repository, its config, weights or tokenizer.
    """
    transformers = _transformers()
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "~", os.sep)) or path.exists()
    if looks_local:
        _check_directory(path, name)
        source, revision, place = str(path), None, f"Directory '{name}'"
    else:
        source, _, asked = name.partition("@")
        revision, place = asked or None, f"Hub repository '{source}'"
    options: dict[str, Any] = {"trust_remote_code": False}
    if revision:
        options["revision"] = revision
    reachable = contextlib.nullcontext() if looks_local else offline_unless_reachable()
    with _quiet(transformers), reachable:
        with _sentences(place, name, not looks_local, "config.json"):
            config = transformers.AutoConfig.from_pretrained(source, **options)
        if not looks_local and (revision := _downloaded_commit(source, revision) or revision):
            options["revision"] = revision  # tokenizer and weights of the same commit, whatever is pushed meanwhile
        head = _choose_head(config, place)
        with _sentences(place, name, not looks_local, "its tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        with _sentences(place, name, not looks_local, "its weights"):
            module, head = _read_weights(transformers, source, config, head, dtype, options, place)
    return Checkpoint(module, tokenizer, head, path if looks_local else None, revision)


def fingerprint_directory(directory: Path) -> str:
    """sha256 over names and contents of config, weights and tokenizer files; the place of the directory is no part."""
    files = {directory / "config.json"}
    for pattern in (*_WEIGHTS, "*.index.json", *_TOKENIZERS, "tokenizer_config.json", "merges.txt"):
        files |= set(directory.glob(pattern))
    named = sorted((file.name, sha256_file(file)) for file in files if file.is_file())
    return sha256_bytes(json.dumps(named).encode())


def fingerprint_parameters(module: torch.nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of the parameters, for a model that has no files."""
    parts: list[bytes] = []
    for key, value in sorted(module.state_dict().items()):
        parts.append(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        parts.append(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256_bytes(*parts)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise InputError(
            "Language models need the package transformers, which is not installed; run: pip install 'saeworks[hf]'."
        ) from e
    return transformers


def _check_directory(path: Path, name: str) -> None:
    """The mistakes that can be seen before anything is loaded."""
    if not path.exists():
        raise InputError(
            f"'{name}' does not exist; give the directory of a Hugging Face model, a hub name like "
            "'openai-community/gpt2', or 'world' for the embedded model."
        )
    if not path.is_dir():
        raise InputError(
            f"'{name}' is a file; give the directory that holds config.json, the weights and the tokenizer."
        )
    if not (path / "config.json").is_file():
        raise InputError(
            f"Directory '{name}' has no config.json, so it is not a Hugging Face model; give the directory that "
            "`save_pretrained` wrote."
        )
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"'{path / 'config.json'}' holds no JSON object; the file is damaged or of another kind.")
    if not any(True for pattern in _WEIGHTS for _ in path.glob(pattern)):
        raise InputError(
            f"Directory '{name}' has a config.json but no weights; expected model.safetensors (or pytorch_model.bin)."
        )
    if not any((path / file).is_file() for file in _TOKENIZERS):
        raise InputError(
            f"Directory '{name}' has no tokenizer; expected tokenizer.json beside config.json, as written by the "
            "tokenizer's `save_pretrained`."
        )


def _downloaded_commit(repository: str, revision: str | None) -> str | None:
    """Commit hash of the config that was just read, from the folder of the hub's cache that it lies in."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json", revision=revision)
    if not isinstance(found, str):
        return None
    parts = Path(found).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _choose_head(config: Any, place: str) -> Head:
    """Which Auto class reads this checkpoint, by the class that wrote it and else by the model type."""
    from transformers.models.auto import modeling_auto

    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{place} is an encoder-decoder model ('{config.model_type}'); "
            "only causal and masked language models have sites here."
        )
    written_by = " ".join(getattr(config, "architectures", None) or [])
    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if "ForMaskedLM" in written_by or "ForPreTraining" in written_by:
        return "masked" if masked else "none"
    if "ForCausalLM" in written_by or "LMHead" in written_by or "ForConditionalGeneration" in written_by:
        return "causal" if causal else "none"
    if written_by:
        return "none"
    if masked:
        return "masked"
    return "causal" if causal else "none"


def _read_weights(
    transformers: Any, source: str, config: Any, head: Head, dtype: torch.dtype, options: dict[str, Any], place: str
) -> tuple[Any, Head]:
    classes = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "none": "AutoModel"}
    reader = getattr(transformers, classes[head])
    module, info = reader.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True, **options)
    backbone = f"{module.base_model_prefix}." if head != "none" else ""
    # transformers fills what a file lacks with random numbers. A pooler is no part of any site; all else matters.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    lost = [key for key in missing if key.startswith(backbone)]
    if lost:
        raise InputError(
            f"{place} lacks {len(lost)} of the weights that its config asks for, '{lost[0]}' for one; "
            "the weights are incomplete or belong to another config."
        )
    if missing:
        return _read_weights(transformers, source, config, "none", dtype, options, place)
    return module, head


@contextlib.contextmanager
def _quiet(transformers: Any) -> Generator[None, None, None]:
    """No warnings, load reports or weight bars while loading. Downloads still show their bar, on standard error."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_hub_client():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _sentences(place: str, name: str, on_hub: bool, what: str) -> Generator[None, None, None]:
    """Turn whatever transformers and the hub client raise into one sentence."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        chain = list(_causes(e))
        kinds = {base.__name__ for error in chain for base in type(error).__mro__}
        text = " ".join(str(error) for error in chain)
        if on_hub and (hub := _hub_sentence(name, kinds, text)):
            raise InputError(hub) from e
        if "trust_remote_code" in text:
            raise InputError(
                f"{place} needs Python code from its repository, which is never executed here; "
                "use a model whose architecture is part of transformers."
            ) from e
        if "does not recognize this architecture" in text or "Unrecognized model" in text:
            raise InputError(
                f"{place} has an architecture that the installed transformers does not know; check model_type in its "
                "config.json, or upgrade transformers."
            ) from e
        raise InputError(
            f"{place}: {what} cannot be read ({_first_line(e)}); the files are damaged or incomplete."
        ) from e


def _hub_sentence(name: str, kinds: set[str], text: str) -> str | None:
    offline_help = "offline, use --model world (the embedded model) or the path of a local model directory."
    if "GatedRepoError" in kinds:
        return (
            f"Hub repository '{name}' asks for an accepted licence; accept it on the hub and log in, or choose another."
        )
    if "RevisionNotFoundError" in kinds:
        return f"Hub repository '{name}' has no such revision; check what follows the '@'."
    if kinds & {"RepositoryNotFoundError", "HFValidationError"} or "is not a valid model identifier" in text:
        return (
            f"'{name}' is neither a local directory nor a public repository on the hub; check the spelling, or log in "
            "if it is private."
        )
    offline = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "TimeoutException"}
    if kinds & offline or "couldn't connect" in text or "offline" in text.lower():
        return f"Model '{name}' is not on this computer, and the hub cannot be reached to download it; {offline_help}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160].rstrip('.')}" if lines else type(error).__name__
