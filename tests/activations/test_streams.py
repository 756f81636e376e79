"""Streams: the right rows, each once a pass, the same bits after a resume, bounded memory, and clear refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saeworks.activations.batches import ActivationBatch
from saeworks.activations.harvest import Harvester
from saeworks.activations.store import write_store
from saeworks.activations.streams import LiveStream, StoredStream, Stream, SyntheticStream
from saeworks.activations.texts import ListTexts
from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel

Sentences = Callable[..., ListTexts]
SITE = "layers.0.resid_post"
SMALL: dict[str, Any] = {"context_length": 16, "buffer_tokens": 256, "harvest_batch_size": 4}


def same(a: ActivationBatch, b: ActivationBatch) -> bool:
    names = ("activations", "token_ids", "document_ids", "positions")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def origins(batch: ActivationBatch) -> list[tuple[int, int]]:
    return list(zip(batch.document_ids.tolist(), batch.positions.tolist(), strict=True))


class Features:
    """Stand-in for the synthetic features of the world."""

    directions = torch.eye(3, 5)

    def sample(self, count: int, generator: torch.Generator) -> Any:
        codes = torch.rand(count, 3, generator=generator)
        return SimpleNamespace(activations=codes @ self.directions, codes=codes)


@pytest.fixture(scope="module")
def store(tiny_model: LanguageModel, sentences: Sentences, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stores") / "store"
    return write_store(
        tiny_model, sentences(120), SITE, 1000, directory, context_length=16, dtype="float32", shard_rows=200
    )


def make(kind: str, model: LanguageModel, sentences: Sentences, store: Path, seed: int = 0) -> Stream:
    if kind == "live":
        return LiveStream(model, sentences(60), SITE, seed=seed, **SMALL)
    if kind == "stored":
        return StoredStream(store, seed=seed, block_rows=7)
    return SyntheticStream(Features(), seed=seed)


KINDS = pytest.mark.parametrize("kind", ["live", "stored", "synthetic"])


@KINDS
def test_a_resumed_stream_gives_the_same_bits(
    kind: str, tiny_model: LanguageModel, sentences: Sentences, store: Path
) -> None:
    whole = make(kind, tiny_model, sentences, store)
    states, batches = list[Any](), list[ActivationBatch]()
    for _ in range(40):  # several refills and several passes
        states.append(whole.state_dict())
        batches.append(whole.next_batch(50))
    for start in (0, 1, 2, 3, 7, 19, 33):
        resumed = make(kind, tiny_model, sentences, store)
        resumed.next_batch(13)  # whatever it did before must not matter
        resumed.load_state_dict(states[start])
        for expected in batches[start : start + 6]:
            assert same(resumed.next_batch(50), expected)


@KINDS
def test_one_seed_one_sequence(kind: str, tiny_model: LanguageModel, sentences: Sentences, store: Path) -> None:
    def first(seed: int) -> tuple[str, ActivationBatch]:
        stream = make(kind, tiny_model, sentences, store, seed)
        stream.next_batch(30)
        return stream.fingerprint(), stream.next_batch(30)

    (mark, batch), (again_mark, again), (other_mark, other) = first(0), first(0), first(1)
    assert mark == again_mark != other_mark
    assert same(batch, again)
    assert not same(batch, other)
    assert isinstance(make(kind, tiny_model, sentences, store), Stream)


@KINDS
def test_states_of_other_streams_are_refused(
    kind: str, tiny_model: LanguageModel, sentences: Sentences, store: Path
) -> None:
    stream = make(kind, tiny_model, sentences, store)
    with pytest.raises(InputError, match="another model, text or setting"):
        stream.load_state_dict(make(kind, tiny_model, sentences, store, seed=5).state_dict())
    with pytest.raises(InputError, match=f"this one is {kind}"):
        stream.load_state_dict({"kind": "frozen"})
    with pytest.raises(InputError, match="at least 1"):
        stream.next_batch(0)


def test_live_rows_are_what_the_model_computes_for_the_document_alone(
    tiny_model: LanguageModel, sentences: Sentences
) -> None:
    source = sentences(40, words=(1, 14))  # shorter than a window
    stream = LiveStream(tiny_model, source, SITE, **SMALL)
    batch = stream.next_batch(128)
    texts = [found.text for found in source.documents()]
    for row in range(0, 128, 5):
        document, position = int(batch.document_ids[row]), int(batch.positions[row])
        alone = tiny_model.tokenize([texts[document]], 64)
        # One special token stands in front.
        assert int(alone.token_ids[0, position + 1]) == int(batch.token_ids[row])
        expected = tiny_model.harvest(alone, [SITE])[SITE][0, position + 1]
        torch.testing.assert_close(batch.activations[row], expected, atol=1e-5, rtol=1e-4)


def test_live_stream_hands_out_every_token_once_a_pass(tiny_model: LanguageModel, sentences: Sentences) -> None:
    source = sentences(60)
    tokens = {(number, at) for number, found in enumerate(source.documents()) for at in range(len(found.text.split()))}
    stream = LiveStream(tiny_model, source, SITE, **SMALL)
    seen: Counter[tuple[int, int]] = Counter()
    while stream.statistics["epochs"] < 4:
        seen.update(origins(stream.next_batch(64)))
    assert set(seen) == tokens
    # Harvested three to four passes whole; at most the buffer, one batch and the pass under way are between rows.
    handed = sum(seen.values())
    buffered = int(stream.statistics["tokens"]) - handed
    assert 0 <= buffered <= 256 + 4 * 16
    assert max(seen.values()) <= 5
    rest = stream._buffer.pop(stream._buffer.unread)
    seen.update(origins(rest))
    if stream._pending is not None:
        seen.update(origins(stream._pending))
    # With everything that is still waiting, each token was harvested as often as any other, up to the open pass.
    assert max(seen.values()) - min(seen.values()) <= 1


class Altered:
    """A language model whose activations get ``value`` added wherever one token stands."""

    def __init__(self, model: LanguageModel, token: int, value: float) -> None:
        self._model, self._token, self._value = model, token, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def harvest(self, batch: Any, sites: Any) -> Any:
        found = self._model.harvest(batch, sites)
        there = (batch.token_ids == self._token)[..., None]
        return {name: torch.where(there, rows + self._value, rows) for name, rows in found.items()}


def test_special_tokens_and_outliers_are_dropped_and_counted(tiny_model: LanguageModel, sentences: Sentences) -> None:
    source = sentences(60)
    words = [word for found in source.documents() for word in found.text.split()]
    spike = tiny_model.tokenizer.convert_tokens_to_ids(words[0])
    often = words.count(words[0])
    assert 5 < often < len(words) / 4
    model: Any = Altered(tiny_model, spike, 1e4)
    for ratio in (None, 10.0):
        harvester = Harvester(model, source, SITE, 16, 8, seed=0, max_norm_ratio=ratio)
        batches = list(harvester.batches(epochs=1))
        kept = torch.cat([batch.token_ids for batch in batches])
        assert int((kept == spike).sum()) == (0 if ratio else often)
        assert not bool((kept == tiny_model.tokenizer.bos_token_id).any())
        counts = harvester.statistics
        assert counts.outliers == (often if ratio else 0)
        assert counts.tokens == len(kept) == len(words) - counts.outliers
        assert counts.positions == counts.padding + counts.special + counts.outliers + counts.tokens
        assert counts.special == sum(-(-len(found.text.split()) // 15) for found in source.documents())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_activations_name_document_and_token(
    tiny_model: LanguageModel, sentences: Sentences, value: float
) -> None:
    plain, other, bad = sorted({word for found in sentences(60).documents() for word in found.text.split()})[:3]
    model: Any = Altered(tiny_model, tiny_model.tokenizer.convert_tokens_to_ids(bad), value)
    source = ListTexts([f"{plain} {other}", plain, f"{plain} {plain} {bad} {other}"])
    with pytest.raises(InputError) as caught:
        LiveStream(model, source, SITE, **SMALL).next_batch(8)
    for part in ("document 2", "token 2", f"'{bad}'", SITE, "not finite"):
        assert part in str(caught.value)


def test_text_without_a_usable_token_ends_in_a_sentence(tiny_model: LanguageModel) -> None:
    with pytest.raises(InputError, match="no usable token"):
        LiveStream(tiny_model, ListTexts(["zebra unicorn", "okapi"]), SITE, **SMALL).next_batch(8)


def test_live_stream_holds_nothing_that_grows(tiny_model: LanguageModel, sentences: Sentences) -> None:
    stream = LiveStream(tiny_model, sentences(60), SITE, **SMALL)

    def held() -> int:
        total, seen, waiting = 0, set[int](), [stream.__dict__, stream._harvester.__dict__, stream._buffer.__dict__]
        while waiting:
            value: Any = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, torch.Tensor):
                total += value.untyped_storage().nbytes()
            elif isinstance(value, ActivationBatch):
                waiting += [value.activations, value.token_ids, value.document_ids, value.positions]
            elif isinstance(value, dict):
                waiting += list(value.values())
            elif isinstance(value, list | tuple):
                total += len(value)
                waiting += list(value)
        return total

    row = 16 * 4 + 3 * 8
    bound = 256 * (row + 8) + 4 * 16 * row + 5000
    for _ in range(120):
        stream.next_batch(60)
        assert held() <= bound
    assert stream.statistics["epochs"] >= 5


def test_state_without_contents_goes_on_from_the_saved_place(tiny_model: LanguageModel, sentences: Sentences) -> None:
    def fresh() -> LiveStream:
        return LiveStream(tiny_model, sentences(2000), SITE, **SMALL)

    stream = fresh()
    seen = set(origins(stream.next_batch(100)))
    state = stream.state_dict(contents=False)
    size = sum(t.numel() for t in state["buffer"].values() if isinstance(t, torch.Tensor))
    assert size < 6000
    assert "pending" not in state
    resumed = fresh()
    resumed.load_state_dict(state)
    later = origins(resumed.next_batch(100))
    assert not seen & set(later)


def test_bfloat16_buffer_rounds_and_nothing_else(tiny_model: LanguageModel, sentences: Sentences) -> None:
    exact = LiveStream(tiny_model, sentences(60), SITE, **SMALL).next_batch(100)
    rounded = LiveStream(tiny_model, sentences(60), SITE, buffer_dtype="bfloat16", **SMALL).next_batch(100)
    assert rounded.activations.dtype == torch.float32
    assert torch.equal(rounded.activations, exact.activations.to(torch.bfloat16).float())
    assert torch.equal(rounded.token_ids, exact.token_ids)


def test_impossible_settings_are_explained(tiny_model: LanguageModel, sentences: Sentences) -> None:
    with pytest.raises(InputError, match="less than two batches"):
        LiveStream(tiny_model, sentences(9), SITE, **SMALL).next_batch(200)
    with pytest.raises(InputError, match="resid_post"):
        LiveStream(tiny_model, sentences(9), "layers.0.resid_pots", **SMALL)
    with pytest.raises(InputError, match="above 1"):
        LiveStream(tiny_model, sentences(9), SITE, max_norm_ratio=0.5, **SMALL)


def test_stored_stream_reads_every_row_once_a_pass_in_another_order(store: Path) -> None:
    stream = StoredStream(store, seed=2, block_rows=7)
    passes = [[stream.next_batch(100) for _ in range(10)] for _ in range(3)]
    orders = [[pair for batch in batches for pair in origins(batch)] for batches in passes]
    assert all(len(set(order)) == 1000 for order in orders)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2]
    assert stream.statistics == {"tokens": 3000, "epochs": 2}
    straddling = StoredStream(store, seed=2, block_rows=7)
    straddling.next_batch(950)
    both = straddling.next_batch(100)
    assert origins(both) == orders[0][950:] + orders[1][:50]


def test_stored_batches_mix_documents(store: Path) -> None:
    # 120 documents of about 8 tokens: a uniform draw of 100 rows meets about 68 of them, neighbours about 12.
    batch = StoredStream(store, seed=0, block_rows=16).next_batch(100)
    assert batch.document_ids.unique().numel() > 45


def test_features_of_the_world_stream_and_resume() -> None:
    from saeworks.world.synthetic import IndependentFeatures

    def stream(**settings: Any) -> SyntheticStream:
        return SyntheticStream(IndependentFeatures(n_features=12, d=8, **settings), seed=3)

    first = stream()
    first.next_batch(17)
    state = first.state_dict()
    expected = first.next_batch(40)
    second = stream()
    second.load_state_dict(state)
    assert same(second.next_batch(40), expected)
    assert expected.activations.shape == (40, 8)
    # Directions are the same in both, but not how often they are active.
    assert torch.equal(stream(probability=0.2).features.directions, first.features.directions)
    with pytest.raises(InputError, match="another model, text or setting"):
        stream(probability=0.2).load_state_dict(state)


def test_synthetic_rows_are_combinations_of_the_directions() -> None:
    stream = SyntheticStream(Features(), seed=1)
    batch = stream.next_batch(20)
    assert batch.activations.shape == (20, 5)
    assert not bool(batch.activations[:, 3:].any())
    assert bool((batch.activations[:, :3] > 0).any())
    assert batch.document_ids.tolist() == list(range(20))
    assert stream.next_batch(2).document_ids.tolist() == [20, 21]
