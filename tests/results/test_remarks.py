"""Notes of the evals and reasons for missing numbers, as sentences."""

from saeworks.results.envelope import Result
from saeworks.results.remarks import remarks


def result(eval_type, name, *details):
    return Result(eval_type_id=eval_type, eval_config={}, eval_result_metrics={}, sae_lens_id=name).model_copy(
        update={"eval_result_details": list(details)}
    )


def test_each_reason_is_said_once_with_the_dictionaries_it_is_about():
    no_head = {"not_measured": ["loss"], "reason": "The model has no head."}
    found = remarks(
        [
            result("core", "a", {"site": "x"}, no_head),
            result("core", "b", no_head),
            result("core", "c", {"reason": "of something else"}),
            result("ravel", "a", {"note": "the model has read the entity before", "site_is_read": False}),
            result("ravel", "b", {"note": None}),
        ]
    )
    assert found == [
        "core of a and 1 more: The model has no head.",
        "ravel of a: the model has read the entity before.",
    ]
    assert remarks([]) == []
