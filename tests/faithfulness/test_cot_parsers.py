"""What judges write is read by rules that are written down; these need no Inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.faithfulness.tasks import restoration_prompts as restoration
from saeworks.faithfulness.tasks.iphr_prompts import judge_prompt, read_verdict, subject_prompt
from saeworks.faithfulness.tasks.journal import Journal, call_key
from saeworks.faithfulness.tasks.problems import read_problems
from saeworks.faithfulness.tasks.shortcut_prompts import (
    BATTERIES,
    battery,
    read_critical,
    read_equivalence,
    step_prompt,
)
from saeworks.faithfulness.tasks.steps import marked_sections, numbered_steps, similarity, split_problem
from saeworks.faithfulness.tasks.tags import MISSING, answer_string, last_tag, readable


def tagged(answers: str) -> str:
    return "".join(f"<answer_{i}>{a}</answer_{i}>" for i, a in enumerate(answers, 1))


# --- T13: the answer string of the step battery -----------------------------------------------------------------------


def test_the_answers_become_a_string_and_the_last_tag_wins() -> None:
    text = "I first thought <answer_3>Y</answer_3>, but no.\n" + tagged("YNNNYNYN")
    assert answer_string(text, 8) == "YNNNYNYN" == BATTERIES["shortcut"].flag
    assert answer_string(tagged("YNNNYNYN") + "<answer_8>Y</answer_8>", 8) == "YNNNYNYY"


def test_other_ways_to_write_the_answers_are_read() -> None:
    written = ["yes", "no", "n", "False", "TRUE", "**N**", "y", "No."]
    text = "".join(f"<ANSWER_{i}> {a} </Answer_{i}>" for i, a in enumerate(written, 1))
    assert answer_string(text, 8) == "YNNNYNYN"


def test_a_missing_answer_is_marked_and_makes_the_string_unreadable() -> None:
    text = tagged("YNNNYNYN").replace("<answer_4>N</answer_4>", "")
    assert answer_string(text, 8) == f"YNN{MISSING}YNYN"
    assert not readable(answer_string(text, 8), 8)
    assert readable("YNNNYNYN", 8)
    assert not readable("YNNNYNYN", 9)
    assert answer_string(tagged("YNNNYNY") + "<answer_8>perhaps</answer_8>", 8).endswith(MISSING)


def test_a_forgotten_opening_tag_is_forgiven_but_not_a_forgotten_closing_one() -> None:
    assert last_tag("some words\nYES</answer>", "answer") == "YES"
    assert last_tag("<answer>YES", "answer") is None
    assert last_tag("<answer></answer>", "answer") == ""
    # The innermost opening counts, so that a stray one does not swallow everything that follows.
    assert last_tag("<answer>no wait <answer>YES</answer>", "answer") == "YES"


def test_the_battery_of_nine_has_nine_questions_and_its_own_string() -> None:
    assert [(len(b.questions), len(b.flag)) for b in BATTERIES.values()] == [(8, 8), (9, 9)]
    assert battery("latent-correction").flag == "YNNYYNYNY"
    with pytest.raises(InputError, match="Did you mean 'shortcut'"):
        battery("shortcuts")


def test_the_judge_of_a_step_sees_the_chain_and_braces_stay_braces() -> None:
    steps = ["Let S = {problem}.", "Then {steps} follows.", "So 42."]
    prompt = step_prompt(BATTERIES["shortcut"], "What is {x}?", steps, 1, reference="It is {y}.", critical=[1, 2])
    assert "What is {x}?" in prompt
    assert "It is {y}." in prompt
    assert "[step 0]\nLet S = {problem}." in prompt
    assert prompt.rstrip().endswith("<answer_8>N</answer_8>.")
    assert "path to the answer are: 1, 2" in prompt
    assert prompt.count("Then {steps} follows.") == 2  # among all steps, and as the one that is examined
    alone = step_prompt(BATTERIES["shortcut"], "P", steps, 1, only=5)
    assert "5. Does the step draw" in alone
    assert "1. Is the step used" not in alone
    assert "A correct solution" not in alone


# --- T14: steps -------------------------------------------------------------------------------------------------------


def test_steps_are_found_however_they_are_numbered() -> None:
    text = """First some words.
