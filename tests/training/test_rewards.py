"""Rewards of answers, one by one and as TRL calls them."""

import pytest

from xgen_mm.training.recipe_sections import RecipeError, RewardSection
from xgen_mm.training.stages.rewards import (
    answer_text,
    exact_match,
    format_reward,
    is_refusal,
    length,
    number_distance,
    refusal,
    reward_functions,
)


@pytest.mark.parametrize(
    ("answer", "solution", "expected"),
    [
        pytest.param("407", "407", 1.0, id="same"),
        pytest.param(" The Cat. ", "cat", 1.0, id="case-article-stop"),
        pytest.param("a red,  car", "red car", 1.0, id="comma-and-space"),
        pytest.param("3.5", "35", 0.0, id="decimal-point-counts"),
        pytest.param("408", "407", 0.0, id="other"),
        pytest.param("", "407", 0.0, id="nothing"),
    ],
)
def test_exact_match_overlooks_form_only(answer: str, solution: str, expected: float) -> None:
    assert exact_match(answer, solution) == expected


@pytest.mark.parametrize(
    ("answer", "solution", "expected"),
    [
        pytest.param("407", "407", 1.0, id="right"),
        pytest.param("The answer is 300, not 100", "200", 0.5, id="last-number"),
        pytest.param("1,200", "1200", 1.0, id="thousands"),
        pytest.param("-5", "5", 0.0, id="other-sign"),
        pytest.param("3-5", "5", 1.0, id="range-is-no-sign"),
        pytest.param("2.5", "5", 0.5, id="decimals"),
        pytest.param("many", "5", 0.0, id="no-number"),
        pytest.param("0", "0", 1.0, id="zero"),
    ],
)
def test_number_distance_falls_with_the_relative_error(answer: str, solution: str, expected: float) -> None:
    assert number_distance(answer, solution) == pytest.approx(expected)


def test_number_distance_without_a_number_to_compare_to_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a number in the solution"):
        number_distance("5", "a cat")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("42", 1.0, id="as-long"),
        pytest.param("4", 1.0, id="shorter"),
        pytest.param("4242", 0.5, id="twice"),
        pytest.param("  ", 0.0, id="nothing"),
    ],
)
def test_length_rewards_answers_up_to_the_solution(answer: str, expected: float) -> None:
    assert length(answer, "42") == expected


@pytest.mark.parametrize("text", ["I'm sorry, I cannot help.", "I\u2019m SORRY", "This would be unethical."])
def test_refusals_are_told_by_their_phrases(text: str) -> None:
    assert is_refusal(text)
    assert not is_refusal("There is a sorry-looking dog.")


def test_refusal_rewards_refusing_where_the_solution_does() -> None:
    no = "I'm sorry, I cannot help with that."
    assert [refusal(no, no), refusal("42", "42"), refusal(no, "42"), refusal("42", no)] == [1.0, 1.0, 0.0, 0.0]


def test_format_wants_the_whole_answer_to_fit() -> None:
    score = format_reward(r"\d+")
    assert [score(" 407\n", ""), score("407.", ""), score("It is 407", "")] == [1.0, 0.0, 0.0]
    with pytest.raises(RecipeError, match="no regular expression"):
        format_reward("(")


def test_functions_bear_their_names_and_read_messages() -> None:
    functions = reward_functions(RewardSection(rewards=("exact_match", "format"), pattern=r"\w+"))
    assert [function.__name__ for function in functions] == ["exact_match", "format"]
    completions = [
        [{"role": "assistant", "content": "cat"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}],
    ]
    asked = {"prompts": ["", ""], "completion_ids": [[1], [2]], "trainer_state": None}
    assert functions[0](completions=completions, solution=["cat", "dog"], **asked) == [1.0, 1.0]
    assert functions[1](completions=completions, solution=["cat", "dog"], **asked) == [1.0, 0.0]
    assert answer_text("plain") == "plain"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        pytest.param(RewardSection(rewards=("exact_mach",)), "did you mean `exact_match`", id="unknown"),
        pytest.param(RewardSection(rewards=("format",)), "needs `reward: pattern`", id="no-pattern"),
    ],
)
def test_rewards_that_cannot_be_had_are_refused(section: RewardSection, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reward_functions(section)


def test_weights_and_rewards_of_different_number_are_refused() -> None:
    with pytest.raises(RecipeError, match="a weight for each"):
        RewardSection(rewards=("exact_match",), weights=(1.0, 2.0))
