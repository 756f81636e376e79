"""A model whose knowledge lies along known directions, a dictionary that has them, and what unlearning makes of it."""

import pytest
import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.evals import unlearning
from saeworks.evals.answers.clamped_answers import ClampedAnswers
from saeworks.evals.answers.multiple_choice import Asking, ChoiceQuestion, make_prompts
from saeworks.evals.answers.unlearning_scores import (
    Setting,
    best_of_all,
    chosen_on_one_judged_on_other,
    halves_of,
    held_out,
    unlearning_score,
)
from saeworks.evals.controls import identity, permuted_decoder
from saeworks.evals.shared.clamping import choose_latents, clamp_shift, clamp_sizes, firing, rounded_frequencies
from saeworks.evals.unlearning import Config, Data
from saeworks.world.documents import Document

SITE = "layers.0.resid_post"
FRAME = ["Question", ":", "A", ")", "B", "C", "D", "Answer", "which"]
OPTIONS = ["iron", "salt", "wool", "clay"]
SECRET, PUBLIC = [f"secret{i}" for i in range(6)], [f"public{i}" for i in range(8)]
VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *FRAME, *OPTIONS, *SECRET, *PUBLIC, "filler"]
D = len(VOCABULARY)
SMALL = Config(seeds=(0, 1), dataset_size=20, orders=24, min_questions=2, scoring="texts", resamples=40, batch_size=32)


