"""Our metrics answer as the programs they follow did; see `tests/evaluation/vectors/README.md`."""

from typing import Any

import pytest

from xgen_mm.evaluation import metrics

from .vectors import Case, load_cases

FRACTION, PERCENT = 1e-6, 1e-4


def every(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=str(case["id"])) for case in load_cases(name)])


@every("anls")
def test_anls_matches_both_harnesses(case: Case) -> None:
    score = metrics.anls(case["prediction"], case["answers"])
    assert score == pytest.approx(case["expected"]["lmms_eval"], abs=FRACTION)
    assert score == pytest.approx(case["expected"]["vlmevalkit"], abs=FRACTION)


@every("box_iou")
def test_box_scores_match_lmms_eval(case: Case) -> None:
    first, second, expected = case["box_a"], case["box_b"], case["expected"]
    assert metrics.box_iou(first, second) == pytest.approx(expected["iou"], abs=FRACTION)
    assert metrics.box_is_right(first, second) is expected["acc_at_0_5"]
    assert metrics.center_is_inside(second, first) is expected["center_inside_a"]


@every("box_parse")
def test_parsed_boxes_match_lmms_eval(case: Case) -> None:
    assert [list(box) for box in metrics.parse_boxes(case["text"])] == case["expected"]


@every("cider")
def test_cider_matches_pycocoevalcap(case: Case) -> None:
    scores = metrics.cider_scores(case["predictions"], case["references"])
    assert scores == pytest.approx(case["expected"]["cider_per_image"], rel=1e-9)
    assert metrics.cider(case["predictions"], case["references"]) == pytest.approx(case["expected"]["cider"], rel=1e-9)


@every("cider")
def test_cider_of_prepared_tokens_matches_pycocoevalcap(case: Case) -> None:
    tokens = case["tokenised"]
    scores = metrics.cider_scores(tokens["preds"], tokens["refs"], tokenise=str.split)
    assert scores == pytest.approx(case["expected"]["cider_per_image"], rel=1e-9)


@every("ptb_tokenise")
def test_caption_tokens_match_the_java_tokeniser(case: Case) -> None:
    assert " ".join(metrics.tokenise_caption(case["text"])) == case["expected"]


@every("dpg_prompt_score")
def test_dpg_score_matches_ella(case: Case) -> None:
    score = metrics.dpg_prompt_score(case["dependency"], case["answers_per_image"])
    assert score == pytest.approx(case["expected"]["score"], abs=FRACTION)


@every("geneval_summary")
def test_geneval_summary_matches_the_benchmark(case: Case) -> None:
    summary = metrics.geneval_summary(case["rows"])
    assert round(summary.overall, 5) == case["expected"]["overall"]
    assert summary.report() == case["expected"]["report"]


@every("hallusion")
def test_hallusion_percentages_match_vlmevalkit(case: Case) -> None:
    found = metrics.hallusion(case["rows"])
    expected = case["expected"]["vlmevalkit"]
    assert found.keys() == expected.keys()
    for split, values in expected.items():
        assert dict(found[split]) == pytest.approx(values, abs=PERCENT)
    mean = sum(found["Overall"].values()) / 3
    assert mean == pytest.approx(case["expected"]["mean_of_three"], abs=PERCENT)


@every("mcq_extract")
def test_chosen_options_match_both_harnesses(case: Case) -> None:
    reply, choices, expected = case["prediction"], case["choices"], case["expected"]
    assert metrics.extract_choice(reply, choices) == expected["vlmevalkit_can_infer"]
    assert metrics.extract_choice_lmms_eval(reply, list(choices)) == expected["lmms_eval_mcq"]
    assert metrics.extract_choice_blink(reply, "".join(choices)) == expected["lmms_eval_blink"]
    assert metrics.extract_choice_cv_bench(reply) == expected["lmms_eval_cv_bench"]
    assert metrics.extract_first_character(reply) == expected["lmms_eval_seed_first_char"]
    accepted = metrics.extract_choice_scienceqa(reply, choices)
    assert [accepted] * (accepted is not None) == expected["lmms_eval_scienceqa_accepts"]


@every("mmbench_circular")
def test_circular_hits_match_both_harnesses(case: Case) -> None:
    expected = case["expected"]["vlmevalkit_exact_matching"]
    hits = metrics.mmbench_circular(case["rows"])
    assert {str(index): int(hit) for index, hit in hits.items()} == expected["hits"]
    assert sum(hits.values()) / len(hits) == pytest.approx(expected["accuracy"], abs=FRACTION)
    static = metrics.mmbench_circular(case["rows"], harness="lmms_eval")
    assert sum(static.values()) / len(static) == pytest.approx(
        case["expected"]["lmms_eval_static_accuracy"], abs=FRACTION
    )


@every("mme")
def test_mme_points_match_both_harnesses(case: Case) -> None:
    expected = dict(case["expected"]["vlmevalkit"])
    found = metrics.mme(case["rows"])
    assert found["cognition"] == pytest.approx(expected.pop("reasoning"), abs=PERCENT)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=PERCENT)
    assert found["normalised"] == pytest.approx(case["expected"]["mme_norm_paper"], abs=PERCENT)
    lmms_eval = metrics.mme(case["rows"], harness="lmms_eval")
    both = {name: lmms_eval[name] for name in ("perception", "cognition")}
    assert both == pytest.approx(case["expected"]["lmms_eval"], abs=PERCENT)


