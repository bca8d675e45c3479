"""A training worker and an evaluator as shapes: what lies on each, and what a pass adds, by running the real passes.

Shapes: T tokens, P sites, E experts, I in_features, O out_features, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn.modules import Params4bit

from bs_cluster.adapter_format import PARTS
from bs_cluster.base.load import COMPUTE_DTYPES
from bs_cluster.basis import Basis
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.decoder import decoder_and_head
from bs_cluster.inference.stacked import StackedBase, stack_config
from bs_cluster.planning.live_bytes import LiveBytes, held_bytes
from bs_cluster.planning.skeleton import packed_shape, skeleton, weights_of
from bs_cluster.records import StackId
from bs_cluster.stacks import StackModel
from bs_cluster.stacks.balance import LoadBalance
from bs_cluster.stacks.composition import Training
from bs_cluster.stacks.lm_loss import CHUNK_ELEMENTS, HeadLoss
from bs_cluster.stacks.sharded_base import BUFFERS, projections, row_bytes
from bs_cluster.training.sharding import learning_parameters

META = torch.device("meta")
CUTS = (2, 3)  # layers


@dataclass(frozen=True)
class Batch:
    """``rows`` of ``row_tokens`` each, end to end or padded, with so many ``labels`` in all."""

    rows: int
    row_tokens: int
    labels: int

    @property
    def tokens(self) -> int:
        return self.rows * self.row_tokens


@dataclass(frozen=True)
class Pass:
    """``peak`` bytes above what was there before, and the floating point operations of its products."""

    peak: int
    flops: int


class ShapedWorker:
    """The base of a config with one stack that learns and any number of frozen ones beside it.

    Passes run on models of the last few ``layers`` alone: what a pass holds and multiplies grows by the same with every
    layer, and one of all layers would take as many times as long.
    """

    def __init__(self, config: CampaignConfig, gpu: bool, layers: int | None = None):
        self.config, self.gpu = config, gpu
        self._found: dict[Any, Pass] = {}
        self.stacked = StackedBase(skeleton(config.base, layers), config.base.cache_dequantized)
        self.layers = self.stacked.base.model.config.get_text_config().num_hidden_layers
        cut = layers is None and self.layers > CUTS[-1]
        self.cuts = [ShapedWorker(config, gpu, few) for few in CUTS if cut]
        self.base_bytes = held_bytes(weights_of(self.stacked.base.model))
        stack = config.stack
        self._projections = projections(self.stacked.base.model, stack.target_modules, stack.exclude_modules)
        self.base_parameters = _parameters(self.stacked.base.model)
        self.learns = self.stacked.begin(stack_config(config.stack, StackId("learning", 1), 0), seed=0)
        self.tuner: StackModel = self.stacked.tuner
        self.set_stacks(0, 0)
        # The loss cuts its chunks by device; here meta tensors stand for those of this one.
        CHUNK_ELEMENTS["meta"] = CHUNK_ELEMENTS["cuda" if gpu else "cpu"]

    def use(self, config: CampaignConfig) -> None:
        """Another config with the same base and the same shape of stack."""
        for cut in self.cuts:
            cut.use(config)
        self.config = config
        if config.base.cache_dequantized:
            self.tuner.cache_weights()
        else:
            for site in self.tuner.sites:
                site.weight_cache = None

    # --- what lies there --------------------------------------------------------------------------------------

    @property
    def stack_parameters(self) -> int:
        """Of the learning stack, as of any other."""
        self.tuner.fire([], train=self.learns)
        return sum(parameter.numel() for parameter in learning_parameters(self.tuner).values())

    def base_share(self, ranks: int) -> tuple[int, int]:
        """Bytes that each of so many ranks keeps of a base in parts, what is not shared out included, and those of the
        buffers that layers are gathered into."""
        rows = row_bytes(self._projections, ranks)
        apart = held_bytes([one.weight for layer in self._projections for one in layer])
        return self.base_bytes - apart + sum(rows) // ranks, BUFFERS * max(rows)

    def shared_out(self, ranks: int) -> int:
        """Bytes of a base in parts that a rank gathers for a forward, its own among them."""
        return sum(row_bytes(self._projections, ranks))

    @property
    def cache_bytes(self) -> int:
        return held_bytes([site.weight_cache for site in self.tuner.sites])

    @property
    def packed_bytes(self) -> int:
        """The blocks of all resident stacks, and the room in them for the one that learns."""
        return held_bytes([(site.packed.read_XI, site.packed.write_MO) for site in self.tuner.sites if site.packed])

    @property
    def noise_bytes(self) -> int:
        """Of a stack's gate noise, which is no part of the block: a frozen stack keeps it in fp32."""
        return held_bytes([site.stack_noise[self.learns] for site in self.tuner.sites])

    @property
    def words(self) -> int:
        """Of the vocabulary."""
        return decoder_and_head(self.tuner.model)[1].weight.shape[0]

    def widths(self) -> dict[str, tuple[int, int]]:
        """By site path: what it reads (I) and what it writes (O)."""
        sites = zip(self.tuner.site_names(), self.tuner.sites, strict=True)
        return {path: (site.in_features, site.out_features) for path, site in sites}

    def set_stacks(self, resident: int, firing: int, learns: bool = True) -> None:
        """So many frozen stacks are loaded, the last ``firing`` of which are on; their blocks are made, they are not:
        what a pass costs hangs on the block alone."""
        for cut in self.cuts:
            cut.set_stacks(resident, firing, learns)
        state = self.tuner.composition
        names = tuple(f"frozen_r{number}" for number in range(1, resident + 1))
        state.resident, state.firing = names, names[resident - firing :]
        state.train = self.learns if learns else None
        state.weigh(state.firing, None)
        dtype = COMPUTE_DTYPES[self.config.base.compute_dtype]
        for site in self.tuner.sites:
            site.packed, site.chosen = site.allocate(names, learns, dtype), None

    def confine(self, basis: Basis) -> int:
        """The learning stack keeps out of these directions; their bytes."""
        for cut in self.cuts:
            own = set(cut.tuner.site_names())
            sides = ({path: v for path, v in side.items() if path in own} for side in (basis.output, basis.input))
            cut.confine(Basis(*sides))
        self.tuner.confine(basis)
        return held_bytes([(site.basis_OK, site.basis_IK) for site in self.tuner.sites])

    # --- what passes add --------------------------------------------------------------------------------------

    def training_pass(self, batch: Batch, checkpointing: bool, keep_gradients: bool, packed: bool = True) -> Pass:
        """Forward and backward of one micro-batch, its rows end to end or padded, as those of alignment are, which has
        no noise. Unless ``keep_gradients``, each gradient goes as it is made, as into ZeRO's own buffer."""
        if self.cuts:
            ways = {"batch": batch, "checkpointing": checkpointing, "keep_gradients": keep_gradients, "packed": packed}
            return self._whole(ShapedWorker.training_pass, **ways)
        model: Any = self.tuner.model
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        first, sites = self.tuner.sites[0], len(self.tuner.sites)
        parameters = [getattr(site, part)[self.learns] for site in self.tuner.sites for part in PARTS]
        with ExitStack() as until:
            for parameter in parameters if not keep_gradients else ():
                until.callback(parameter.register_post_accumulate_grad_hook(_drop_gradient).remove)
            balance = LoadBalance(first.experts, first.top_k, 0.0, sites, META)
            with LiveBytes() as live:
                noise_PET = None
                if self.config.training.noise and packed:
                    noise_PET = torch.empty(sites, first.experts, batch.tokens, device=META)
                with self.tuner.training_step(Training(noise_PET, None, batch.tokens, balance)):
                    self._loss(batch, packed).sum().backward()
        if checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()
        for parameter in parameters:
            parameter.grad = None
        return Pass(live.peak, live.flops)

    @torch.no_grad()
    def scoring_pass(self, batch: Batch) -> Pass:
        """Forward of one padded batch, with its loss."""
        if self.cuts:
            return self._whole(ShapedWorker.scoring_pass, batch=batch)
        with LiveBytes() as live:
            self._loss(batch, packed=False)
        return Pass(live.peak, live.flops)

    @torch.no_grad()
    def encoding_pass(self, batch: Batch) -> Pass:
        """Forward of one batch of prompts whose hidden states are all wanted, as the meta-router's are."""
        if self.cuts:
            return self._whole(ShapedWorker.encoding_pass, batch=batch)
        firing = self.tuner.composition.active
        self.tuner.composition.active = ()
        with LiveBytes() as live:
            self._decode(batch, packed=False, output_hidden_states=True)
        self.tuner.composition.active = firing
        return Pass(live.peak, live.flops)

    @torch.no_grad()
    def reading_pass(self, batch: Batch) -> Pass:
        """Forward of one padded batch of prompts that are answered."""
        if self.cuts:
            return self._whole(ShapedWorker.reading_pass, batch=batch)
        with LiveBytes() as live:
            self._decode(batch, packed=False)
        return Pass(live.peak, live.flops)

    def cache_of_answers(self, rows: int, tokens: int) -> tuple[int, int]:
        """Bytes of the keys and values of so many rows of so many tokens, and of the layer's that has the most; a layer
        with a sliding window keeps no more than that."""
        text: Any = self.tuner.model.config.get_text_config()  # type: ignore[union-attr]
        kinds = getattr(text, "layer_types", None) or [""] * self.layers
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        width = 2 * text.num_key_value_heads * head * COMPUTE_DTYPES[self.config.base.compute_dtype].itemsize
        kept = [min(tokens, text.sliding_window) if kind == "sliding_attention" else tokens for kind in kinds]
        return rows * width * sum(kept), rows * width * max(kept)

    def _whole(self, run: Callable[..., Pass], **ways: Any) -> Pass:
        """What all layers take, by what ``CUTS`` take; a pass that was run before, of the same, is remembered."""
        state, base = self.tuner.composition, self.config.base
        held = sum(held_bytes([site.basis_OK, site.basis_IK]) for site in self.tuner.sites)
        settings = (base.cache_dequantized, base.attention, self.config.training.noise)
        key = (run, *ways.values(), state.resident, state.firing, state.train, held, settings)
        if key in self._found:
            return self._found[key]
        found = [run(cut, **ways) for cut in self.cuts]
        (fewer, more), layers = CUTS, self.layers

        def line(first: int, second: int) -> int:
            return second + (second - first) * (layers - more) // (more - fewer)

        whole = Pass(line(found[0].peak, found[1].peak), line(found[0].flops, found[1].flops))
        self._found[key] = whole
        return whole

    def _loss(self, batch: Batch, packed: bool) -> torch.Tensor:
        """``stacks/lm_loss.py`` takes labelled positions out by a mask, whose count the meta device cannot know."""
        _, head, softcap = decoder_and_head(self.tuner.model)
        hidden_NH = self._decode(batch, packed).last_hidden_state.flatten(0, 1)[: batch.labels].clone()
        labels_N = torch.empty(batch.labels, dtype=torch.long, device=META)
        return HeadLoss.apply(hidden_NH, head.weight, labels_N, softcap)  # type: ignore[return-value]

    def _decode(self, batch: Batch, packed: bool, **more: Any) -> Any:
        decoder, _, _ = decoder_and_head(self.tuner.model)
        shape = (1, batch.tokens) if packed else (batch.rows, batch.row_tokens)
        ids_BT = torch.empty(shape, dtype=torch.long, device=META)
        places_BT = torch.empty(shape, dtype=torch.long, device=META)
        mask = self._masks(*shape) if batch.rows > 1 else None
        return decoder(input_ids=ids_BT, attention_mask=mask, position_ids=places_BT, use_cache=False, **more)

    def _masks(self, rows: int, tokens: int) -> torch.Tensor | Mapping[str, torch.Tensor] | None:
        """What transformers makes of rows that must not attend to each other: a mask for each kind of layer. It looks
        at their data to do so, and there is none here."""
        if self.config.base.attention == "flash_attention_2":
            return None
        kinds = getattr(self.tuner.model.config.get_text_config(), "layer_types", None)  # type: ignore[union-attr]

        def mask() -> torch.Tensor:
            return torch.empty(rows, 1, tokens, tokens, dtype=torch.bool, device=META)

        return {kind: mask() for kind in dict.fromkeys(kinds)} if kinds else mask()


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _parameters(model: torch.nn.Module) -> int:
    """Numbers that the base has; a packed weight holds two a byte."""
    return sum(
        packed_shape(parameter).numel() if isinstance(parameter, Params4bit) else parameter.numel()
        for parameter in model.parameters()
    )
