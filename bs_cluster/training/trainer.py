"""One stack's optimisation: TRL's SFTTrainer over DeepSpeed, with our loss, noise and load balance.

The micro-batch is the unit everything is counted in: ``step·accum·world + …`` numbers them, the number seeds the
gates' noise, and losses are summed over tokens of the global batch. So world 1 with accumulation 2 and world 2
with accumulation 1 take the same steps.

Shapes: T tokens, N label positions, P sites, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bs_cluster.config.schema import TrainingSection
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.stacks.model import StackModel
from bs_cluster.training.zero import zero_config


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def world_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place; every rank gets the same bits."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


class StackTrainer(SFTTrainer):
    """Trains the stack that ``fire(..., train=name)`` selected on ``model``; parents fire frozen beside it."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset,
        collate: Callable[[list[Any]], dict[str, torch.Tensor]],
        training: TrainingSection,
        *,
        seed: int,
        output_dir: str,
        callbacks: list[TrainerCallback],
    ):
        self.tuner: StackModel = model.base_model  # type: ignore[assignment]
        self.training = training
        self.seed = seed
        self.micro_batches = 0
        self.tokens_in_step = 0.0
        self.step_nll = 0.0
        self.step_labels = 0.0
        self.clipped_norm = math.nan
        self.learning = [p for p in model.parameters() if p.requires_grad]
        in_fp32 = [p.data for p in self.learning]
        super().__init__(
            model=model,
            args=_arguments(training, seed, output_dir),
            data_collator=collate,  # type: ignore[arg-type]
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        # TRL casts what learns on a quantized base to bf16, and patches the base's forward for its own loss.
        for parameter, data in zip(self.learning, in_fp32, strict=True):
            parameter.data = data
        model.get_base_model().__dict__.pop("forward", None)
        first = self.tuner.sites[0]
        self.balance = LoadBalance(
            first.experts, first.top_k, training.load_balance, len(self.tuner.sites), self.learning[0].device
        )

    # --- order of rows: as given, so that every world size sees the same micro-batches ------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(rows)

    # --- what a step is normalised by -------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Label positions and tokens in the global batch: all its micro-batches on all ranks."""
        labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batch_samples)
        tokens = sum(int(batch["token_mask"].sum()) for batch in batch_samples)
        totals = sum_over_ranks(torch.tensor([labels, tokens], dtype=torch.float64, device=device))
        self.tokens_in_step = float(totals[1])
        return totals[0]

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[override]
        token_mask_T = inputs.pop("token_mask").to(self.args.device).flatten()
        noise_PET = self._noise(token_mask_T.shape[0]) if self.training.noise else None
        # Gradients are averaged over ranks, losses here are sums over the global batch: hence the world size.
        step = Training(noise_PET, token_mask_T, self.tokens_in_step / world_size(), self.balance)
        with self.tuner.training_step(step):
            return super().training_step(model, inputs, num_items_in_batch)

    def _noise(self, tokens: int) -> torch.Tensor:
        number = self.micro_batches * world_size() + world_rank()
        self.micro_batches += 1
        generator = torch.Generator(device=self.args.device)
        generator.manual_seed((self.seed << 20) + number)
        shape = (len(self.tuner.sites), self.tuner.sites[0].experts, tokens)
        return torch.randn(shape, generator=generator, device=self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[override]
        """The task loss alone; the load-balance gradient joins inside the sites (``stacks/balance.py``)."""
        labels = inputs.pop("labels")
        total = model(**inputs, completion_labels=labels).sum()
        self.step_nll += float(total.detach())
        self.step_labels += float((labels[:, 1:] != -100).sum())
        return total / num_items_in_batch.to(total.dtype) * world_size()  # type: ignore[union-attr]

    # --- optimiser --------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:  # type: ignore[override]
        """AdamW; B may have its own rate (LoRA+, arXiv 2402.12354)."""
        lr = self.training.learning_rate
        is_b = {id(parameter) for site in self.tuner.sites for parameter in site.stack_B.values()}
        groups = [
            {"params": [p for p in self.learning if id(p) not in is_b], "lr": lr},
            {"params": [p for p in self.learning if id(p) in is_b], "lr": lr * self.training.b_lr_ratio},
        ]
        fused = self.args.device.type == "cuda"
        self.adam = torch.optim.AdamW(groups, weight_decay=self.training.weight_decay, fused=fused)
        if self.training.zero_stage == 0:  # without ZeRO, DeepSpeed tells no gradient norm: take the clipped one
            self.adam.register_step_pre_hook(self._note_gradient_norm)
        self.optimizer = self.adam
        return self.optimizer

    def _note_gradient_norm(self, *_: Any) -> None:
        self.clipped_norm = float(nn.utils.get_total_norm([p.grad for p in self.learning if p.grad is not None]))

    # --- bookkeeping of a finished step -----------------------------------------------------------------------

    def finish_step(self) -> dict[str, float]:
        """What the step just made measured: task loss (nats per completion token), load balance, gradient, rate."""
        sums = torch.tensor([self.step_nll, self.step_labels], dtype=torch.float64, device=self.args.device)
        nll, labels = sum_over_ranks(sums).tolist()
        self.step_nll = self.step_labels = 0.0
        balance, imbalance = self.balance.finish_step(sum_over_ranks(self.balance.totals()))
        engine: Any = self.model_wrapped
        norm = engine.get_global_grad_norm() if self.training.zero_stage else self.clipped_norm
        return {
            "loss": nll / max(labels, 1.0),
            "load_balance": balance,
            "imbalance": imbalance,
            "grad_norm": math.nan if norm is None else float(norm),
            "learning_rate": float(self._get_learning_rate()),
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: the round's own callback records, TRL's metrics would need full logits."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card: the store's manifest describes a stack."""


def _arguments(training: TrainingSection, seed: int, output_dir: str) -> SFTConfig:
    return SFTConfig(
        output_dir=output_dir,
        max_steps=training.steps,
        per_device_train_batch_size=training.per_device_batch,
        gradient_accumulation_steps=training.grad_accum,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_steps,
        lr_scheduler_type=training.scheduler,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        use_cpu=not training.use_gpu,
        bf16=False,
        seed=seed,
        data_seed=seed,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0,
        max_length=None,
        deepspeed=zero_config(training),
        average_tokens_across_devices=True,
    )
