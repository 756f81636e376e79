"""Steps of a chain of thought: split by its own numbering, by a model that marks sections, or by blank lines."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

# A section-marked text is accepted if its length is within this share of the original's, and if it is that similar.
LENGTH_TOLERANCE = 0.1
MIN_SIMILARITY = 0.98
MIN_SECTIONS = 3

# "3." or "Step 3:" at the start of a line, bold in any of the usual placements of the asterisks, or as a heading.
_NUMBERED = re.compile(
    r"""^\s*(?:\#{1,6}\s*)?        # a heading
        \*{0,3}\s*                  # bold opens
        (?:step\s*\*{0,3}\s*(\d+)\s*\*{0,3}\s*[.:)\-–—]?   # Step 3:   Step 3.
          |(\d+)\s*\*{0,3}\s*[.)](?!\d))                    # 3.  but not 3.5
        """,
    re.IGNORECASE | re.VERBOSE,
)
_MARKER = re.compile(r"<section(?:\s+|[-_])?(\d+)\s*>|\[\s*section\s+(\d+)\s*\]", re.IGNORECASE)
_CLOSING = re.compile(r"</section[^>]*>|^\s*```\w*\s*$", re.IGNORECASE | re.MULTILINE)


def numbered_steps(text: str) -> list[str]:
    """The steps of a text that numbers them, line by line; what stands before the first number is step 0.

    The steps are counted from 0 in their order, whatever numbers they carry, so that a step's place in the list is its
    number. A text whose first line is a step has an empty step 0, as every other text has its first words there.
    """
    steps = [""]
    for line in text.strip().splitlines():
        if _NUMBERED.match(line):
            steps.append(line)
        else:
            steps[-1] = f"{steps[-1]}\n{line}" if steps[-1] else line
    return [step.strip() for step in steps]


def paragraphs(text: str) -> list[str]:
    """The parts between blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def lines(text: str) -> list[str]:
    """The lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def marked_sections(reply: str) -> list[str]:
    """The sections between the markers ``<section 1>`` … of a reply; closing tags and code fences are dropped."""
    found = list(_MARKER.finditer(reply))
    ends = [*(match.start() for match in found[1:]), len(reply)] if found else []
    parts = [_CLOSING.sub("", reply[match.end() : end]).strip() for match, end in zip(found, ends, strict=True)]
    return [part for part in parts if part]


def split_problem(sections: list[str], original: str) -> str:
    """Why sections are not the original text in parts; "" if they are.

    A length within 10 % does not rule out rewording, so the texts must also be nearly the same character by character
    once case, spaces and marks of layout are set aside.
    """
    if len(sections) < MIN_SECTIONS:
        return f"{len(sections)} sections were marked; at least {MIN_SECTIONS} are expected."
    joined = "\n".join(sections)
    if abs(len(joined) - len(original)) > LENGTH_TOLERANCE * max(1, len(original)):
        return (
            f"The sections have {len(joined)} characters together, the text {len(original)}; that differs by over 10 %."
        )
    likeness = similarity(joined, original)
    if likeness < MIN_SIMILARITY:
        return f"The sections are {likeness:.3f} like the text; below {MIN_SIMILARITY} it was reworded."
    return ""


def similarity(first: str, second: str) -> float:
    """Share of characters that two texts have in common and in order, 0 to 1, after normalising both."""
    one, other = _normal(first), _normal(second)
    if one == other:
        return 1.0
    # Words, not characters: the comparison is quadratic in the worst case, and a changed word is what is looked for.
    left, right = one.split(), other.split()
    matched = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    common = sum(sum(len(word) for word in left[block.a : block.a + block.size]) for block in matched)
    total = sum(map(len, left)) + sum(map(len, right))
    return 2 * common / total if total else 1.0


def _normal(text: str) -> str:
    return " ".join(re.sub(r"[*_#`]+", "", text).lower().split())


def number_steps(steps: list[str], first: int = 0) -> str:
    """All steps with their numbers, one block each, as judges are shown them."""
    return "\n\n".join(f"[step {i}]\n{step}" for i, step in enumerate(steps, first))
