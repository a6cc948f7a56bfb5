"""The job of job.yaml from Python: quantize the MLPerf Tiny keyword-spotting DS-CNN and keep 99 % of its accuracy."""

from pathlib import Path

import numpy as np

from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, fit

HERE = Path(__file__).parent


def features(codes: np.ndarray) -> np.ndarray:
    """Return the float32 features [n, 1, 49, 10] for int8 MFCC codes [n, 49, 10]."""
    return ((codes.astype(np.float32) - 83) * np.float32(0.5847029089927673))[:, None]


def main() -> None:
    data = np.load(HERE / "data" / "kws_mfcc.npz", allow_pickle=False)
    result = fit(
        HERE / "model" / "dscnn_kws.onnx",
        PostTrainingQuantConfig(
            calibration_sampling_size=108,
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01, criterion="relative"),
            tuning_criterion=TuningCriterion(objective="size"),
            performance=PerformanceConfig(batch_size=1),
        ),
        calib_dataloader=features(data["x_calib"]),
        eval_dataloader=(features(data["x_val"]), data["y_val"]),
        eval_metric="topk",
    )
    print("saved:", result.save("keyword_spotting_int8"))


if __name__ == "__main__":
    main()
