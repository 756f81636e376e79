"""The other methods of diffing on pairs whose truth is known, on a model against itself, and on the world's models."""

from __future__ import annotations

import json
import math

import pytest
import torch
from planted_dictionary import planted
from torch import Tensor

from saeworks.activations.texts import open_texts
from saeworks.diffing.classes import PAPER
from saeworks.diffing.logit_effects import direction_logits
from saeworks.diffing.methods import per_token_kl
from saeworks.diffing.methods.activation_difference import ActivationDifference, measures
from saeworks.diffing.methods.causal_effect import causal_effects
from saeworks.diffing.methods.difference_pca import Covariance, DifferencePCA
from saeworks.diffing.methods.difference_sae import kinds_of_change
from saeworks.diffing.methods.interface import MethodResult
from saeworks.diffing.methods.patchscope import patchscope, scale_scores
from saeworks.diffing.methods.per_token_kl import divergences
from saeworks.diffing.methods.registry import METHODS, diff, method
from saeworks.diffing.methods.training import DifferenceStream
from saeworks.diffing.paired_stream import synthetic_stream
from saeworks.diffing.pairs import ModelPair, SyntheticPairs, synthetic_source
from saeworks.diffing.scaling_estimates import Estimate
from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel, load_language_model
from saeworks.models.scores import kl_divergence
from saeworks.world.synthetic.paired import PairedFeatures

SITE = "layers.2.resid_post"


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    return load_language_model("world", "cpu"), load_language_model("world:chat", "cpu")


@pytest.fixture(scope="module")
def world(models: tuple[LanguageModel, LanguageModel]) -> ModelPair:
    return pair_of(*models)


def pair_of(base: LanguageModel, chat: LanguageModel) -> ModelPair:
    texts = open_texts(["world"], split="validation")
    transcripts = open_texts(["world:chat"], split="validation")
    return ModelPair(base, chat, SITE, texts, transcripts, context_length=64, batch_rows=8)


@pytest.fixture(scope="module")
def synthetic() -> SyntheticPairs:
    return synthetic_source(PairedFeatures(), tokens=20_000)


