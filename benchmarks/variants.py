"""What is compared, each on a base of its own: the frozen base, PEFT LoRA, our stacks, the textbook form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks import textbook
from benchmarks.bases import load_model
from bs_cluster.stacks import StackConfig, StackModel
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.stacks.lm_loss import completion_nll
from bs_cluster.stacks.model import SEVEN_PROJECTIONS

RANK, EXPERTS, TOP_K, ALPHA = 16, 4, 2, 16.0
DOMAIN_SIZE = 2  # stacks of one domain


@dataclass
class Variant:
    """A model and its training step: forward and backward of the completion loss over one fixed batch."""

    model: nn.Module
    ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    tuner: StackModel | None = None
    balance: LoadBalance | None = None

    def loss(self) -> torch.Tensor:
        if self.tuner is None:
            return completion_nll(self.model, self.labels_BT, input_ids=self.ids_BT).mean()
        tokens = self.ids_BT.numel()
        noise_PET = torch.randn(len(self.tuner.sites), EXPERTS, tokens, device=self.ids_BT.device)
        with self.tuner.training_step(Training(noise_PET, None, tokens, self.balance)):
            return completion_nll(self.model, self.labels_BT, input_ids=self.ids_BT).mean()

    def step(self) -> None:
        self.loss().backward()
        self.model.zero_grad()

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        return completion_nll(self.model, self.labels_BT, input_ids=self.ids_BT)


def batch(vocabulary: int, rows: int, tokens: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids; the second half of each row is the completion."""
    ids_BT = torch.randint(5, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    labels_BT = ids_BT.clone()
    labels_BT[:, : tokens // 2] = -100
    return ids_BT, labels_BT


def frozen_base(name: str, device: str, rows: int, tokens: int) -> Variant:
    """The base alone; its embeddings ask for a gradient so that backward passes through all of it."""
    model = load_model(name, device)
    model.enable_input_require_grads()
    return Variant(model.train(), *batch(_vocabulary(model), rows, tokens, device))


def peft_lora(name: str, device: str, rows: int, tokens: int, rank: int = RANK * EXPERTS) -> Variant:
    """PEFT's own LoRA on the same sites, in bf16 as TRL trains it on a quantised base."""
    model = load_model(name, device)
    data = batch(_vocabulary(model), rows, tokens, device)
    config = LoraConfig(r=rank, lora_alpha=rank, use_rslora=True, target_modules=SEVEN_PROJECTIONS)
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return Variant(peft.get_base_model().train(), *data)


def our_stacks(name: str, device: str, rows: int, tokens: int, frozen: int, *, learns: bool, cached: bool) -> Variant:
    """``frozen`` stacks, two a domain, and one that learns beside them; ``cached`` keeps the base dequantised."""
    model = load_model(name, device)
    data = batch(_vocabulary(model), rows, tokens, device)
    names = [f"domain{i // DOMAIN_SIZE}_r{i % DOMAIN_SIZE + 1}" for i in range(frozen)]
    peft = None
    for i, stack in enumerate([*names, "learning_r1"] if learns else names):
        domain, _, number = stack.rpartition("_r")
        config = StackConfig(
            rank=RANK,
            experts=EXPERTS,
            top_k=TOP_K,
            alpha=ALPHA,
            target_modules=list(SEVEN_PROJECTIONS),
            domain=domain,
            round=int(number),
            position=i // DOMAIN_SIZE,
        )
        if peft is None:
            peft = get_peft_model(model, config, adapter_name=stack)
        else:
            peft.add_adapter(stack, config)
    if peft is None:
        return Variant(model, *data)
    tuner: StackModel = peft.base_model
    torch.manual_seed(1)
    for site in tuner.sites:
        for stack in names:
            nn.init.normal_(site.stack_B[stack], std=1e-3)
    tuner.fire(names, train="learning_r1" if learns else None)
    if cached:
        tuner.cache_weights()
    peft.train(learns)
    balance = LoadBalance(EXPERTS, TOP_K, 0.01, len(tuner.sites), data[0].device) if learns else None
    return Variant(peft.get_base_model(), *data, tuner, balance)


def textbook_stacks(name: str, device: str, rows: int, tokens: int, frozen: int, *, learns: bool) -> Variant:
    model = load_model(name, device)
    data = batch(_vocabulary(model), rows, tokens, device)
    sizes = {"rank": RANK, "experts": EXPERTS, "top_k": TOP_K, "scale": ALPHA / RANK**0.5}
    textbook.wrap(model, set(SEVEN_PROJECTIONS), frozen + learns, learns, **sizes)
    return Variant(model.train(learns), *data)


def multiply_adds(model: nn.Module) -> tuple[float, float]:
    """Of the products of one token forward: the base's projections and, half the tokens being labelled, its head; and
    one stack's A, expert router and B. No form of this computation on all experts does with fewer."""
    sites = [m for name, m in model.named_modules() if name.rpartition(".")[2] in SEVEN_PROJECTIONS]
    widths = [(int(site.in_features), int(site.out_features)) for site in sites]  # type: ignore[arg-type]
    base = sum(i * o for i, o in widths) + model.get_output_embeddings().weight.numel() / 2  # type: ignore[operator]
    return base, sum(EXPERTS * (RANK + 1) * i + EXPERTS * RANK * o for i, o in widths)


def _vocabulary(model: nn.Module) -> int:
    return model.config.get_text_config().vocab_size