@pytest.fixture(scope="module")
def knowing():
    """Residual stream: the token, plus the mean of all tokens so far. The head reads options off words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from saeworks.models.language_model import LanguageModel

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=D,
        hidden_size=D,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=D,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        layer = module.model.layers[0]
        module.model.embed_tokens.weight.copy_(torch.eye(D))
        layer.input_layernorm.weight.fill_(1)
        module.model.norm.weight.fill_(1)
        layer.self_attn.v_proj.weight.copy_(torch.eye(D))
        layer.self_attn.o_proj.weight.copy_(torch.eye(D) * 8 / D**0.5)  # the norm makes a token √d long
        for i, word in enumerate([*SECRET, *PUBLIC]):
            module.lm_head.weight[VOCABULARY.index(OPTIONS[i % 4]), VOCABULARY.index(word)] = 9.0
    return LanguageModel(module, wrapped, name="knowing", head="causal")


def dictionary_of(directions, scale=1.0):
    """ReLU latents that read unit directions; ``scale`` times as long, with rows that much shorter."""
    cfg = DictionaryConfig(
        architecture="relu", d_in=D, d_sae=len(directions), apply_b_dec_to_input=False, metadata={"site": SITE}
    )
    return Dictionary(cfg, scale * directions.T, directions / scale, torch.zeros(len(directions)), torch.zeros(D))


def oracle(scale=1.0):
    return dictionary_of(torch.eye(D)[[VOCABULARY.index(word) for word in [*SECRET, *PUBLIC, "filler"]]], scale)


def data_of():
    draw = torch.Generator().manual_seed(0)

    def texts(words, count):
        picked = [torch.randint(len(words), (6,), generator=draw).tolist() for _ in range(count)]
        return [Document(text=" ".join(["filler", *(words[j] for j in row)])) for row in picked]

    asked = [
        ChoiceQuestion(f"which {word}", tuple(OPTIONS), i % 4, "secret" if word in SECRET else "public", word in SECRET)
        for i, word in enumerate([*SECRET, *PUBLIC])
    ]
    return Data(texts(SECRET, 40), texts(PUBLIC, 40), asked)


def test_golden_value_of_the_score():
    forget, retained = torch.tensor([0.3, 0.8, 0.97]), torch.tensor([0.975, 0.995, 1.0])
    assert float(unlearning_score(forget, retained)) == pytest.approx(0.2)
    assert float(unlearning_score(forget, torch.full((3,), 0.9))) == 0.0
    assert float(unlearning_score(torch.tensor([0.5]), torch.tensor([99 / 100]))) == pytest.approx(0.5)


def test_settings_of_an_earlier_run_would_change_the_score():
    """SAEBench counts every file in the folder; a score of ours is made of its own settings."""
    own, earlier = torch.tensor([0.8]), torch.tensor([0.3])
    both, kept = torch.cat([own, earlier]), torch.ones(2)
    assert float(unlearning_score(own, kept[:1])) == pytest.approx(0.2)
    assert float(unlearning_score(both, kept)) == pytest.approx(0.7)


def test_choice_of_latents():
    forget = torch.tensor([0.5, 0.9, 0.0, 0.4, 0.5])
    retain = torch.tensor([0.002, 0.02, 0.0, 0.0, 0.0005])
    assert choose_latents(forget, retain, 0.01, 10).tolist() == [4, 0, 3]  # 1 fires too often, 2 never, 4 before 0
    assert choose_latents(forget, retain, 0.001, 10).tolist() == [4, 3]
    assert choose_latents(forget, retain, 0.002, 1).tolist() == [4]
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = choose_latents(forget[order], retain[order], 0.01, 10)
    assert order[permuted].tolist() == [4, 0, 3]


def test_rounding_loses_rare_latents():
    """Frequencies in a file with six decimals: what fires less than once in two million tokens never fires."""
    forget, retain = torch.tensor([4e-7, 6e-7], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert choose_latents(forget, retain, 0.01, 5).tolist() == [1, 0]
    assert choose_latents(rounded_frequencies(forget), retain, 0.01, 5).tolist() == [1]


def test_clamp_by_hand():
    f = torch.tensor([[2.0, 0.0], [0.0, -3.0], [1.0, 4.0]])
    directions = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # Compat: only positive latents fire, and both become -5.
    assert clamp_shift(f, directions, 5.0).tolist() == [[-7.0, 0.0], [0.0, 0.0], [-6.0, -18.0]]
    # Corrected: the negative latent is turned round, and a row of norm 2 takes half the size.
    sizes = clamp_sizes(directions, 10.0, scale=0.5)
    assert sizes.tolist() == [5.0, 2.5]
    assert clamp_shift(f, directions, sizes, True).tolist() == [[-7.0, 0.0], [0.0, 11.0], [-6.0, -13.0]]
    assert clamp_sizes(directions, 10.0).tolist() == [10.0, 10.0]


@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu", "layer_norm"])
@pytest.mark.parametrize("all_but_first", [True, False])
def test_closed_form_is_the_clamp_through_encoder_and_decoder(knowing, architecture, all_but_first):
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(40, D, generator=draw)
    more = {"topk": {"k": 6}, "layer_norm": {"input_op": "layer_norm"}}.get(architecture, {})
    kind = "relu" if architecture == "layer_norm" else architecture
    cfg = DictionaryConfig(architecture=kind, d_in=D, d_sae=40, metadata={"site": SITE}, **more)
    threshold = torch.full((40,), 0.4) if kind == "jumprelu" else None
    bias = torch.randn(D, generator=draw) * 0.1
    dictionary = Dictionary(cfg, rows.T / D**0.5, rows / D**0.5, torch.zeros(40), bias, threshold)
    prompts = make_prompts(knowing, data_of().questions, [range(4)] * 14, Asking())
    chosen = [0, 3, 7, 11, 20]
    answers = ClampedAnswers(knowing, prompts, dictionary, SITE, [*chosen, 5], 8, None, False, all_but_first)
    changed = 0
    for row in ((0, 0), (3, 2), (9, 1)):
        batch = knowing.batch_from_ids([prompts[row[0]].row(row[1])])
        x = knowing.harvest(batch, [SITE])[SITE][0].float()
        f = dictionary.encode(x)
        if all_but_first:
            f[0] = 0
        else:
            f[~batch.keep[0]] = 0
        clamped = f.clone()
        clamped[:, chosen] = torch.where(f[:, chosen] > 0, -25.0, f[:, chosen])
        direct = dictionary.decode(clamped, x) - dictionary.decode(f, x)
        shift = answers.shift(row, [answers.column[i] for i in chosen], 25.0)
        size = direct.abs().max().clamp_min(1)  # of tens: 1e-5 of the change, where float32 has 1e-7 of the terms
        torch.testing.assert_close(shift / size, direct / size, atol=1e-5, rtol=0)
        changed += int((shift.abs().sum(-1) > 0).sum())
    assert changed > 3


@pytest.mark.parametrize("corrected", [False, True])
def test_answers_are_those_of_a_model_clamped_token_by_token(knowing, corrected):
    """Every question and option through the whole model with encode, clamp, decode and the error added back; latents
    may be negative, which ``compat`` leaves alone and ``corrected`` turns round."""
    draw = torch.Generator().manual_seed(5)
    basis = identity(D, SITE)
    flips = torch.where(torch.rand(D, generator=draw) < 0.5, -1.0, 1.0) * (0.5 + torch.rand(D, generator=draw))
    basis.W_enc, basis.W_dec = torch.diag(1 / flips), torch.diag(flips)
    prompts = make_prompts(knowing, data_of().questions, [range(4)] * 14, Asking())
    chosen = [VOCABULARY.index(word) for word in (*SECRET[:3], *PUBLIC[:2], "which")]
    scale = 0.02 if corrected else None
    answers = ClampedAnswers(knowing, prompts, basis, SITE, chosen, 8, scale, corrected, not corrected)
    outcomes = set()
    for multiplier in (1.0, 40.0):
        size = torch.full((D,), multiplier) if scale is None else multiplier * scale / basis.W_dec.norm(dim=-1)
        expected = [clamped_by_hand(knowing, p, basis, chosen, size, corrected) for p in prompts]
        assert answers.right(chosen, multiplier).tolist() == expected
        outcomes |= set(expected)
    assert outcomes == {True, False}


def clamped_by_hand(model, prompt, dictionary, chosen, size, corrected):
    """Whether the right option wins when ``chosen`` latents are set to -size wherever they fire."""
    from saeworks.models.interventions import Splice

    scores = []
    for end in prompt.ends:
        batch = model.batch_from_ids([prompt.ids + end])
        where = batch.keep[0] if corrected else torch.arange(batch.token_ids.shape[1]) > 0

        def clamp(x, where=where):
            out = x.clone()
            for at in where.nonzero().flatten().tolist():
                f = dictionary.encode(x[0, at])
                error = x[0, at] - dictionary.decode(f)
                for i in chosen:
                    if f[i] > 0:
                        f[i] = -size[i]
                    elif f[i] < 0 and corrected:
                        f[i] = size[i]
                out[0, at] = dictionary.decode(f) + error
            return out

        logs = model.logits(batch, [Splice(SITE, clamp, where="all")])[0].log_softmax(-1)
        first = len(prompt.ids) - 1
        scores.append(sum(float(logs[first + i, token]) for i, token in enumerate(end)))
    return max(range(len(scores)), key=scores.__getitem__) == prompt.key


def test_the_first_token_and_special_tokens_stay(knowing):
    """Compat leaves the first token alone and nothing else; corrected every special token."""
    everything = dictionary_of(torch.eye(D))
    prompts = make_prompts(knowing, data_of().questions[:1], [range(4)], Asking())
    (prompt,) = prompts
    inside = type(prompt)((*prompt.ids[:3], 2, *prompt.ids[3:]), prompt.ends, prompt.key, "texts")  # <eos> within
    shifts = {}
    for compat in (True, False):
        answers = ClampedAnswers(knowing, [inside], everything, SITE, list(range(D)), 8, None, not compat, compat)
        shifts[compat] = answers.shift((0, 0), list(range(D)), 10.0).abs().sum(-1) > 0
    assert shifts[True].tolist() == [False, *[True] * (len(inside.row(0)) - 1)]
    assert not shifts[False][0]
    assert not shifts[False][3]
    assert shifts[False].sum() == shifts[True].sum() - 1


def test_planted_knowledge_is_taken_out_alone(knowing):
    good = oracle()
    mixed, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))
    basis = identity(D, SITE)  # a basis that is not that of the concepts: every latent fires everywhere
    basis.W_enc, basis.W_dec = mixed.T, mixed
    names = {"oracle": good, "permuted": permuted_decoder(good), "basis": basis, "concepts": identity(D, SITE)}
    results = unlearning.run(names, knowing, data_of(), SMALL)
    best = results["oracle"]
    assert best.metric("unlearning", "unlearning_score") == 1.0
    assert best.metric("unlearning", "held_out_retained_accuracy") == 1.0
    assert best.metric("unlearning", "known_forget_questions") == 6
    assert best.metric("unlearning", "known_retain_questions") == 8
    assert best.ci95["unlearning.unlearning_score"] == (1.0, 1.0)
    assert results["permuted"].metric("unlearning", "unlearning_score") < 0.5
    assert results["basis"].metric("unlearning", "unlearning_score") == 0.0
    assert "nothing was clamped" in results["basis"].eval_result_details[-1]["note"]
    assert results["concepts"].metric("unlearning", "unlearning_score") == 1.0  # here the coordinates are the concepts
    described = [row for row in best.eval_result_details if "latents" in row]
    assert len(described) == 2 * 16
    assert all(set(row["latents"]) == set(range(6)) for row in described)
    assert described[0]["accuracy_by_subject"] == {"public": 1.0, "secret": 0.0}


def test_knowledge_that_shares_a_latent_cannot_be_taken_out_alone(knowing):
    """Each latent reads a secret and a public word together: clamping it loses both."""
    eye = torch.eye(D)
    pairs = [eye[VOCABULARY.index(a)] + eye[VOCABULARY.index(b)] for a, b in zip(SECRET, PUBLIC, strict=False)]
    merged = dictionary_of(torch.nn.functional.normalize(torch.stack(pairs), dim=-1))
    result = unlearning.run({"d": merged}, knowing, data_of(), SMALL)["d"]
    assert result.metric("unlearning", "unlearning_score") == 0.0
    loose = SMALL.model_copy(update={"retain_thresholds": (1.0,)})  # clamp them although they fire on the others
    result = unlearning.run({"d": merged}, knowing, data_of(), loose)["d"]
    settings = [row for row in result.eval_result_details if "latents" in row]
    assert min(row["forget_accuracy"] for row in settings) == 0.0
    assert max(row["retained_accuracy"] for row in settings if row["forget_accuracy"] < 1) < 0.99
    assert result.metric("unlearning", "unlearning_score") == 0.0


@pytest.mark.parametrize("mode", ["compat", "corrected"])
def test_order_of_latents_changes_nothing(knowing, mode):
    good, config = oracle(), SMALL.model_copy(update={"mode": mode})
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    permuted = good.replace(W_enc=good.W_enc[:, order], W_dec=good.W_dec[order])
    results = unlearning.run({"a": good, "b": permuted}, knowing, data_of(), config)
    assert results["a"].eval_result_metrics == results["b"].eval_result_metrics


def test_units_of_latents_change_the_clamp_of_compat_alone(knowing):
    prompts = make_prompts(knowing, data_of().questions, [range(4)] * 14, Asking())
    moved = {}
    for scale in (1.0, 10.0):
        for corrected in (True, False):
            size = 0.1 if corrected else None
            answers = ClampedAnswers(knowing, prompts, oracle(scale), SITE, range(15), 16, size, corrected)
            moved[scale, corrected] = answers.shift((0, 0), range(15), 25.0)
    torch.testing.assert_close(moved[1.0, True], moved[10.0, True])
    assert float((moved[1.0, False] - moved[10.0, False]).abs().max()) > 10


def test_repeated_clamps_are_answered_once(knowing, monkeypatch):
    prompts = make_prompts(knowing, data_of().questions, [range(4)] * 14, Asking())
    answers = ClampedAnswers(knowing, prompts, oracle(), SITE, range(6), 16, None, False)
    before = answers.right([0, 1], 50.0)
    assert before.tolist() == [False, False, *[True] * 12]
    passes = []
    original = knowing.logits
    monkeypatch.setattr(knowing, "logits", lambda *a: passes.append(a) or original(*a))
    assert answers.right([1, 0], 50.0).tolist() == before.tolist()
    assert not passes
    assert answers.right([0, 1, 2], 50.0).tolist() == [False] * 3 + [True] * 11
    assert sum(len(batch.token_ids) for batch, *_ in passes) == 1  # only the third question is new, and has one row


def test_firing_frequencies_by_hand(knowing):
    """One latent per word: it fires from its word on. Texts of 3 and 2 words; negative values count when signed."""
    eye = torch.eye(D)
    rows = torch.stack([eye[VOCABULARY.index("secret0")], -eye[VOCABULARY.index("public1")]])
    documents = [Document(text="filler secret0 public1"), Document(text="public1 secret0")]
    draws = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    found = firing({"d": dictionary_of(rows)}, knowing, documents, draws, {"d": SITE})
    assert found.frequencies["d"].tolist() == [[3 / 5, 0.0], [1 / 2, 0.0]]
    assert found.tokens.tolist() == [5.0, 2.0]
    basis = identity(D, SITE)
    signed = {
        sign: firing({"d": basis}, knowing, documents, draws, {"d": SITE}, sign).frequencies["d"]
        for sign in (True, False)
    }
    assert torch.equal(signed[True], signed[False])  # all coordinates are positive here
    basis.W_enc = -basis.W_enc
    found = firing({"d": basis}, knowing, documents, draws, {"d": SITE}, False).frequencies["d"]
    assert float(found.sum()) == 0.0
    assert torch.equal(firing({"d": basis}, knowing, documents, draws, {"d": SITE}).frequencies["d"], signed[True])


def test_the_best_of_noisy_settings_is_not_a_score():
    """Settings that break random answers: the published score finds a lucky one, held-out questions do not."""
    draw = torch.Generator().manual_seed(0)
    asked = [ChoiceQuestion(str(i), ("a", "b"), 0, "s", i < 20) for i in range(220)]
    restricted = torch.tensor([q.restricted for q in asked])
    weights = torch.ones(1, 220, dtype=torch.float64)
    best, judged = [], []
    for seed in range(20):
        settings = []
        for i in range(16):
            right = torch.rand(220, generator=draw) > 0.008
            right[restricted] = torch.rand(20, generator=draw) > 0.1
            settings.append(Setting(seed, 0.01, 10, float(i), (), right))
        best.append(float(best_of_all(settings, restricted, weights, 0.99)))
        judged.append(float(held_out(settings, asked, weights, 0.99, seed).score))
    assert sum(judged) / 20 == pytest.approx(0.1, abs=0.03)
    assert sum(best) / 20 > 0.17


def test_chosen_and_judged_by_hand():
    choose = torch.tensor([[0.2], [0.4], [0.1]]), torch.tensor([[1.0], [1.0], [0.5]])
    judge = torch.tensor([[0.7], [0.3], [0.0]]), torch.tensor([[0.95], [1.0], [0.5]])
    score, left, kept = chosen_on_one_judged_on_other(choose, judge)
    assert [float(v) for v in (score, left, kept)] == pytest.approx([0.3, 0.7, 0.95])
    none = choose[0], torch.zeros(3, 1)
    assert [float(v) for v in chosen_on_one_judged_on_other(none, judge)] == [0.0, 1.0, 1.0]
    empty = torch.full((3, 1), torch.nan), choose[1]
    assert all(bool(v.isnan()) for v in chosen_on_one_judged_on_other(empty, judge))
    assert bool(unlearning_score(*empty).isnan())
    tied = torch.tensor([[0.2], [0.2]]), torch.tensor([[0.99], [1.0]])
    assert float(chosen_on_one_judged_on_other(tied, (torch.tensor([[1.0], [0.0]]), torch.ones(2, 1)))[0]) == 1.0


def test_halves_are_halves_of_every_subject():
    asked = [ChoiceQuestion(str(i), ("a", "b"), 0, f"s{i % 5}", i % 5 == 0) for i in range(35)]
    first = halves_of(asked, 3)
    by_subject = [int(first[[q.subject == f"s{s}" for q in asked]].sum()) for s in range(5)]
    assert all(count in (3, 4) for count in by_subject)
    assert int(first.sum()) in (17, 18)
    assert not torch.equal(first, halves_of(asked, 4))


def test_targets(knowing):
    data = data_of()
    trick = ChoiceQuestion("which secret0", ("iron", "salt", "wool", "all of the above"), 0, "secret", True)
    # Without the question nothing tells the options apart, and the first in the vocabulary's order wins.
    found = {}
    for target in ("correct", "correct-no-tricks", "correct_no_tricks", "correct-iff-question"):
        config = SMALL.model_copy(update={"target_metric": target, "orders": 1})
        kept, prompts = unlearning._known(knowing, [*data.questions, trick], Asking(), config)
        assert len(kept) == len(prompts)
        found[target] = len(kept)
    assert found["correct"] == 15
    assert found["correct-no-tricks"] == found["correct_no_tricks"] == 14
    assert found["correct-iff-question"] < found["correct"]
    with pytest.raises(InputError, match="no target metric 'corect'"):
        unlearning._known(knowing, data.questions, Asking(), SMALL.model_copy(update={"target_metric": "corect"}))


def test_a_model_that_knows_nothing_is_refused(knowing, headless_model):
    data = data_of()
    wrong = [ChoiceQuestion(q.stem, q.options, (q.key + 1) % 4, q.subject, q.restricted) for q in data.questions]
    with pytest.raises(InputError, match="answers 0 of 6 questions on what is to be forgotten"):
        unlearning.run({"d": oracle()}, knowing, Data(data.forget, data.retain, wrong), SMALL)
    with pytest.raises(InputError, match="does not predict the next token"):
        unlearning.default_data(headless_model, SMALL)


def test_world_data_keeps_the_craft_apart(knowing):
    config = Config(dataset_size=150, forget_questions=8, retain_questions=12)
    data = unlearning.default_data(knowing, config)
    assert len(data.forget) == len(data.retain) == 300
    assert all(document.id.startswith("craft/") for document in data.forget)
    assert not any("craft" in document.id for document in data.retain)
    concepts = {span.concept.split("/")[0] for document in data.retain for span in document.spans}
    assert "craft" not in concepts
    assert {"facts", "biographies", "questions"} <= concepts
    assert [q.restricted for q in data.questions] == [True] * 8 + [False] * 12
    assert {q.subject for q in data.questions[8:]} == {"cities", "kinds", "letters", "ships"}
    hashes = unlearning.data_hashes(data, config)
    assert hashes == unlearning.data_hashes(unlearning.default_data(knowing, config), config)
    other = Data(data.forget, data.retain, data.questions[1:])
    changed = unlearning.data_hashes(other, config)
    assert changed["data:questions"] != hashes["data:questions"]
    assert changed["data:forget"] == hashes["data:forget"]


def test_own_texts_and_questions(knowing):
    def made(text, side, **labels):
        return Document(text=text, labels={"side": side, **labels}, id=text)

    asked = {"A": "iron", "B": "salt"}
    rows = [
        made("filler secret0", "forget"),
        made("filler public0", "retain"),
        made("which secret0", "forget", answer="a", **asked),
        made("which public1", "retain", answer="B", subject="wool", **asked),
    ]
    data = unlearning.from_documents({"mine": rows}, "side", knowing, SMALL)
    assert [d.text for d in data.forget] == ["filler secret0"]
    assert data.questions == [
        ChoiceQuestion("which secret0", ("iron", "salt"), 0, "mine", True),
        ChoiceQuestion("which public1", ("iron", "salt"), 1, "wool", False),
    ]
    with pytest.raises(InputError, match="answer of question 'q' is 'E', but its options are A, B"):
        unlearning.from_documents({"mine": [made("q", "forget", answer="E", **asked)]}, "side", knowing, SMALL)
    with pytest.raises(InputError, match=r"has 'forgot' as its label 'side'.*forget"):
        unlearning.from_documents({"mine": [made("q", "forgot")]}, "side", knowing, SMALL)
    with pytest.raises(InputError, match="1 texts and 0 questions labelled 'retain'"):
        unlearning.from_documents({"mine": rows[:3]}, "side", knowing, SMALL)


def test_how_models_are_asked(knowing):
    assert unlearning.asking_for(knowing, Config()).scoring == "letters"
    assert unlearning.asking_for(knowing, Config()).chat is False  # no chat template
    assert unlearning.asking_for(knowing, Config(scoring="texts")).header == ""
    world = type("Named", (), {"name": "world:chat", "tokenizer": knowing.tokenizer})()
    assert unlearning.asking_for(world, Config()) == Asking("texts", "", False)
