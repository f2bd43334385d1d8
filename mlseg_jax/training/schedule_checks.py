"""What is odd about a learning-rate schedule that can be computed."""

import ml_collections

from mlseg_jax.training.optimizer import make_schedule


def schedule_remarks(config: ml_collections.ConfigDict) -> list[str]:
    """Sentences that name the keys; none for a schedule without oddities."""
    optimizer, steps = config.optimizer, config.train.steps
    remarks = []
    has_warmup = optimizer.schedule != "one_cycle" and optimizer.warmup_steps > 0
    if has_warmup and optimizer.warmup_steps >= steps:
        remarks.append(
            f"optimizer.warmup_steps is {optimizer.warmup_steps}, but train.steps is "
            f"{steps}, so the learning rate never gets to "
            f"{optimizer.learning_rate:g}; warm up for fewer steps."
        )
    if float(make_schedule(config)(0)) == 0:
        cause = "optimizer.learning_rate is 0"
        if has_warmup and optimizer.learning_rate:
            cause = f"optimizer.warmup_steps={optimizer.warmup_steps} begins at 0"
        remarks.append(
            f"Step 1 has the learning rate 0 and changes no weight, since {cause}."
        )
    return remarks
