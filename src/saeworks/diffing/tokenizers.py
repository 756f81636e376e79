"""Whether two language models can read the same tokens."""

from __future__ import annotations

from collections.abc import Mapping

from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel


def check_models(base: LanguageModel, chat: LanguageModel, replacement: Mapping[int, int]) -> None:
    """Refuse a pair whose differences would be those of tokenizers or of rounding.

    Args:
        base, chat: the models.
        replacement: ids that the base reads in place of others.

    Raises:
        InputError: tokenizers that give one text different ids, tokens of the chat model for which the base has no
            embedding, ids to replace that do not exist, or dtypes that differ.
    """
    if base is chat:
        return
    if not (base.is_causal and chat.is_causal):
        raise InputError("A base and a chat model are compared, and both must predict the next token; one does not.")
    if base.dtype != chat.dtype:
        raise InputError(
            f"The base is loaded as {base.dtype} and the chat model as {chat.dtype}, and rounding would look like a "
            "difference of the models; load both with the same dtype."
        )
    ours, theirs = _vocabulary(base), _vocabulary(chat)
    for token in sorted(ours.keys() & theirs.keys()):
        if ours[token] != theirs[token]:
            raise InputError(
                f"The tokenizers differ: {token!r} is token {ours[token]} of the base '{base.name}' and "
                f"{theirs[token]} of the chat model '{chat.name}'; only models with one tokenizer can be paired."
            )
    missing = sorted(ours.keys() - theirs.keys())
    if missing:
        raise InputError(
            f"The tokenizers differ: the base '{base.name}' has {len(missing)} tokens that the chat model "
            f"'{chat.name}' lacks, such as {missing[0]!r}; only models with one tokenizer can be paired."
        )
    rows = int(base.module.get_input_embeddings().weight.shape[0])
    beyond = {token: i for token, i in theirs.items() if i >= rows and i not in replacement}
    if beyond:
        token = min(beyond, key=lambda one: beyond[one])
        raise InputError(
            f"The vocabularies differ: the base '{base.name}' has {rows} embeddings, and {len(beyond)} tokens of the "
            f"chat model lie beyond, such as {token!r} ({beyond[token]}); give a base whose embeddings were extended, "
            "or say in ModelPair(token_replacement=…) what the base is to read in their place."
        )
    for old, new in replacement.items():
        if not 0 <= new < rows:
            raise InputError(
                f"Token {old} is to be replaced by {new} for the base, which has {rows} tokens; choose one of them."
            )
    probe = "Do you know 3 cities?\n\nYes: Łódź, São Paulo…"
    if base.tokenizer(probe)["input_ids"] != chat.tokenizer(probe)["input_ids"]:
        raise InputError(
            f"The tokenizers of '{base.name}' and '{chat.name}' have one vocabulary and cut text differently; use the "
            "files of one tokenizer for both."
        )


def _vocabulary(model: LanguageModel) -> dict[str, int]:
    return dict(model.tokenizer.get_vocab())
