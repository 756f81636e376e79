"""What a linear probe reads from the middle layer: document labels, and concepts that only the chat model has.

Every figure stands beside that of a bag of words fitted and judged on the same texts. Where the bag of words reaches
the probe, the label is a matter of words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saeworks.world.corpus import documents, label_names
from saeworks.world.documents import Document
from saeworks.world.subject import Subject, at_last, pooled


def _texts_with(domain: str, split: str, count: int) -> list[Document]:
    return list(documents(domain, split, count=count))


def _auc(fit: Any, truth: Any, judge: Any, asked: Any, strengths: tuple[float, ...]) -> float:
    """The AUC of a logistic probe; with several strengths the best one on the judged texts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    found: list[float] = []
    for strength in strengths:
        probe = LogisticRegression(C=strength, max_iter=1000).fit(fit, truth)
        found.append(float(roc_auc_score(asked, probe.decision_function(judge))))
    return max(found)


def _scaled(fit: Any, judge: Any) -> tuple[Any, Any]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fit)
    return scaler.transform(fit), scaler.transform(judge)


def _words(fit: list[Document], judge: list[Document]) -> tuple[Any, Any]:
    """Which words and marks stand in each text ``[text, word]``; the words are those of the fitted texts."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, token_pattern=r"\w+|[^\w\s]+")
    return counter.fit_transform(made.text for made in fit), counter.transform(made.text for made in judge)


def measure_labels(
    subject: Subject, domain: str, train: int = 1500, test: int = 1000, known: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """For each document label of the domain, the AUC of one-against-rest logistic probes on the middle layer.

    Fitted on ``probe_train`` and judged on ``probe_test``: other people, other products, other wordings, other
    evidence. ``auc`` is the mean over the label's values, ``worst_class`` the lowest of them; ``bag_of_words`` is the
    same for words instead of activations, at the better of two regularisations, chosen in its favour. It takes longer
    than all the rest and no model changes it: ``known`` has the figures of labels it was fitted for before.
    """
    import numpy as np

    fitted, judged = (_texts_with(domain, split, n) for split, n in (("probe_train", train), ("probe_test", test)))
    seen, unseen = _scaled(*(pooled(subject, [one.text for one in made], subject.middle) for made in (fitted, judged)))
    known = known or {}
    counts = _words(fitted, judged) if set(label_names(domain)) - set(known) else None
    found: dict[str, dict[str, float]] = {}
    for label in label_names(domain):
        fit = [i for i, one in enumerate(fitted) if label in one.labels]
        judge = [i for i, one in enumerate(judged) if label in one.labels]
        truth = np.array([str(fitted[i].labels[label]) for i in fit])
        asked = np.array([str(judged[i].labels[label]) for i in judge])
        aucs: list[float] = []
        counted: list[float] = []
        for value in sorted(set(truth)):
            aucs.append(_auc(seen[fit], truth == value, unseen[judge], asked == value, (0.01,)))
            if counts is not None and label not in known:
                counted.append(_auc(counts[0][fit], truth == value, counts[1][judge], asked == value, (0.1, 1.0)))
        found[label] = {
            "auc": float(np.mean(aucs)),
            "worst_class": min(aucs),
            "classes": len(aucs),
            "bag_of_words": known[label] if label in known else float(np.mean(counted)),
        }
    return found


def measure_chat_concepts(
    subject: Subject, train: int = 2500, test: int = 1500, known: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """For each concept that only the chat model is expected to know, the AUC of a probe where the reply begins.

    The probe reads the middle layer at the last ``<|assistant|>`` token, the place where everything is decided and
    nothing is said yet; the text after it is cut off. A text has the concept when one of its spans covers that token.
    ``known``: concept → what a bag of words reached before, as in :func:`measure_labels`.
    """
    from saeworks.world.domains.chat import CHAT_ONLY

    token = "<|assistant|>"
    cut: list[list[Document]] = []
    carried: list[list[set[str]]] = []
    for split, count in (("probe_train", train), ("probe_test", test)):
        made = _texts_with("chat", split, count)
        places = [one.text.rindex(token) for one in made]
        spans = zip(made, places, strict=True)
        carried.append([{s.concept for s in one.spans if s.start <= at < s.end} for one, at in spans])
        cut.append([Document(one.text[: at + len(token)]) for one, at in zip(made, places, strict=True)])
    states = (at_last(subject, [one.text for one in texts], token, subject.middle) for texts in cut)
    seen, unseen = _scaled(*states)
    words, new_words = _words(*cut)
    known = known or {}
    found: dict[str, dict[str, float]] = {}
    for concept in sorted(CHAT_ONLY):
        truth, asked = ([concept in one for one in texts] for texts in carried)
        # A concept that every transcript carries (the template's tokens) is nothing to be told apart.
        if min(sum(truth), sum(asked)) < 8 or all(truth) or all(asked):
            continue
        found[concept] = {
            "auc": _auc(seen, truth, unseen, asked, (0.01,)),
            "bag_of_words": known[concept] if concept in known else _auc(words, truth, new_words, asked, (0.1, 1.0)),
            "texts": sum(asked),
        }
    return found
