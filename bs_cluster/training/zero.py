"""DeepSpeed's configuration for one stack."""

from __future__ import annotations

from typing import Any

from bs_cluster.config.schema import TrainingSection


def zero_config(training: TrainingSection) -> dict[str, Any]:
    """ZeRO over the learning stack. ``bf16`` stays off: DeepSpeed would cast every floating parameter, and a stack
    learns in fp32 (its products run in the base's compute dtype inside the layer). ``auto`` values are filled by
    the trainer from its arguments, so that nothing is said twice.
    """
    zero: dict[str, Any] = {"stage": training.zero_stage, "contiguous_gradients": True, "overlap_comm": False}
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": training.use_gpu}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "steps_per_print": 1_000_000_000,
    }
