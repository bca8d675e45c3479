"""An export from beginning to end: read, measure, write, load what was written, measure that, say so in the folder."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from bs_cluster import __version__
from bs_cluster.export.card import card
from bs_cluster.export.forms import fixed_factors, load_again, write_lora, write_merged, write_stack
from bs_cluster.export.measure import compared, gate_rows, held_out, mean_gates, row_losses
from bs_cluster.export.record import CARD, EXPORT_RECORD, LORA, STACK, Exported
from bs_cluster.export.source import Source, base_name
from bs_cluster.inference.probe import environment
from bs_cluster.inference.stacked import StackedBase


def export(source: Source, folder: Path, device: str, say: Callable[[str], None]) -> Exported:
    """Writes the wanted form into ``folder``, which appears whole or not at all. Raises as ``StackedBase.attach`` does
    where the base is not the one that the stacks were trained on."""
    wanted, config = source.wanted, source.config
    name, batch_tokens = base_name(config.base), config.training.eval_batch_tokens
    rows = {domain: held_out(source, domain) for domain in wanted.gates}
    off = dict.fromkeys(wanted.gates, 0.0)

    say(f"{config.base.model} is loaded and digested")
    stacked = StackedBase.load(config.base, device)
    for manifest in source.manifests:
        stacked.attach(manifest, source.store)
    stacked.fire(stacked.names)
    say(f"the base and the stacks on {sum(map(len, rows.values()))} held-out rows")
    base = {domain: row_losses(stacked, rows[domain], off, batch_tokens) for domain in rows}
    stacks = {domain: row_losses(stacked, rows[domain], wanted.gates, batch_tokens) for domain in rows}

    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        rank, taught = None, {}
        if wanted.form == STACK:
            write_stack(staging, source, stacked.base.model, name)
        else:
            taught = {domain: gate_rows(source, domain) for domain in wanted.gates}
            say(f"mean gates over {sum(map(len, taught.values()))} training rows")
            factors = fixed_factors(source, stacked.tuner.site_names(), mean_gates(stacked, source, taught))
            if wanted.form == LORA:
                rank = write_lora(staging, factors, stacked.base.model, name)
            else:
                write_merged(staging, factors, stacked)
        del stacked
        gc.collect()  # one model at a time
        say(f"what was written, loaded again, on the same rows ({wanted.form})")
        again = load_again(staging, wanted.form, config.base, device)
        exported = {domain: row_losses(again, rows[domain], wanted.gates, batch_tokens) for domain in rows}
        found = Exported(
            form=wanted.form,
            campaign=source.store.campaign,
            bundle=source.bundle.number,
            manifest=source.digest,
            gates=wanted.gates,
            rank=rank,
            gate_rows={domain: len(own) for domain, own in taught.items()},
            base=source.bundle.base,
            revision=name.revision,
            template=config.data.template,
            stacks=tuple(ref for ref, _ in source.stacks),
            losses=tuple(compared(domain, base[domain], stacks[domain], exported[domain]) for domain in rows),
            rows={domain: source.records[domain].rows for domain in rows},
            environment=environment(again.base.model.device),
            code_version=__version__,
        )
        (staging / EXPORT_RECORD).write_text(json.dumps(found.to_dict(), indent=2) + "\n")
        (staging / CARD).write_text(card(source, found, name, again.base.tokenizer))
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)  # to be given away: safetensors writes for its owner alone
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return found
