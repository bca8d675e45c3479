"""What a training worker's memory was planned to be and what it is: real rounds on real small bases, on this CPU.

    python -m benchmarks.planned_memory

Each case is a process of its own, or one a rank of which the first is measured: the base loaded as a worker does,
frozen stacks on it, directions to keep out of, and ``learn``, the loop that trains, for three steps with a validation.
Measured is the highest resident set (Linux), less pages of files, above that of the process with its libraries imported
and nothing loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.table import Table, Target
from bs_cluster.quiet import KEEP_FREED_MEMORY, quieten

TOLERANCE = 0.15
# glibc gives back whatever is freed: the resident set is what lives, as on a GPU what is allocated.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_TOP_PAD_": "0"}
GEMMA, SMOLLM, RANDOM = "embedded:gemma3-270m", "embedded:smollm2-135m", "random:llama"
# 201 M weights in projections and few in embeddings: a base whose parts show beside what learns.
WIDE = {"layers": 12, "hidden": 1024, "heads": 8, "kv_heads": 8, "intermediate": 4096, "context": 512}


@dataclass(frozen=True)
class Case:
    base: str
    rank: int = 16
    experts: int = 4
    rows: int = 4
    row_tokens: int = 256
    frozen: int = 0
    cached: bool = False
    zero_stage: int = 2
    passes: int = 1
    checkpointing: bool = False
    noise: bool = True
    directions: int = 0
    checkpoints: bool = False
    ranks: int = 1
    pairs: bool = False  # a dpo round: rows are the two answers of each pair

    def config(self) -> dict[str, Any]:
        """The campaign that it is one worker of."""
        drawn = {"random": WIDE, "quantization": "none"} if self.base == RANDOM else {}
        return {
            "campaign": "planned",
            "base": {"model": self.base, "cache_dequantized": self.cached, **drawn},
            "data": {"max_length": self.row_tokens, "max_prompt_length": self.row_tokens // 2},
            "domains": [{"name": "aa", "sources": [{"kind": "embedded", "name": "chat"}]}],
            "stack": {"rank": self.rank, "experts": self.experts},
            "training": {
                "num_workers": self.ranks,
                "use_gpu": False,
                "zero_stage": self.zero_stage,
                "steps": 3,
                "warmup_steps": 1,
                "eval_every": 2,
                "global_batch": self.rows * self.passes * self.ranks,
                "per_device_batch": self.rows,
                "eval_batch_tokens": self.row_tokens,
                "gradient_checkpointing": self.checkpointing,
                "noise": self.noise,
                "checkpoint_every_s": 0.01 if self.checkpoints else 0,
            },
        }


CASES = (
    Case(SMOLLM),
    Case(SMOLLM, rank=8, experts=2, rows=8, row_tokens=128, cached=True, frozen=2),
    Case(SMOLLM, frozen=9, directions=32, passes=2),
    Case(SMOLLM, rank=32, rows=2, zero_stage=0),
    Case(SMOLLM, rows=8, row_tokens=512, checkpointing=True, zero_stage=1),
    Case(GEMMA),
    Case(GEMMA, rank=8, rows=2, row_tokens=96, frozen=4, cached=True, noise=False),
    Case(GEMMA, rank=32, experts=8, rows=1, row_tokens=512, zero_stage=1, passes=2),
    Case(GEMMA, rows=8, frozen=9, directions=64, checkpoints=True),
    *(Case(RANDOM, rank=8, experts=2, rows=2, row_tokens=64, ranks=ranks, zero_stage=3) for ranks in (1, 2, 3)),
    Case(GEMMA, rows=4, row_tokens=128, frozen=2, noise=False, pairs=True),
)


def planned(case: Case) -> int:
    """Bytes that the plan says."""
    from bs_cluster.config.rounds import DPO, SFT  # noqa: PLC0415  # the measured process loads before it counts
    from bs_cluster.config.schema import CampaignConfig  # noqa: PLC0415
    from bs_cluster.planning.memory import Situation, training_footprint  # noqa: PLC0415
    from bs_cluster.planning.worker import Batch, ShapedWorker  # noqa: PLC0415

    config = CampaignConfig.model_validate(case.config())
    worker = ShapedWorker(config, gpu=False)
    situation = Situation(
        resident=case.frozen,
        firing=case.frozen,
        basis=_directions(case, worker.widths()),
        batch=Batch(case.rows, case.row_tokens, case.rows * (case.row_tokens // 2)),
        scored=Batch(1, case.row_tokens, case.row_tokens // 2),
        objective=DPO if case.pairs else SFT,
    )
    footprint = training_footprint(worker, config.training, case.ranks, situation)
    print(json.dumps({part.name: part.bytes >> 20 for part in (*footprint.parts, *footprint.moments)}), file=sys.stderr)
    return footprint.peak


def measured(case: Case) -> int:
    """Bytes that the resident set rises by."""
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    from bs_cluster.config.schema import CampaignConfig  # noqa: PLC0415
    from bs_cluster.data.encode import EncodedRow  # noqa: PLC0415
    from bs_cluster.inference.stacked import StackedBase, stack_config  # noqa: PLC0415
    from bs_cluster.records import StackId  # noqa: PLC0415
    from bs_cluster.store.filesystem import LocalFiles  # noqa: PLC0415
    from bs_cluster.store.round_area import RoundArea  # noqa: PLC0415
    from bs_cluster.training.checkpoint import Checkpoints  # noqa: PLC0415
    from bs_cluster.training.loop import learn  # noqa: PLC0415
    from bs_cluster.training.objective import NextToken, Objective  # noqa: PLC0415
    from bs_cluster.training.session import Session  # noqa: PLC0415

    if case.pairs:
        from trl.trainer import dpo_trainer  # noqa: F401, PLC0415
    config = CampaignConfig.model_validate(case.config())
    together, rank = dist.FileStore(os.environ["TMPDIR"] + "/ranks", case.ranks), int(os.environ["RANK"])
    dist.init_process_group("gloo", store=together, rank=rank, world_size=case.ranks)
    rest = status("RssAnon")

    stacked = StackedBase.load(config.base, "cpu")
    for parameter in stacked.base.model.parameters():
        if parameter.dtype != torch.uint8:
            parameter.data = parameter.data.clone()  # out of the mapped file, whose pages are the system's to take back
    for number in range(case.frozen):
        name = stacked.begin(stack_config(config.stack, StackId(f"frozen{number}", 1), number), seed=number)
        stacked.fire(stacked.names[:-1], train=name)
        stacked.tuner.freeze(name)
    frozen = stacked.names
    learns = StackId("learning", 1)
    name = stacked.begin(stack_config(config.stack, learns, case.frozen), seed=0)
    widths = {
        path: (site.in_features, site.out_features)
        for path, site in zip(stacked.tuner.site_names(), stacked.tuner.sites, strict=True)
    }
    stacked.tuner.confine(_directions(case, widths, torch.device("cpu")))
    stacked.fire(frozen, train=name)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 256, (4 * case.rows * case.passes * case.ranks, case.row_tokens), generator=draw).tolist()
    rows = [EncodedRow(tuple(row), case.row_tokens // 2, f"r{n}", "aa") for n, row in enumerate(ids)]
    session = Session(config, stacked, None, {}.__getitem__, lambda event: None)  # type: ignore[arg-type]
    area = RoundArea(LocalFiles(Path(os.environ["TMPDIR"])), "round")
    every_s = config.training.checkpoint_every_s
    checkpoints = Checkpoints(area, learns, {}, every_s, session.report)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: loading a base is not training
    if case.pairs:
        _learn_pairs(session, learns, rows, checkpoints)
    else:
        objective: Objective = NextToken(session, config.training, rows, rows[:2], seed=0)
        learn(session, learns, config.training, objective, 20.0, checkpoints)
    return status("VmHWM") - status("RssFile") - rest


def _learn_pairs(session: Any, learns: Any, rows: Sequence[Any], checkpoints: Any) -> None:
    """A dpo round of the rows, two by two; half as many units in a batch as it has rows."""
    from bs_cluster.config.rounds import RoundSection  # noqa: PLC0415
    from bs_cluster.data.aligned import Pair  # noqa: PLC0415
    from bs_cluster.training.loop import learn  # noqa: PLC0415
    from bs_cluster.training.preferences import Preferences  # noqa: PLC0415
    from bs_cluster.training.trl_losses import trainer  # noqa: PLC0415

    training, stacked = session.config.training, session.stacked
    halved = {"global_batch": training.global_batch // 2, "per_device_batch": training.per_device_batch // 2}
    training = training.model_copy(update=halved)
    pairs = [Pair(*two, prompt="") for two in zip(rows[::2], rows[1::2], strict=True)]
    entry = RoundSection(objective="dpo", per_device_batch=training.per_device_batch)
    frozen = stacked.tuner.composition.firing
    stacked.fire(frozen)
    with trainer(stacked, entry, seed=0) as losses:
        stacked.fire(frozen, train=learns.name)
        objective = Preferences(session, entry, training, losses, pairs, pairs[:1], seed=0)
        learn(session, learns, training, objective, 0.7, checkpoints)


def _directions(case: Case, widths: dict[str, tuple[int, int]], device: Any = "meta") -> Any:
    import torch  # noqa: PLC0415

    from bs_cluster.basis import Basis  # noqa: PLC0415

    if not case.directions:
        return Basis()
    sides = {path: torch.empty(wide, case.directions, device=device) for path, (wide, _) in widths.items()}
    for basis in sides.values():
        basis.fill_(0.0)
    return Basis(input=sides)


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def compare(cases: tuple[Case, ...], keep_freed: bool) -> Table:
    rows, worst = [], 0.0
    for case in cases:
        plan, real = planned(case), measured_alone(case, keep_freed)
        error = plan / real - 1
        worst = max(worst, abs(error))
        rows.append((case.base.removeprefix("embedded:"), _told(case), plan / 2**20, real / 2**20, f"{error:+.1%}"))
        print(" ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
    table = Table(
        "Memory of a training worker, planned and measured",
        ("base", "what differs", "planned MiB", "measured MiB", "planned / measured"),
        rows,
        note="Each in a process of its own: the highest resident set of a round, less pages of files, above that of "
        "the imported libraries.",
    )
    table.targets = [Target("largest difference", worst, TOLERANCE)]
    return table


def measured_alone(case: Case, keep_freed: bool = False) -> int:
    """``measured`` in a process of its own, beside one for each other rank."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.planned_memory", "--one", json.dumps(asdict(case))]
        environment = {**os.environ, **(KEEP_FREED_MEMORY if keep_freed else GIVE_BACK)}
        environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": folder, "DS_ACCELERATOR": "cpu"}
        environment |= {"WORLD_SIZE": str(case.ranks), "LOCAL_RANK": "0"}
        others = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**environment, "RANK": str(rank)})
            for rank in range(1, case.ranks)
        ]
        try:
            first = {**environment, "RANK": "0"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=first)
        finally:
            for other in others:
                other.kill()
        return int(done.stdout.splitlines()[-1])


def _told(case: Case) -> str:
    plain = Case(case.base)
    own = [f"{key} {value}" for key, value in asdict(case).items() if value != getattr(plain, key)]
    return ", ".join(own) or "nothing: 4 experts of rank 16, 4 × 256 tokens"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planned_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", type=int, default=range(len(CASES)), help="numbers from 0")
    parser.add_argument("--keep-freed", action="store_true", help="as a campaign's CPU workers keep what they freed")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measured case's own process is told it
    arguments = parser.parse_args()
    quieten()
    if arguments.one:
        print(measured(Case(**json.loads(arguments.one))))
        return
    print(compare(tuple(CASES[number] for number in arguments.cases), arguments.keep_freed).markdown())


if __name__ == "__main__":
    main()
