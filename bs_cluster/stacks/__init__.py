"""MoE-LoRA stacks as a PEFT method. Importing this package makes the method known to PEFT.

Needs nothing but torch, PEFT and safetensors, so that it runs on a bare GPU machine.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from bs_cluster.stacks.config import EXPORTED, METHOD, PREFIX, StackConfig
from bs_cluster.stacks.layer import StackLinear
from bs_cluster.stacks.model import StackModel

PEFT_TYPE_TO_CONFIG_MAPPING[METHOD] = StackConfig  # type: ignore[index]
PEFT_TYPE_TO_CONFIG_MAPPING[EXPORTED] = StackConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[METHOD] = StackModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[METHOD] = PREFIX  # type: ignore[index]

__all__ = ["METHOD", "StackConfig", "StackLinear", "StackModel"]
