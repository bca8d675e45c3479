"""What DeepSpeed is told and given: ZeRO's settings, how a global batch is cut, which parameters learn. Light: a plan
asks it too, where no DeepSpeed is loaded."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from bs_cluster.adapter_format import PARTS
from bs_cluster.config.schema import TrainingSection
from bs_cluster.errors import TrainingError
from bs_cluster.stacks.model import StackModel


def zero_config(training: TrainingSection, ranks: int, parameters: int) -> dict[str, Any]:
    """ZeRO over a learning stack of so many ``parameters``. ``bf16`` stays off: DeepSpeed would cast every floating
    parameter, and a stack learns in fp32 (its products run in the base's compute dtype inside the layer)."""
    zero: dict[str, Any] = {
        "stage": min(training.zero_stage, 2),  # of 3, the frozen base: stacks/sharded_base.py
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_bucket_size": min(parameters, 500_000_000),  # DeepSpeed makes a buffer of it, whatever the model needs
    }
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": training.use_gpu}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": training.max_grad_norm,
        "train_micro_batch_size_per_gpu": training.per_device_batch,
        "gradient_accumulation_steps": passes(training, ranks),
        "steps_per_print": 1_000_000_000,
    }


def passes(training: TrainingSection, ranks: int) -> int:
    """Micro-batches that each rank makes of a global batch, where they do not divide the most that one makes."""
    return math.ceil(math.ceil(training.global_batch / training.per_device_batch) / ranks)


def learning_parameters(tuner: StackModel) -> dict[str, nn.Parameter]:
    """What learns, by ``<site>.<part>``, in the same order on every rank. Raises TrainingError if nothing does."""
    name = tuner.composition.train
    if name is None:
        raise TrainingError(
            f"no stack learns, so there is no parameter to train; of {sorted(tuner.peft_config)} name one: "
            "fire(parents, train=name)"
        )
    sites = zip(tuner.site_names(), tuner.sites, strict=True)
    return {f"{path}.{part}": getattr(site, part)[name] for path, site in sites for part in PARTS}
