"""The line of scores that ends a training and an evaluation."""

SCORES = (
    *("mIoU", "mIoU_frequent", "mIoU_common", "mIoU_rare", "oracle_mIoU"),
    *("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "oracle_PQ"),
    *("AP", "AP50", "AP75", "oracle_AP", "mAP"),
    *("pixel_recall_at_k", "pixel_accuracy"),
)


def print_scores(metrics: dict, workdir: str) -> None:
    known = {k: metrics[k] for k in SCORES if isinstance(metrics.get(k), int | float)}
    scores = [f"{k} {value:.3f}" for k, value in known.items()]
    print("  ".join(scores))
    print(f"{workdir}/metrics.json")
