"""A run on disk: its folder, its checkpoints, its log.

``--workdir`` holds, where the command that writes it has run::

    config.json               the resolved configuration (`train`, `convert`)
    dataset.json              names of the classes and of the data set
    checkpoints/STEP/         the state, by Orbax: step, params, stats (of batch norms),
                              opt_state, ema; of the two newest and the best steps
    checkpoints/scores.json   how good the evaluated steps are
    metrics.jsonl, events/    the log, a line a step; the same for TensorBoard
    metrics.json              the metrics of the last evaluation
    evaluation.json, evaluation_examples.npz
                              the same by class and rank, and pictures, for `report`
    report.html               the page that `report` writes
    training_presence.npz     which classes each training example holds
    hangs/                    what threads did when nothing moved any more, by process
    failures/                 how the last attempt of each process ended (XLA's errors)
    training.unfinished       there until a training is at its end and evaluated; empty
    training.lock             locked while a training is under way; empty
    model_card.json           where converted weights are from (`convert`)
"""