1. One apple.
still one
**Step 2:** Two apples.
### Step 3: Three.
**4.** Four.
**Step 5**: Five.
*Step 6.* Six.
7) Seven.
It costs 3.50 each."""
    steps = numbered_steps(text)
    assert steps[0] == "First some words."
    assert steps[1] == "1. One apple.\nstill one"
    assert [step.split()[-1] for step in steps[2:7]] == ["apples.", "Three.", "Four.", "Five.", "Six."]
    assert steps[7] == "7) Seven.\nIt costs 3.50 each."
    assert len(steps) == 8


def test_a_text_that_begins_with_a_step_has_an_empty_step_0() -> None:
    assert numbered_steps("1. a\n2. b") == ["", "1. a", "2. b"]
    assert numbered_steps("no numbers\n3.5 kg of it") == ["no numbers\n3.5 kg of it"]


def test_a_marked_text_must_be_the_text() -> None:
    original = "Let n be even. " * 5 + "\nThen n = 2k for some k. " * 5 + "\nHence n + 2 = 2(k + 1). " * 5
    first, second, third = original.split("\n", 2)[0], original.split("\n")[1], "\n".join(original.split("\n")[2:])
    reply = f"```\n<section 1>\n{first}\n</section 1><section 2>{second}\n<section 3> {third}\n```"
    sections = marked_sections(reply)
    assert sections == [first.strip(), second.strip(), third.strip()]
    assert split_problem(sections, original) == ""
    # As long as before, but reworded: the length alone would accept it.
    reworded = [part.replace("Hence", "Thus,").replace("even", "evem").replace("some", "that") for part in sections]
    assert abs(len("\n".join(reworded)) - len(original)) < 0.1 * len(original)
    assert "reworded" in split_problem(reworded, original)
    assert "10 %" in split_problem([*sections, "And this is why the claim holds for every n. " * 3], original)
    assert "at least 3" in split_problem(sections[:2], original)
    assert marked_sections("no marker at all") == []


def test_similarity_ignores_layout_but_not_words() -> None:
    assert similarity("**Let**  x = 2", "let x = 2") == 1.0
    assert similarity("a b c d", "a b c e") == pytest.approx(0.75)
    assert similarity("", "") == 1.0


# --- the judge of answers ---------------------------------------------------------------------------------------------


def reply(answer: str, equal: str = "FALSE") -> str:
    return (
        f"<item_1><explanation>e</explanation><answer>{answer}</answer></item_1>"
        f"<item_2><explanation>f</explanation><answer>{equal}</answer></item_2>"
    )


@pytest.mark.parametrize(
    ("text", "answer", "equal"),
    [
        (reply("YES"), "YES", False),
        (reply("yes", "TRUE"), "YES", False),
        (reply("NO"), "NO", False),
        (reply(" no. ", "true"), "NO", True),
        (reply("NO", "maybe"), "NO", None),
        (reply("NO").split("<item_2>")[0], "NO", None),
        (reply("REFUSED"), "REFUSED", False),
        (reply("UNKNOWN"), "UNKNOWN", False),
        (reply("YES or NO"), "FAILED_EVAL", False),
        ("", "FAILED_EVAL", False),
        ("The answer is NO.", "FAILED_EVAL", False),
        (reply("YES").replace("<item_1>", "").replace("<answer>YES", "YES"), "YES", False),
    ],
)
def test_the_judges_reply_is_read(text: str, answer: str, equal: bool | None) -> None:
    verdict = read_verdict(text)
    assert (verdict.answer, verdict.equal_values) == (answer, equal)


def test_the_judge_is_shown_the_response_alone_and_braces_in_it_are_harmless() -> None:
    prompt = judge_prompt("Set {response} = 1. {0} NO")
    assert prompt.count("Set {response} = 1. {0} NO") == 1
    assert subject_prompt("Is {question} x?", "plain") == "Is {question} x?"
    assert "Is A longer than B?\n\n" in subject_prompt("Is A longer than B?", "cot")
    assert "NO:\n\nIs A" in subject_prompt("Is A longer than B?", "cot-paragraph")
    with pytest.raises(InputError, match="no prompt 'cots'"):
        subject_prompt("x", "cots")


# --- restoration ------------------------------------------------------------------------------------------------------


def test_pass_0_wants_a_clear_problem() -> None:
    read = restoration.read_correctness
    assert read("<problem>CLEAR</problem><answer>correct</answer>") == "CORRECT"
    assert read("<problem>CLEAR</problem><answer>INCORRECT</answer>") == "INCORRECT"
    assert read("<problem>ambiguous</problem><answer>CORRECT</answer>") == "UNCERTAIN"
    assert read("<problem>CLEAR</problem>") is None
    assert read("CORRECT") is None


def test_pass_1_needs_a_label_for_every_step_but_step_0() -> None:
    text = "<step_1>Correct: fine</step_1><step_2-3>incorrect - bad</step_2-3>"
    assert restoration.read_labels(text, 4) == ["uncertain", "correct", "incorrect", "incorrect"]
    assert restoration.read_labels(text, 5) is None
    assert restoration.read_labels("<step_1>good</step_1>", 2) is None


def test_pass_2_reads_status_and_severity_and_tells_none_from_nothing() -> None:
    text = "<step_2>unfaithful, minor: slip</step_2><step_2>unfaithful, major: on second thought</step_2>"
    (one,) = restoration.read_verdicts(text, 5) or []
    assert (one.step, one.status, one.severity, one.reason) == (2, "unfaithful", "major", "on second thought")
    both = restoration.read_verdicts("<step_3-9>incorrect, trivial: x</step_3-9>", 5) or []
    assert [v.step for v in both] == [3, 4]
    assert restoration.read_verdicts("All is well. <none/>", 5) == []
    assert restoration.read_verdicts("All is well.", 5) is None
    assert restoration.read_verdicts("<step_1>wrong, huge: x</step_1>", 5) is None


def test_pass_3_counts_what_cannot_be_read_as_no() -> None:
    assert restoration.read_again("<unfaithful>True</unfaithful><severity>Major</severity>") == (True, "major", True)
    assert restoration.read_again("<unfaithful>no</unfaithful>") == (False, None, True)
    assert restoration.read_again("It is unfaithful.") == (False, None, False)


def test_pass_3_marks_the_step_by_its_own_number() -> None:
    prompt = restoration.again_prompt("P", "7", ["", "1. a", "3. skipped two", "4. d"], 2)
    assert "[step 2]\n>>> 3. skipped two" in prompt
    assert prompt.count(">>> 3.") == 1


def test_final_answers_are_compared_by_the_words_of_the_judge() -> None:
    assert read_equivalence("They agree. EQUIVALENT") == (True, "")
    assert read_equivalence("NOT EQUIVALENT") == (False, "")
    assert read_equivalence("Is it EQUIVALENT? NOT EQUIVALENT") == (False, "NA_BOTH")
    assert read_equivalence("not_equivalent") == (False, "NA_NEITHER")


def test_critical_steps_are_the_last_list_within_range() -> None:
    assert read_critical("<critical>1, 2</critical> rather <critical>0, 2, 9</critical>", 4) == [0, 2]
    assert read_critical("steps 1 and 2", 4) is None
    assert read_critical("<critical>8</critical>", 4) is None


# --- journal and problems ---------------------------------------------------------------------------------------------


def entry(outcome: str, tokens: int = 3) -> dict[str, object]:
    return {"outcome": outcome, "tokens": tokens, "cost": 0.5, "text": "t"}


def test_the_journal_keeps_answers_and_lets_failures_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for key, outcome in (("a", "answered"), ("b", "rate_limited"), ("c", "content_filter"), ("d", "empty")):
        journal.add(key, entry(outcome))
    with open(path, "ab") as file:
        file.write(b'{"key": "e", "outc')  # a kill in the middle of a line
    again = Journal(path)
    assert [key for key in "abcde" if again.find(key)] == ["a", "c", "d"]
    assert (again.spent.tokens, again.spent.cost) == (12, 2.0)
    again.add("e", entry("answered"))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == list("abcde")
    assert Journal(path).find("e") is not None


def test_a_damaged_journal_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"key": "a", "outcome": "answered", "tokens": 1, "cost": 0}\n{"key": 1}\n')
    with pytest.raises(InputError, match=r"Line 2 of .* is damaged"):
        Journal(path)


def test_two_draws_of_one_question_are_two_calls() -> None:
    keys = {call_key("subject", "m", ["q"], {"temperature": t}, "s", e) for t in (0.0, 0.7) for e in (1, 2)}
    assert len(keys) == 4


def test_problems_are_read_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"question": "1+1?", "answer": "2", "split": "test"}\n{"id": "b", "problem": "2+2?", "solution": "4"}\n'
    )
    one, two = read_problems(path)
    assert (one.text, one.reference, one.category, len(one.id)) == ("1+1?", "2", "test", 16)
    assert (two.id, two.solution, two.response) == ("b", "4", None)
    path.write_text('{"id": "b", "problem": "x"}\n{"id": "b", "problem": "y"}\n')
    with pytest.raises(InputError, match="an earlier one has"):
        read_problems(path)
    path.write_text('{"id": "b"}\n')
    with pytest.raises(InputError, match=r"Entry 1 .* has no text"):
        read_problems(path)
