"""Streams whose rows are more than one vector: several sites side by side, and targets beside the input."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch, Layout, concatenate, layout_of
from saeworks.activations.streams import LiveStream, SyntheticStream
from saeworks.activations.texts import ListTexts
from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel

Sentences = Callable[..., ListTexts]
FIRST, SECOND, HIDDEN, WRITTEN = (
    f"layers.{name}" for name in ("0.resid_post", "1.resid_post", "0.mlp_hidden", "1.mlp_out")
)
SMALL: dict[str, Any] = {"context_length": 16, "buffer_tokens": 256, "harvest_batch_size": 4}


def directly(
    model: LanguageModel, source: ListTexts, batch: ActivationBatch, row: int, sites: list[str]
) -> list[Tensor]:
    """The activations of a row's token at some sites, from its document alone."""
    text = next(source.documents(start=int(batch.document_ids[row]), limit=1)).text
    tokens = model.tokenize([text], 64)
    harvested = model.harvest(tokens, sites)
    return [harvested[site][0, int(batch.positions[row]) + 1] for site in sites]  # after the special token in front


def test_sites_of_one_width_are_stacked_and_their_tokens_agree(tiny_model: LanguageModel, sentences: Sentences) -> None:
    source = sentences(40, words=(1, 14))
    stream = LiveStream(tiny_model, source, [SECOND, FIRST], **SMALL)
    assert stream.layout == layout_of(stream) == Layout(32, sources=(SECOND, FIRST))
    assert stream.layout.widths == (16, 16)
    assert stream.site == f"{SECOND}+{FIRST}"
    batch = stream.next_batch(64)
    assert batch.activations.shape == (64, 2, 16)
    assert batch.targets is None
    for row in range(0, 64, 7):
        for mine, alone in zip(
            batch.activations[row], directly(tiny_model, source, batch, row, [SECOND, FIRST]), strict=True
        ):
            assert torch.allclose(mine, alone, atol=1e-5)


def test_sites_of_different_widths_lie_flat_in_the_order_given(tiny_model: LanguageModel, sentences: Sentences) -> None:
    source = sentences(40, words=(1, 14))
    stream = LiveStream(tiny_model, source, [HIDDEN, FIRST], **SMALL)
    assert stream.layout == Layout(48, sources=(HIDDEN, FIRST), source_widths=(32, 16))
    batch = stream.next_batch(32)
    assert batch.activations.shape == (32, 48)
    for row in range(0, 32, 7):
        assert torch.allclose(
            batch.activations[row], torch.cat(directly(tiny_model, source, batch, row, [HIDDEN, FIRST])), atol=1e-5
        )


@pytest.mark.parametrize("targets", [WRITTEN, [WRITTEN, HIDDEN]], ids=["one", "two"])
def test_targets_belong_to_the_tokens_of_their_rows(
    tiny_model: LanguageModel, sentences: Sentences, targets: str | list[str]
) -> None:
    source = sentences(40, words=(1, 14))
    stream = LiveStream(tiny_model, source, FIRST, target=targets, **SMALL)
    names = [targets] if isinstance(targets, str) else targets
    widths = (16, 32)[: len(names)]
    several = None if isinstance(targets, str) else (tuple(names), widths)
    assert stream.layout == Layout(16, None, None, sum(widths), *(several or ()))
    batch = stream.next_batch(64)
    assert batch.activations.shape == (64, 16)
    assert batch.targets is not None
    assert batch.targets.shape == (64, sum(widths))
    for row in range(0, 64, 7):
        x, *wanted = directly(tiny_model, source, batch, row, [FIRST, *names])
        assert torch.allclose(batch.activations[row], x, atol=1e-5)
        assert torch.allclose(batch.targets[row], torch.cat(wanted), atol=1e-5)


def test_outliers_leave_with_their_targets(tiny_model: LanguageModel, sentences: Sentences) -> None:
    source = sentences(60, words=(1, 14))
    stream = LiveStream(tiny_model, source, [FIRST, SECOND], target=WRITTEN, max_norm_ratio=1.05, **SMALL)
    batch = stream.next_batch(64)
    assert stream.statistics["outliers"] > 0
    assert batch.targets is not None
    for row in range(0, 64, 11):
        wanted = directly(tiny_model, source, batch, row, [FIRST, SECOND, WRITTEN])
        assert torch.allclose(
            torch.stack(wanted), torch.cat([batch.activations[row], batch.targets[row][None]]), atol=1e-5
        )


def test_a_resumed_stream_of_sites_and_targets_gives_the_same_bits(
    tiny_model: LanguageModel, sentences: Sentences
) -> None:
    def make() -> LiveStream:
        return LiveStream(tiny_model, sentences(60), [FIRST, HIDDEN], target=[WRITTEN, SECOND], **SMALL)

    whole = make()
    whole.next_batch(70)
    state, resumed = whole.state_dict(), make()
    resumed.load_state_dict(state)
    for _ in range(6):
        mine, again = whole.next_batch(70).tensors(), resumed.next_batch(70).tensors()
        assert mine.keys() == again.keys() >= {"targets"}
        assert all(torch.equal(mine[name], again[name]) for name in mine)


def test_the_fingerprint_knows_sites_and_targets(tiny_model: LanguageModel, sentences: Sentences) -> None:
    source = sentences(20)
    asked: list[dict[str, Any]] = [
        {"site": FIRST},
        {"site": [FIRST, SECOND]},
        {"site": [SECOND, FIRST]},
        {"site": FIRST, "target": WRITTEN},
        {"site": FIRST, "target": [WRITTEN, SECOND]},
    ]
    marks = [LiveStream(tiny_model, source, **names, **SMALL).fingerprint() for names in asked]
    assert len(set(marks)) == len(marks)


def test_repeated_sites_and_targets_are_sentences(tiny_model: LanguageModel, sentences: Sentences) -> None:
    # An alias of a site is that site.
    with pytest.raises(InputError, match=f"Sites that differ were expected, but these came: {FIRST}, {FIRST}"):
        LiveStream(tiny_model, sentences(4), [FIRST, "blocks.0.hook_resid_post"], **SMALL)
    with pytest.raises(InputError, match="Target sites that differ were expected"):
        LiveStream(tiny_model, sentences(4), FIRST, target=[WRITTEN, WRITTEN], **SMALL)
    with pytest.raises(InputError, match="Did you mean"):
        LiveStream(tiny_model, sentences(4), FIRST, target="layers.1.mlpout", **SMALL)


class Paired:
    """Stand-in for synthetic features of two models, with targets."""

    directions = torch.eye(4)

    def sample(self, count: int, generator: torch.Generator) -> Any:
        codes = torch.rand(count, 4, generator=generator)
        return SimpleNamespace(activations=torch.stack([codes, -codes], dim=1), targets=codes[:, :3] + 1, codes=codes)


def test_synthetic_features_may_have_several_sources_and_targets() -> None:
    stream = SyntheticStream(Paired())
    assert stream.layout == Layout(8, sources=("source0", "source1"), d_out=3)
    parts = [stream.next_batch(5), stream.next_batch(3)]
    both = concatenate(parts)
    assert both.activations.shape == (8, 2, 4)
    assert both.targets is not None
    assert torch.equal(both.targets, both.activations[:, 0, :3] + 1)
    kept = both[torch.tensor([7, 0])]
    assert kept.targets is not None
    assert torch.equal(kept.targets, both.targets[[7, 0]])
