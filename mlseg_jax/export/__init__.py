"""A trained model as files that run elsewhere: StableHLO, ONNX, a small predictor."""