def test_divergences_are_those_of_the_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 7, 101, generator=draw) * 3
    p[0, 5] = -torch.inf
    for chunk in (13, 1000):
        found = divergences(p, q, chunk)
        torch.testing.assert_close(found[0], kl_divergence(p, q).double(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[1, 1:], kl_divergence(q, p).double()[1:], rtol=1e-4, atol=1e-6)
        assert bool(found[1, 0].isinf())  # what one model forbids, the other does not
        m = ((p.softmax(-1) + q.softmax(-1)) / 2).double()
        js = sum(
            (d * (d.clamp_min(1e-300) / m).log()).sum(-1) / 2 for d in (p.softmax(-1).double(), q.softmax(-1).double())
        )
        torch.testing.assert_close(found[2], js, rtol=1e-5, atol=1e-6)
        assert float(found[2].max()) <= math.log(2)
    torch.testing.assert_close(divergences(p[1:, :50], q[1:])[0], divergences(p[1:, :50], q[1:, :50])[0])


def test_kl_finds_where_the_models_part(world: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    result = diff(world, "per_token_kl", tokens=900, top=5)
    # Row by row, where all logits at once would be too many.
    monkeypatch.setattr(per_token_kl, "ENTRIES", 1)
    again = diff(world, "per_token_kl", tokens=900, top=5)
    for name, value in result.numbers.items():
        assert again.numbers[name] == (None if value is None else pytest.approx(value, rel=1e-4))
    assert result.numbers["kl_chat_base_se"] is not None
    assert [one.evidence["position"] for one in again.tokens] == [one.evidence["position"] for one in result.tokens]
    assert result.cost.tokens == 900
    assert len(result.tokens) == 5
    scores = [one.score for one in result.tokens]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 1
    top = result.tokens[0].evidence
    assert {"chat_next", "base_next", "context", "data_set", "kl_base_chat", "js"} <= set(top)
    # The base never saw the template of a chat, so what follows its tokens is where the models differ most.
    numbers = result.numbers
    template, other = numbers["kl_chat_base_template"], numbers["kl_chat_base_other"]
    assert template is not None
    assert other is not None
    assert template > 3 * other
    json.dumps(result.plain())


def test_a_model_against_itself_gives_nothing(models: tuple[LanguageModel, LanguageModel]) -> None:
    same = pair_of(models[1], models[1])
    assert diff(same, "per_token_kl", tokens=300).numbers["kl_chat_base"] == 0.0
    for source in (same, synthetic_source(PairedFeatures().null(), tokens=3000)):
        found = diff(source, "activation_difference", tokens=600)
        assert found.numbers["norm_mean"] == 0.0
        assert found.numbers["norm_q0.99"] == 0.0
        assert found.numbers["cosine_mean"] == pytest.approx(1.0)
        pca = diff(source, "difference_pca", tokens=600)
        assert pca.directions == ()
        assert pca.numbers["variance"] == 0.0
        lens = diff(source, "difference_lens", tokens=600)
        assert all(one.score == 0.0 and one.evidence["noise"] == 0.0 for one in lens.directions)
        sae = diff(source, "difference_sae", tokens=600)
        assert sae.latents == ()
        assert sae.cost.trained_tokens == 0
    effects = causal_effects(same, torch.ones(256), 300, controls=2, after=5)
    assert all(e.mean_difference == 0.0 and float(e.random.abs().max()) == 0.0 for e in effects)


def test_activation_differences_are_those_of_counting(synthetic: SyntheticPairs) -> None:
    result = ActivationDifference(top=3).run(synthetic, 5000)
    x = [torch.cat([batch.x[m] for batch in synthetic.batches(5000)]).double() for m in range(2)]
    norm = (x[1] - x[0]).norm(dim=1)
    relative = norm / ((x[0].norm(dim=1) + x[1].norm(dim=1)) / 2)
    assert result.numbers["norm_mean"] == pytest.approx(float(norm.mean()), rel=1e-5)
    assert result.numbers["norm_std"] == pytest.approx(float(norm.std(correction=0)), rel=1e-4)
    for q in (0.05, 0.5, 0.99):
        assert result.numbers[f"relative_norm_q{q:g}"] == pytest.approx(float(relative.quantile(q)), rel=0.04)
    cosine = torch.nn.functional.cosine_similarity(x[0], x[1])
    assert result.numbers["cosine_mean"] == pytest.approx(float(cosine.mean()), rel=1e-5)
    assert [one.evidence["sequence"] for one in result.tokens] == relative.topk(3).indices.tolist()
    batch = next(synthetic.batches(10))
    torch.testing.assert_close(measures(batch)["norm"], (batch.x[1] - batch.x[0]).norm(dim=1).double())


def test_components_are_exact_and_merge() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(500, 6, generator=draw, dtype=torch.float64)
        @ torch.diag(torch.tensor([5, 3, 2, 1, 0.5, 0.1]).double())
        + 40
    )
    parts = [Covariance(6), Covariance(6)]
    parts[0].add(rows[:200])
    parts[1].add(rows[200:])
    merged = parts[0] + parts[1]
    torch.testing.assert_close(merged.matrix, torch.cov(rows.T, correction=0), rtol=1e-9, atol=1e-9)
    variances, directions = merged.components()
    wanted = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    torch.testing.assert_close(variances, wanted.S.square() / 500, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close((directions * wanted.Vh).sum(dim=1).abs(), torch.ones(6, dtype=torch.float64))
    assert bool((directions @ merged.mean >= 0).all())


def test_components_find_the_one_thing_that_changed() -> None:
    """A single chat-only concept beside shared ones: the first component is its direction, and there is no other."""
    features = PairedFeatures(
        shared=20, base_only=0, chat_only=1, weak_in_base=0, weak_in_chat=0, overlaps=(), shared_cosine=1.0, noise=0.001
    )
    result = DifferencePCA(count=3).run(synthetic_source(features, tokens=20_000))
    only = features.members("chat_only")[0]
    assert abs(float(result.arrays["components"][0] @ features.directions[1, only])) > 0.999
    assert result.directions[0].score > 0.95
    assert result.directions[0].evidence["cumulative_share"] == pytest.approx(result.directions[0].score)


def test_the_lens_finds_the_mean_difference(synthetic: SyntheticPairs) -> None:
    result = diff(synthetic, "difference_lens")
    wanted = synthetic.features.expected_activations
    mean = result.arrays["means"][0]
    torch.testing.assert_close(mean, (wanted[1] - wanted[0]).float(), rtol=0.1, atol=0.03)
    whole = result.directions[0]
    assert whole.name == "all tokens"
    assert whole.evidence["tokens"] == 20_000
    assert whole.score > 10 * whole.evidence["noise"]
    assert "promoted" not in whole.evidence  # there is no model to read with


def test_the_lens_on_the_world(world: ModelPair) -> None:
    result = diff(
        world,
        "difference_lens",
        tokens=1500,
        positions=2,
        top=5,
        causal_tokens=900,
        controls=2,
        after=4,
        scales=(1.0, 3.0),
    )
    places = {one.name: one for one in result.directions}
    assert {"all tokens", "answer token 0", "answer token 1", "position 1"} <= set(places)
    evidence = places["answer token 0"].evidence
    assert len(evidence["promoted"]) == len(evidence["suppressed"]) == len(evidence["reads_as"]["tokens"]) == 5
    assert evidence["reads_as"]["scale"] in (1.0, 3.0)
    # The base never learnt to answer, so there the models differ by more than on plain text.
    assert places["answer token 0"].score > places["position 1"].score
    effect, chance = result.numbers["chat/causal_effect"], result.numbers["chat/causal_effect_random"]
    assert effect is not None
    assert chance is not None
    assert effect > 0
    assert effect > chance
    assert result.numbers["chat/causal_rank_random"] == 1.0
    json.dumps(result.plain())


def test_patchscope_at_the_last_layer_is_the_logit_lens(models: tuple[LanguageModel, LanguageModel]) -> None:
    """Nothing but the final norm and the unembedding is left there, and the norm forgets the scale."""
    chat = models[1]
    direction = torch.randn(256, generator=torch.Generator().manual_seed(4))
    reading = patchscope(chat, f"layers.{chat.n_layers - 1}.resid_post", direction, 10.0, scales=(1.0, 2.0), top=5)
    assert [token for token, _ in reading.tokens] == direction_logits(chat, direction[None])[0].topk(5).indices.tolist()
    with pytest.raises(InputError, match="length 0"):
        patchscope(chat, SITE, torch.zeros(256), 10.0)
    with pytest.raises(InputError, match="shorter"):
        patchscope(chat, SITE, direction, 10.0, prompts=("a",))
    with pytest.raises(InputError, match="residual stream"):
        patchscope(chat, "layers.1.mlp_out", direction, 10.0)


def test_the_scale_is_where_prompts_agree_on_something() -> None:
    def peaked(token: int, share: float) -> Tensor:
        p = torch.full((10,), (1 - share) / 9)
        p[token] = share
        return p

    flat, one = torch.full((10,), 0.1), peaked(3, 0.9)
    scores = scale_scores(
        torch.stack([torch.stack(pair) for pair in ((flat, flat), (one, peaked(5, 0.9)), (one, one))])
    )
    assert int(scores.argmax()) == 2
    assert float(scores[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(scale_scores(torch.stack([peaked(1, 1.0)] * 2)[None])) == pytest.approx(1.0)


def test_what_became_of_a_direction() -> None:
    value = torch.tensor([[0.05, -1.0, 1.0, -2.0, -0.5, float("nan")], [1.0, 0.1, 2.0, -1.0, 0.5, float("nan")]])
    assert kinds_of_change(Estimate(value, value)) == ["new", "removed", "amplified", "weakened", "flipped", ""]


def test_the_stream_of_differences_is_that_of_pairs() -> None:
    features = PairedFeatures()
    stream, pairs = DifferenceStream(synthetic_stream(features, 3)), synthetic_stream(features, 3)
    x = pairs.next_batch(20).activations
    assert torch.equal(stream.next_batch(20).activations, x[:, 1] - x[:, 0])
    state = stream.state_dict()
    ahead = stream.next_batch(20).activations
    again = DifferenceStream(synthetic_stream(features, 3))
    again.load_state_dict(state)
    assert torch.equal(again.next_batch(20).activations, ahead)
    assert stream.fingerprint() != pairs.fingerprint()
    with pytest.raises(InputError, match="two sources"):
        DifferenceStream(stream)


@pytest.fixture(scope="module")
def changed() -> PairedFeatures:
    """Shared concepts, and a few that are new, gone, or stronger by a half in the chat model; no noise to speak of."""
    return PairedFeatures(
        shared=20, base_only=4, chat_only=4, weak_levels=(0.5,), weak_in_base=4, weak_in_chat=0, overlaps=(),
        shared_cosine=1.0, noise=0.005,
    )  # fmt: skip


def test_a_dictionary_of_differences_says_what_happened(changed: PairedFeatures) -> None:
    source = synthetic_source(changed, tokens=30_000)
    settings = {"width": 32, "k": 0.4, "train_tokens": 150_000, "batch_size": 512, "learning_rate": 3e-3}
    result = diff(source, "difference_sae", **settings)
    assert result.dictionary is not None
    assert result.cost.trained_tokens == 150_000
    explained = result.numbers["variance_explained_all"]
    assert explained is not None
    assert explained > 0.9
    # Every concept that changed has a latent along its direction, with what became of it; shared ones have none.
    wanted = {"chat_only": "new", "base_only": "removed", "weak_in_base": "amplified"}
    kinds = {one.evidence["latent"]: one.evidence["kind"] for one in result.latents}
    rows = torch.nn.functional.normalize(result.dictionary.W_dec, dim=1)
    right = 0
    for group, kind in wanted.items():
        source_of = 0 if group == "base_only" else 1
        directions = changed.directions[source_of, changed.members(group)] * (-1 if group == "base_only" else 1)
        cosine, latent = (rows @ directions.T).max(dim=0)
        right += sum(kinds.get(j) == kind for c, j in zip(cosine.tolist(), latent.tolist(), strict=True) if c > 0.9)
    assert right >= 10  # of 12
    shared = (rows @ changed.directions[1, changed.members("shared")].T).abs()
    assert float(shared.max()) < 0.6
    assert "NaN" not in json.dumps(result.plain())
    ranked = result.arrays["by_nu"][:4].tolist()
    assert [kinds[j] for j in ranked] == ["new"] * 4


def test_the_crosscoder_is_a_method_too(changed: PairedFeatures) -> None:
    source, dictionary = synthetic_source(changed, tokens=20_000), planted(changed)
    result = diff(source, "crosscoder", dictionary=dictionary, thresholds=PAPER)
    assert result.cost.trained_tokens == 0
    found = {one.evidence["latent"]: one for one in result.latents}
    assert set(found) == {*changed.members("base_only"), *changed.members("chat_only")}
    for j, one in found.items():
        assert one.evidence["of"] == ("base" if changed.groups[j] == "base_only" else "chat")
        assert one.evidence["flags"] == "genuine"
        assert one.score > 0.9
    assert sorted(result.arrays["by_rank_sum"].tolist()) == changed.members("chat_only")
    assert (result.numbers["chat_only"], result.numbers["base_only"], result.numbers["twins"]) == (4, 4, 0)
    # Trained on the source itself: short, and yet better than the mean.
    settings = {"recipe": "crosscoder_batch_topk", "width": 48, "k": 1, "train_tokens": 30_000, "batch_size": 256}
    other = synthetic_source(changed, tokens=1, seed=9)
    trained = diff(source, "crosscoder", tokens=5000, learning_rate=3e-3, train_on=other, **settings)
    explained = trained.numbers["variance_explained_chat"]
    assert trained.cost.trained_tokens == 30_000
    assert explained is not None
    assert explained > 0.3
    with pytest.raises(InputError, match="trained on these models"):
        diff(synthetic_source(PairedFeatures(d=32)), "crosscoder", dictionary=dictionary)


def test_the_registry_speaks_one_language(synthetic: SyntheticPairs) -> None:
    with pytest.raises(InputError, match="Did you mean 'difference_pca'"):
        diff(synthetic, "difference_pc")
    with pytest.raises(InputError, match="Did you mean 'count'"):
        method("difference_pca", counts=3)
    with pytest.raises(InputError, match="use a ModelPair"):
        diff(synthetic, "per_token_kl")
    for name in METHODS:
        assert method(name).name == name
    for name in ("activation_difference", "difference_lens", "difference_pca"):
        result = diff(synthetic, name, tokens=500)
        assert isinstance(result, MethodResult)
        assert result.cost.tokens == 500
        plain = json.loads(json.dumps(result.plain()))
        assert set(plain) == {"method", "settings", "tokens", "directions", "latents", "numbers", "cost"}
        assert plain["tokens"] or plain["directions"]
        for one in plain["tokens"] + plain["directions"]:
            assert set(one) == {"name", "score", "evidence"}