@pytest.mark.parametrize("case", [case for case in load_cases("mmmu_parse") if case["question_type"] != "open"])
def test_mmmu_choices_match_lmms_eval(case: Case) -> None:
    options = metrics.letter_options(case["options"])
    letter = metrics.parse_mmmu_choice(case["prediction"], options, seed="0")
    assert letter == case["expected"]["parsed"]
    assert (letter == case["answer"]) is case["expected"]["correct"]


@pytest.mark.parametrize("case", [case for case in load_cases("mmmu_parse") if case["question_type"] == "open"])
def test_mmmu_open_answers_match_lmms_eval(case: Case) -> None:
    candidates = metrics.parse_mmmu_open(case["prediction"])
    assert set(candidates) == set(case["expected"]["parsed"])
    assert len(candidates) == len(case["expected"]["parsed"])
    assert metrics.mmmu_open_is_right(candidates, case["answer"]) is case["expected"]["correct"]


@every("mmstar_average")
def test_mmstar_means_match_both_harnesses(case: Case) -> None:
    found = metrics.mmstar(case["rows"])
    assert found["lmms_eval"] == pytest.approx(case["expected"]["lmms_eval_average"], abs=FRACTION)
    assert found["vlmevalkit"] == pytest.approx(case["expected"]["vlmevalkit_overall"], abs=FRACTION)


@every("ocrbench")
@pytest.mark.parametrize("harness", ["lmms_eval", "vlmevalkit"])
def test_ocrbench_matches_both_harnesses(case: Case, harness: Any) -> None:
    found = metrics.ocrbench_is_right(
        case["prediction"], case["answers"], question_type=case["question_type"], harness=harness
    )
    assert int(found) == case["expected"][harness]


@every("openflamingo_postprocess")
def test_cut_replies_match_openflamingo(case: Case) -> None:
    cut = {"vqa": metrics.cut_vqa_answer, "caption": metrics.cut_caption}[case["kind"]]
    assert cut(case["text"]) == case["expected"]


@every("pope")
def test_pope_matches_both_harnesses(case: Case) -> None:
    expected = case["expected"]["vlmevalkit_percent"]
    found = metrics.pope(case["rows"])
    assert found.keys() == expected.keys()
    for split, values in expected.items():
        ours = {"Overall": found[split]["f1"], "acc": found[split]["accuracy"]}
        ours |= {"precision": found[split]["precision"], "recall": found[split]["recall"]}
        assert ours == pytest.approx(values, abs=PERCENT)
    theirs = dict(case["expected"]["lmms_eval_fraction"])
    del theirs["yes_ratio"]
    strict = metrics.pope_lmms_eval(case["rows"])
    assert {name: strict[name] / 100 for name in theirs} == pytest.approx(theirs, abs=FRACTION)


@every("relaxed_accuracy")
@pytest.mark.parametrize("harness", ["lmms_eval", "vlmevalkit"])
def test_relaxed_accuracy_matches_both_harnesses(case: Case, harness: Any) -> None:
    found = metrics.relaxed_accuracy(case["prediction"], case["target"], harness=harness)
    assert found is case["expected"][harness]


@every("vlguard_refusal")
def test_refusals_match_vlguard(case: Case) -> None:
    assert metrics.attack_succeeds(case["response"]) is case["expected_attack_success"]


def test_attack_success_rate_matches_vlguard() -> None:
    replies = [case["response"] for case in load_cases("vlguard_refusal")]
    assert round(metrics.attack_success_rate(replies), 2) == 41.67


@every("vqa_accuracy")
@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ("official", "official_vqa"),
        ("openflamingo", "openflamingo"),
        ("lmms_vqav2", "lmms_eval_vqav2"),
        ("evalai", "lmms_eval_textvqa_okvqa_vizwiz"),
        ("vlmevalkit", "vlmevalkit"),
    ],
)
def test_vqa_accuracy_matches_every_program(case: Case, rule: Any, key: str) -> None:
    found = metrics.vqa_accuracy(case["prediction"], case["answers"], rule=rule)
    assert found == pytest.approx(case["expected"][key], abs=FRACTION)


@every("vqa_normalise")
@pytest.mark.parametrize(
    ("rule", "key"),
    [("official", "official_vqa"), ("evalai", "lmms_eval_evalai"), ("vlmevalkit", "vlmevalkit")],
)
def test_normalised_answers_match_every_program(case: Case, rule: Any, key: str) -> None:
    assert metrics.normalise_vqa_answer(case["text"], rule=rule) == case["expected"][key]


@every("yes_no_extract")
def test_yes_and_no_match_both_harnesses(case: Case) -> None:
    text, expected = case["text"], case["expected"]
    word = {"Yes": "yes", "No": "no", "Unknown": "other"}[expected["vlmevalkit"]]
    assert metrics.extract_yes_no(text) == word
    assert metrics.extract_yes_no_prefix(text) == expected["lmms_eval_mme"]
    bare = expected["lmms_eval_pope_counts_as"].replace("neither", "other")
    assert metrics.extract_yes_no_exact(text) == bare
