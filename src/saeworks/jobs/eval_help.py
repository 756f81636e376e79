"""What ``saeworks eval --help`` says: for every eval its question, and what its main numbers mean."""

from __future__ import annotations

from saeworks.results.headlines import HEADLINES

#: Name of the eval → the ``eval_type_id`` of its results, and the question it answers.
QUESTIONS = {
    "core": ("core", "Does the model behave the same with the reconstruction in its place, and at what sparsity?"),
    "sparse_probing": ("sparse_probing", "Does a labelled concept stand in one or a few latents?"),
    "latents": ("latents", "Does every known concept of the embedded world have a latent?"),
    "scr": ("scr", "Can a spurious cue be removed from a classifier by removing latents?"),
    "tpp": ("tpp", "Do the latents of a class act on that class alone?"),
    "shift": ("shift", "As scr, with latents that a judge chooses by what they say."),
    "absorption": ("absorption_first_letter", "Do latents of first letters fall silent where others take over?"),
    "autointerp": ("autointerp", "Can a judge explain what a latent fires on?"),
    "ravel": ("ravel", "Can one attribute of an entity be swapped while the others stay?"),
    "unlearning": ("unlearning", "Can knowledge be removed while all other knowledge stays?"),
    "meta_structure": (
        "meta_structure_decoder_variance",
        "Do decoder rows share parts that a smaller dictionary finds?",
    ),
    "mdl": ("mdl", "How many bits does it take to send the activations through the dictionary?"),
}


def eval_help() -> str:
    """The text, one paragraph per eval."""
    parts = [
        "Measure dictionaries with the named evals.",
        "Without a name: core, sparse_probing and latents. With --controls, dictionaries that nobody trained are "
        "measured too, and every score is shown between its floor and its ceiling.",
    ]
    for name, (eval_type, question) in QUESTIONS.items():
        lines = [f"{name}: {question}"]
        lines += [f"- {h.column} ({h.direction}): {h.meaning}" for h in HEADLINES if h.eval == eval_type]
        parts.append("\n".join(lines))
    parts.append("Every other number of the result files is defined in docs/metrics.md.")
    return "\n\n".join(parts)
