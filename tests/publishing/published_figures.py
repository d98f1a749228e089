"""Published figures, written down a second time in the order of their sources, so that a slip in one copy shows."""

# Checkpoint -> title of the table -> rows as (benchmark's key, values). The order is that of the source's columns.
SINGLE = (
    "seed_image seed_2 mmbench mmstar mme_share cv_bench_2d cv_bench_3d realworldqa mmmu mathvista scienceqa pope "
    "textvqa_instruct"
)
MULTI = "blink qbench_2 mantis"
PAPER_SINGLE = (
    "seed_image mmbench mmstar mme_share realworldqa mmvet mmmu mathvista textvqa_instruct ocrbench pope "
    "hallusion_mean"
)
PAPER_MULTI = "blink qbench_2 muirbench mantis"
V1_SINGLE = "seed_image mmbench mme_total mme_perception mme_cognition mmstar mmmu mmvet mathvista scienceqa pope ai2d"
DPO = "vlguard hallusion_all pope mmbench seed_image mmstar mme_share"
V1_5_FEW_SHOT = "vqav2 textvqa okvqa coco nocaps textcaps"
V1_FEW_SHOT = "coco nocaps textcaps okvqa textvqa vizwiz vqav2"


def one_column(keys: str, figures: str) -> dict[str, tuple[float, ...]]:
    """Rows of a table with a single column of values."""
    return {key: (float(figure),) for key, figure in zip(keys.split(), figures.split(), strict=True)}


def by_shots(keys: str, *figures: str) -> dict[str, tuple[float, ...]]:
    """Rows of a few-shot table; each text holds one line of the source: one number of shots, all benchmarks."""
    columns = [[float(figure) for figure in line.split()] for line in figures]
    return {key: tuple(column[index] for column in columns) for index, key in enumerate(keys.split())}


PUBLISHED: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "xgen-mm-phi3-mini-base-r-v1": {
        "Few-shot": by_shots(
            V1_FEW_SHOT,
            "81.7 80.2 60.7 26.5 36.0 21.2 48.1",
            "110.5 101.7 84.6 49.2 46.1 38.4 63.9",
            "112.1 104.4 87.7 49.1 46.4 44.3 63.8",
        )
    },
    "xgen-mm-phi3-mini-instruct-r-v1": {
        "Single pictures": one_column(V1_SINGLE, "72.1 74.1 1827 1467 360 44.6 39.8 45.1 39.3 74.2 87.2 75.8")
    },
    "xgen-mm-phi3-mini-base-r-v1.5": {
        "Few-shot": by_shots(
            V1_5_FEW_SHOT,
            "43.1 34.0 28.0 67.2 82.6 69.5",
            "66.3 54.2 48.9 107.6 100.8 89.9",
            "66.9 55.3 50.1 109.8 104.6 94.0",
        )
    },
    "xgen-mm-phi3-mini-instruct-singleimg-r-v1.5": {
        "Single pictures": one_column(SINGLE, "71.8 53.9 76 46.7 63.8 66.2 75.4 61.6 42.8 39.2 85.6 87.0 72.0"),
        "Several pictures": one_column(MULTI, "46.6 52.4 42.4"),
        "Safety and hallucination": one_column("vlguard hallusion_all", "56.6 56.3"),
    },
    "xgen-mm-phi3-mini-instruct-interleave-r-v1.5": {
        "Single pictures": one_column(SINGLE, "72.2 55.5 76.8 48.1 64.4 69.3 72.3 60.5 41.1 39.6 88.3 87.0 71.0"),
        "Several pictures": one_column(MULTI, "49.7 75.1 56.7"),
    },
    "xgen-mm-phi3-mini-instruct-dpo-r-v1.5": {
        "Safety, hallucination and controls": one_column(DPO, "5.2 56.6 86.8 76.4 72.1 47.1 64.4")
    },
    "blip-3-4b": {
        "Single pictures": one_column(PAPER_SINGLE, "71.9 74.7 45.3 62.5 61.0 41.2 42.3 44.5 76.5 66.0 87.9 36.5"),
        "Several pictures, after single-picture tuning": one_column(PAPER_MULTI, "42.9 51.9 35.0 49.3"),
        "Several pictures, after interleaved tuning": one_column(PAPER_MULTI, "47.1 69.6 38.0 56.2"),
    },
    "blip-3-14b": {
        "Single pictures": one_column(PAPER_SINGLE, "73.4 77.5 48.7 68.1 64.4 44.5 47.0 45.4 79.0 71.1 86.0 38.7"),
        "Several pictures, after single-picture tuning": one_column(PAPER_MULTI, "47.1 55.4 49.1 55.3"),
        "Several pictures, after interleaved tuning": one_column(PAPER_MULTI, "53.9 73.4 56.2 61.3"),
    },
}
