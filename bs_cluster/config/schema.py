"""The one validated description of a campaign. Every default here is the paper's unless a comment says why not.

Unknown keys are errors everywhere. Cross-field rules live in ``conflicts.py``, so that a user sees all of them at
once (``load.py`` collects and words them).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,39}$")]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)


class BaseSection(Section):
    """The frozen base. ``model`` is ``embedded:gemma3-270m``, ``embedded:smollm2-135m``, a folder or a Hub name."""

    model: str = "embedded:gemma3-270m"
    revision: str | None = None
    quantization: Literal["nf4", "none"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    # Keeps each site's dequantised weight, the same bits, in memory: faster where memory allows, off on small GPUs.
    cache_dequantized: bool = False
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    cache_dir: str = "~/.cache/bs_cluster"


class SourceSection(Section):
    """One place rows come from.

    ``kind``: ``embedded`` (``name`` is one of the built-in domains), ``jsonl`` and ``parquet`` (``path``, globs
    allowed), ``hub`` (``name``, ``config``, ``split``), ``reasoning_gym`` (``tasks``). ``format`` says how a raw
    row becomes prompt and completion (see ``bs_cluster.data.formats``); ``take`` caps the rows read.
    """

    kind: Literal["embedded", "jsonl", "parquet", "hub", "reasoning_gym"]
    name: str | None = None
    path: str | None = None
    config: str | None = None
    split: str = "train"
    format: str = "prompt_completion"
    tasks: tuple[str, ...] = ()
    take: Positive | None = None
    where: dict[str, str] = {}


class DomainSection(Section):
    """A capability to add. ``after`` names domains that must be closed first; ties keep the listed order."""

    name: Name
    sources: Annotated[tuple[SourceSection, ...], Field(min_length=1)]
    after: tuple[str, ...] = ()
    max_rounds: Positive | None = None
    steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    # Words that mark a row as this domain's own; decontamination moves or drops rows by them. Empty: built-in list.
    keywords: tuple[str, ...] = ()


class DataSection(Section):
    max_length: Positive = 512
    max_prompt_length: Positive = 384
    template: Literal["alpaca", "plain", "chat"] = "alpaca"
    train_rows: Positive | None = None  # cap per domain, None keeps all
    validation_rows: Positive = 200
    sweep_rows: Positive = 200
    strip_chat_tokens: bool = True
    decontaminate: bool = True


class StackSection(Section):
    """One MoE-LoRA stack: E experts of rank R, top-k gate, scale alpha/sqrt(R) (rsLoRA)."""

    rank: Positive = 16
    experts: Positive = 4
    top_k: Positive = 2
    alpha: Annotated[float, Field(gt=0)] = 16.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = PROJECTIONS
    # Whole-word path parts never wrapped: the multimodal 12B keeps its vision side as it is.
    exclude_modules: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    router_init_std: Annotated[float, Field(ge=0)] = 0.02


class TrainingSection(Section):
    num_workers: Positive = 1
    use_gpu: bool = True
    cpus_per_worker: Annotated[float, Field(gt=0)] = 4
    threads_per_worker: Positive | None = None
    zero_stage: Literal[0, 1, 2] = 2  # 3 would shard the base too, which scoring and freezing read whole
    offload_optimizer: bool = False
    steps: Positive = 400
    max_rounds: Positive = 3
    min_improvement: Annotated[float, Field(ge=0)] = 0.002
    per_device_batch: Positive = 4
    grad_accum: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    b_lr_ratio: Annotated[float, Field(gt=0)] = 1.0  # learning rate of B over that of the rest (LoRA+)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 40
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    load_balance: Annotated[float, Field(ge=0)] = 0.01
    noise: bool = True
    packing: bool = False
    gradient_checkpointing: bool = False
    eval_every: Positive = 50
    eval_batch_tokens: Positive = 2048
    spike_factor: Annotated[float, Field(gt=1)] = 3.0
    max_spikes: Positive = 3
    context: Literal["cumulative", "isolated"] = "cumulative"
    max_failures: Annotated[int, Field(ge=-1)] = 3
    start_timeout_s: Positive = 600


class NullSpaceSection(Section):
    """Directions a domain claims at each site, and where later domains may not write."""

    enabled: bool = True
    space: Literal["output", "input", "both"] = "output"
    method: Literal["exact", "randomized"] = "exact"
    max_rank: Positive = 64
    energy: Annotated[float, Field(gt=0, le=1)] = 0.99
    samples: Positive = 400  # rows for method: randomized, which works on a sample as the paper does


class TargetsSection(Section):
    kind: Literal["paper", "softmin", "shapley"] = "paper"
    parsimony: Annotated[float, Field(ge=0)] = 0.01
    boost_domain: str | None = "reasoning"
    boost_value: Fraction = 0.5
    prior_blend: Fraction = 0.2
    temperature: Annotated[float, Field(gt=0)] = 0.05


class SweepSection(Section):
    evaluators: Positive = 1
    cpus_per_evaluator: Annotated[float, Field(gt=0)] = 4
    gpus_per_evaluator: Annotated[float, Field(ge=0)] = 1
    threads_per_evaluator: Positive | None = None
    search: Literal["auto", "exhaustive", "beam"] = "auto"
    exhaustive_up_to: Positive = 6
    beam_width: Positive = 4
    batch_tokens: Positive = 4096
    max_retries: Annotated[int, Field(ge=0)] = 3


class RouterSection(Section):
    """The meta-router over domains. ``holdout`` is the share of sweep rows it never trains on; regret is theirs."""

    hidden: Positive = 512
    dropout: Fraction = 0.1
    mid_weight: Fraction = 0.45
    max_prompt_length: Positive = 256
    epochs: Positive = 8
    batch_size: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 8e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    margin_weight: Annotated[float, Field(ge=0)] = 0.05
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.4
    floors: dict[str, Fraction] = {"chat": 0.20}
    gate_threshold: Fraction = 0.12
    targets: TargetsSection = TargetsSection()


class StoreSection(Section):
    """``uri``: a folder or any pyarrow filesystem URI (``s3://…``, ``gs://…``). Every node must reach it."""

    uri: str = "stacks_store"


class RegistrySection(Section):
    """``tracking_uri`` falls back to ``MLFLOW_TRACKING_URI``, then to sqlite beside the store."""

    tracking_uri: str | None = None
    experiment: str = "brainstacks"


class CampaignConfig(Section):
    campaign: Name
    seed: int = 42
    base: BaseSection = BaseSection()
    data: DataSection = DataSection()
    domains: Annotated[tuple[DomainSection, ...], Field(min_length=1)]
    stack: StackSection = StackSection()
    training: TrainingSection = TrainingSection()
    null_space: NullSpaceSection = NullSpaceSection()
    sweep: SweepSection = SweepSection()
    router: RouterSection = RouterSection()
    store: StoreSection = StoreSection()
    registry: RegistrySection = RegistrySection()

    def domain(self, name: str) -> DomainSection:
        return next(domain for domain in self.domains if domain.name == name)
