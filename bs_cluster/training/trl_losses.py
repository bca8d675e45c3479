"""TRL's DPOTrainer and GRPOTrainer, unmodified, as what they are here: the loss of a batch.

The loop is ours (guard, checkpoints, any number of workers), the objective theirs: ``compute_loss`` is called with our
DeepSpeed engine. Where TRL stood in the way, and what is done about it:

- It takes a PEFT model's adapter for the whole of what was trained (``peft_config["default"]``) and would copy it as
  the reference. Our reference is the same model with the learning stack left out: DPO is told its log-probabilities, as
  TRL's own ``precompute_ref_log_probs`` does, and is given a ``Parent`` without weights so that it loads no second
  base; GRPO is built without a KL term and given its weight and the reference's log-probabilities afterwards.
- It casts what learns in a quantised model to bfloat16. A stack learns in fp32: nothing learns while a trainer is made.
- It patches the base's ``forward`` for a fused head, for good. ``trainer`` puts it back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bs_cluster.config.rounds import DPO, RoundSection
from bs_cluster.inference.stacked import StackedBase


class Parent(nn.Module):
    """The model without the stack that learns, as TRL asks for a reference: it has no weights of its own."""

    def __init__(self, stacked: StackedBase):
        super().__init__()
        self.config = stacked.base.model.config
        self.forward = stacked.base.model.forward


class Losses:
    """One round's TRL trainer. ``of`` is the loss of a batch as TRL computes it; ``figures`` what it logged since it
    was asked last, the same on every rank: its metrics gather."""

    def __init__(self, made: Any, logged: dict[str, float]):
        self._trainer, self._logged = made, logged

    def of(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._trainer.compute_loss(model, dict(inputs))

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return self._trainer.data_collator(list(examples))

    @property
    def processes(self) -> int:
        return self._trainer.accelerator.num_processes

    def figures(self) -> dict[str, float]:
        self._logged.clear()
        self._trainer.log({})
        return {name.removeprefix("eval_"): value for name, value in self._logged.items()}


@contextmanager
def trainer(stacked: StackedBase, entry: RoundSection, seed: int) -> Iterator[Losses]:
    """The trainer of one alignment round, while nothing learns; ``stacked`` fires the parents."""
    model: Any = stacked.base.model
    assert stacked.peft is not None, "the stack that will learn is attached"
    stacked.peft.eval()  # what TRL takes its mode from; the loop sets that of the base
    before = vars(model).get("forward")
    random_state = torch.get_rng_state()  # TRL seeds everything
    with tempfile.TemporaryDirectory(prefix="bs-trl-") as folder:
        try:
            logged: dict[str, float] = {}
            make = _preferences if entry.objective == DPO else _rewards
            yield Losses(make(stacked, entry, seed, folder, logged), logged)
        finally:
            vars(model).pop("forward", None)
            if before is not None:
                model.forward = before
            torch.set_rng_state(random_state)


def _settings(stacked: StackedBase, entry: RoundSection, seed: int, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "seed": seed,
        "beta": entry.beta,
        "per_device_train_batch_size": entry.per_device_batch,
        "use_cpu": stacked.base.model.device.type == "cpu",
        "bf16": False,  # the base computes in its own dtype, a stack in fp32; nothing is to be cast
        "gradient_checkpointing": False,  # the learner's business
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _preferences(stacked: StackedBase, entry: RoundSection, seed: int, folder: str, logged: dict[str, float]) -> Any:
    from datasets import Dataset  # noqa: PLC0415  # seconds to import, as TRL
    from trl.trainer.dpo_config import DPOConfig  # noqa: PLC0415
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: PLC0415

    row = {"prompt": "a", "chosen": "b", "rejected": "c"}  # pairs come with their batch; TRL wants a row of its own
    made = DPOTrainer(
        model=stacked.peft,  # type: ignore[arg-type]
        ref_model=Parent(stacked),  # type: ignore[arg-type]
        args=DPOConfig(**_settings(stacked, entry, seed, folder), loss_type=[entry.loss], max_length=None),
        train_dataset=Dataset.from_list([row]),
        processing_class=stacked.base.tokenizer,
    )
    made.precompute_ref_logps = True  # they come with the batch; asked for, TRL would compute them for its own row
    return _listened(made, logged)


def _rewards(stacked: StackedBase, entry: RoundSection, seed: int, folder: str, logged: dict[str, float]) -> Any:
    from datasets import Dataset  # noqa: PLC0415
    from trl.trainer.grpo_config import GRPOConfig  # noqa: PLC0415
    from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: PLC0415

    settings = _settings(stacked, entry, seed, folder)
    settings["beta"] = 0.0  # with another one, TRL would look for a reference of its own
    settings["per_device_train_batch_size"] = entry.group  # it wants whole groups in a batch that it draws itself
    made = GRPOTrainer(
        model=stacked.peft,  # type: ignore[arg-type]
        reward_funcs=_judged_by_us,
        args=GRPOConfig(
            **settings,
            loss_type="dapo",  # summed over tokens, divided once: by all tokens of the global batch
            num_generations=entry.group,
            max_completion_length=entry.answer_tokens,
            temperature=entry.temperature,
        ),
        train_dataset=Dataset.from_list([{"prompt": ""}]),
        processing_class=stacked.base.tokenizer,
    )
    made.beta = entry.beta
    return _listened(made, logged)


def _judged_by_us(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """TRL wants a reward function to draw answers with; it is never asked to draw any."""
    raise AssertionError("rewards are given with the batch")


def _listened(made: Any, logged: dict[str, float]) -> Any:
    from transformers import PrinterCallback, TrainerCallback  # noqa: PLC0415

    class Logged(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logged.update({name: float(value) for name, value in (logs or {}).items()})

    made.remove_callback(PrinterCallback)
    made.add_callback(Logged())
    return made
