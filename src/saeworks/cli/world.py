"""``saeworks world``: what is in the embedded world, talking to its models, and making them again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from saeworks.cli.flags import JsonFlag
from saeworks.cli.markup import marked, tree_lines
from saeworks.cli.output import print_json, print_line, print_table
from saeworks.errors import InputError

world = App(name="world", help="The embedded world: concepts, texts, models, cards.", help_format="plaintext")


@world.command
def concepts(
    prefix: Annotated[str | None, Parameter(help="Id of a concept: it and what is below it.")] = None,
    /,
    *,
    domain: Annotated[str | None, Parameter(help="Only concepts of this domain.")] = None,
    known_to: Annotated[
        str | None, Parameter(help="both, or base or chat: what only that model is expected to know.")
    ] = None,
    depth: Annotated[int | None, Parameter(help="Levels of the tree to show.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show the tree of concepts: what each one marks, its domain, and which model knows it."""
    from saeworks.jobs.world import concepts as job

    found = job(prefix, domain, known_to, depth)
    if json:
        return print_json(found)
    for line in tree_lines(found["concepts"]):
        print_line(line)
    print_line(f"{found['count']:,} concepts")
    return None


@world.command
def sample(
    domain: Annotated[str, Parameter(help="A domain, or world for the mixture of domains.")] = "world",
    /,
    *,
    split: Annotated[str, Parameter(help="train, validation, probe_train or probe_test.")] = "validation",
    count: Annotated[int, Parameter(help="How many documents.")] = 5,
    seed: Annotated[int, Parameter(help="Another seed is another corpus of the same world.")] = 0,
    start: Annotated[int, Parameter(help="Index of the first document.")] = 0,
    spurious: Annotated[
        str | None, Parameter(help="LABEL:STRENGTH, a correlation to plant, for example gender:0.95.")
    ] = None,
    spans: Annotated[bool, Parameter(help="Mark the concepts inside the text.")] = False,
    out: Annotated[Path | None, Parameter(help="Write lines of JSON to this file instead.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show documents of the corpus with their labels, or write them to a file."""
    from saeworks.jobs.world import sample as job

    found = job(domain, split, count, seed, start, spurious, out)
    if json:
        return print_json(found)
    if out is not None:
        print_line(f"{count:,} documents: {found['out']}")
        return None
    for row in found["documents"]:
        labels = ", ".join(f"{name} {value}" for name, value in row["labels"].items())
        print_line(f"# {row['id']}" + (f": {labels}" if labels else ""))
        print_line(marked(row["text"], row["spans"]) if spans else row["text"])
        print_line("")
    return None


@world.command
def ask(
    *text: Annotated[str, Parameter(help="What to ask; without it, a conversation.")],
    model: Annotated[str, Parameter(help="chat, or base, which continues the text.")] = "chat",
    system: Annotated[str | None, Parameter(help="System text before the conversation.")] = None,
    tokens: Annotated[int, Parameter(help="The most tokens of an answer.")] = 48,
    temperature: Annotated[float, Parameter(help="0 takes the likeliest token; above 0 draws.")] = 0.0,
    seed: Annotated[int, Parameter(help="Seed of the draws.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Talk to the chat model, or let the base model continue a text.

    Without TEXT every line is a question until an empty line or the end of the input.
    """
    from saeworks.jobs.conversation import open_conversation

    conversation = open_conversation(model, system, tokens, temperature, seed)
    for line in [" ".join(text)] if text else _lines("text> " if model == "base" else "you> "):
        try:
            done = conversation.ask(line)
        except InputError as e:
            # Somebody who sits at a terminal may try again; a script must learn that a line was not answered.
            if text or not sys.stdin.isatty():
                raise
            sys.stderr.write(f"{e}\n")
            continue
        if done.dropped:
            what = "exchange is" if done.dropped == 1 else "exchanges are"
            sys.stderr.write(f"(The {done.dropped} oldest {what} forgotten: the context is full.)\n")
        if not json:
            print_line(done.answer if model == "chat" else done.text + done.answer)
            sys.stdout.flush()
    if json:
        print_json({"model": model, "exchanges": [asdict(one) for one in conversation.exchanges]})


def _lines(prompt: str) -> Iterator[str]:
    """Lines of standard input up to an empty one; on a terminal, after a prompt."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if not line.strip():
                return
            yield line.rstrip("\n")
        return
    while True:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.rstrip("\n")


@world.command
def card(
    model: Annotated[str, Parameter(help="base, chat, or the directory of a model that was built.")] = "base",
    /,
    *,
    measure: Annotated[bool, Parameter(help="Measure again and compare; minutes on a CPU.")] = False,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    json: JsonFlag = False,
) -> int:
    """Print a model's card: what it is and what it can do.

    With --measure, exit code 1 when a figure that the card reaches is missed by more than the card's tolerance.
    """
    from saeworks.jobs import world_card as job

    if not measure:
        found = job.card(model)
        if json:
            print_json(found)
        else:
            print_line(found["card"].rstrip("\n"))
        return 0
    found = job.measure_card(model, device)
    if json:
        print_json(found)
    else:
        print_table(f"The {found['model']} model of the world", found["table"])
        for name in found["missed"]:
            print_line(f"Missed: {name}")
    return 1 if found["missed"] else 0


@world.command
def build(
    *,
    out: Annotated[Path, Parameter(help="Working directory; the models come to lie in OUT/base and OUT/chat.")],
    part: Annotated[str, Parameter(help="base, chat or both, comma-separated.")] = "base,chat",
    steps: Annotated[int | None, Parameter(help="Steps of the base model's first cycle.")] = None,
    more_steps: Annotated[int | None, Parameter(help="Steps of its second cycle.")] = None,
    chat_steps: Annotated[int | None, Parameter(help="Steps of the chat model's first cycle.")] = None,
    judging_steps: Annotated[int | None, Parameter(help="Steps of its second cycle, on statements.")] = None,
    settling_steps: Annotated[int | None, Parameter(help="Steps of its third cycle, on both.")] = None,
    seed: Annotated[int, Parameter(help="Seed of corpus and weights.")] = 0,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[int | None, Parameter(help="Threads of the CPU.")] = None,
    no_measure: Annotated[bool, Parameter(help="Leave out abilities and cards.")] = False,
    resume: Annotated[bool, Parameter(help="Implied: a build always goes on from its last checkpoint in OUT.")] = True,
    json: JsonFlag = False,
) -> None:
    """Make tokenizer, base model and chat model again from the seed.

    Start it again with the same flags after an interruption and it goes on.
    """
    from saeworks.jobs.world import build as job

    parts = [name.strip() for name in part.split(",") if name.strip()]
    cycles = {"chat_steps": chat_steps, "judging_steps": judging_steps, "settling_steps": settling_steps}
    made: dict[str, Any] = job(
        out, parts, steps, more_steps, seed=seed, device=device, threads=threads, measure=not no_measure, **cycles
    )
    if json:
        return print_json(made)
    for name, directory in made["models"].items():
        print_line(f"{name}: {directory}")
    return None
