"""``saeworks cot probe``: is the tendency of the answers readable before the reasoning begins?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.output import print_json, print_line, print_table


def cot_probe(
    path: Annotated[Path, Parameter(help="Stored questions with judgements or responses: a directory, file or log.")],
    /,
    *,
    model: Annotated[str, Parameter(help="Language model to read: world:base, a directory or a hub name.")],
    site: Annotated[
        list[str] | None, Parameter(help="Site to read at, may be repeated; the whole residual stream when not given.")
    ] = None,
    position: Annotated[
        list[str] | None, Parameter(help="Token of the prompt, may be repeated: last, question_mark, reasoning …")
    ] = None,
    answers_of: Annotated[
        str | None, Parameter(help="Whose answers, where those of several models are stored.")
    ] = None,
    prompt: Annotated[str, Parameter(help="How the questions were put: cot, cot-paragraph or plain.")] = "cot",
    suffix: Annotated[str | None, Parameter(help="Only the data set with this suffix.")] = None,
    judge: Annotated[str | None, Parameter(help="Only this judge.")] = None,
    folds: Annotated[int | None, Parameter(help="Parts of the properties; one per property when not given.")] = None,
    shuffles: Annotated[int, Parameter(help="Permutations of the labels, as a control.")] = 100,
    seed: Annotated[int, Parameter(help="Of folds and permutations.")] = 0,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, Parameter(help="float32, bfloat16 or float16.")] = "float32",
    batch_size: Annotated[int, Parameter(help="Prompts read at a time.")] = 32,
    out: Annotated[Path | None, Parameter(help="Directory for the result file.")] = None,
    json: JsonFlag = False,
) -> None:
    """Predict to which side a kind of question leans, from activations before any reasoning, on unseen properties."""
    from saeworks.jobs import cot_probe as job

    result = job.cot_probe(
        path,
        model,
        site or (),
        position or ("last",),
        answers_of=answers_of,
        prompt=prompt,
        selection=job.cot.Selection(suffix, judge),
        settings=job.ProbeSettings(folds=folds, shuffles=shuffles, seed=seed),
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        out=out,
    )
    if json:
        return print_json(result.model_dump(mode="json"))
    keys = ("name", "fvu", "fvu_shuffled", "p", "p_best")
    print_table("Variance unexplained", [{key: one[key] for key in keys} for one in result.eval_result_details])
    data, controls = result.eval_result_metrics["data"], result.eval_result_metrics["controls"]
    print_line(
        f"{data['templates']} template groups of {data['properties']} properties, {data['questions']} questions."
    )
    print_line(f"The mean of the training groups: {controls['mean']:.3f}; by comparison: {controls['comparison']:.3f}.")
    return None
