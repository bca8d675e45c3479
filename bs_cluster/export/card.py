"""The model card of an export: what it is, how to load it, what it was trained on, what it loses."""

from __future__ import annotations

from huggingface_hub import ModelCardData
from transformers import PreTrainedTokenizerBase

from bs_cluster.config.sources import FileSource
from bs_cluster.data.encode import TEMPLATES
from bs_cluster.estimates import Estimate
from bs_cluster.export.record import EXPORT_RECORD, LORA, MERGED, STACK, DomainLosses, Exported
from bs_cluster.export.source import BaseName, Source

METHOD_TAG = {STACK: "moe-lora", LORA: "lora", MERGED: "merge"}


def card(source: Source, found: Exported, base: BaseName, tokenizer: PreTrainedTokenizerBase) -> str:
    """``README.md`` with the Hub's front matter."""
    parts = [
        f"# {title(found)}",
        _what(source, found, base),
        "## Loading",
        _loading(source, found, base),
        "## Prompt and tokenizer",
        _prompt(source, tokenizer),
        "## Losses",
        "Nats per completion token on rows that no stack was trained on (the campaign's sweep and validation rows; the "
        "latter chose among snapshots), with 95 % intervals, bootstrapped over rows; the last two columns are paired. "
        f"What was written was loaded again for it. All of it is in `{EXPORT_RECORD}` too.",
        losses_markdown(found),
        "## Data",
        _data(source),
        "## Licence",
        _licence(source, base),
    ]
    return f"---\n{_front_matter(source, found, base)}\n---\n\n" + "\n\n".join(parts) + "\n"


def title(found: Exported) -> str:
    gates = ", ".join(name if weight == 1 else f"{name} at {weight:g}" for name, weight in found.gates.items())
    return f"{found.campaign}: {gates}"


LOSSES_HEADER = ("rows of", "base", "stacks", "exported", "exported − stacks", "exported − base")


def losses_cells(losses: DomainLosses) -> tuple[str, ...]:
    means = (losses.base, losses.stacks, losses.exported)
    return (
        f"{losses.domain} ({losses.base.rows})",
        *(_interval(mean, "") for mean in means),
        *(_interval(difference, "+") for difference in (losses.gap, losses.gain)),
    )


def losses_markdown(found: Exported) -> str:
    rows = [LOSSES_HEADER, ("---", *["---:"] * 5), *map(losses_cells, found.losses)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _interval(of: Estimate, sign: str) -> str:
    return f"{of.mean:{sign}.3f} [{of.low:{sign}.3f}, {of.high:{sign}.3f}]".replace("-", "−")


def _front_matter(source: Source, found: Exported, base: BaseName) -> str:
    return ModelCardData(
        base_model=base.hub,
        library_name="transformers" if found.form == MERGED else "peft",
        license=_license(source, base),
        license_name="see-below" if _license(source, base) == "other" else None,
        pipeline_tag="text-generation",
        tags=["bs-cluster", "brainstacks", METHOD_TAG[found.form]],
    ).to_yaml()


def _what(source: Source, found: Exported, base: BaseName) -> str:
    rounds = ", ".join(ref.stack.name for ref in found.stacks)
    stack = source.config.stack
    kind = f"{len(found.stacks)} frozen stacks" if len(found.stacks) > 1 else "one frozen stack"
    told = [
        f"From bundle {found.bundle} of the campaign `{found.campaign}` of bs_cluster {found.code_version}: {kind} "
        f"({rounds}), each a mixture of {stack.experts} LoRA experts of rank {stack.rank} on "
        f"{', '.join(stack.target_modules)}, of which {stack.top_k} fire for a token.",
    ]
    if found.form == STACK:
        told.append("This folder holds all rounds of the domain, as they were trained, in one PEFT adapter.")
    else:
        fixed = (
            f"the gates of each are frozen at their mean over {', '.join(map(str, found.gate_rows.values()))} training "
            "rows of its domain, so that nothing depends on the token any more"
        )
        if found.form == LORA:
            whole = stack.experts * stack.rank * len(found.stacks)
            rank = f"rank {found.rank}" if found.rank == whole else f"rank {found.rank}, compressed from {whole} by SVD"
            told.append(f"This folder holds them as a plain LoRA of {rank}: {fixed}.")
        else:
            told.append(f"This folder holds them merged into the base's dequantised weights, in bf16: {fixed}.")
    told.append(f"Base: {base.words}.")
    return " ".join(told)


def _loading(source: Source, found: Exported, base: BaseName) -> str:
    if found.form == MERGED:
        return (
            "    from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            '    model = AutoModelForCausalLM.from_pretrained("this/folder", dtype="bfloat16")\n'
            '    tokenizer = AutoTokenizer.from_pretrained("this/folder")'
        )
    settings = source.config.base
    model, dtype = base.hub or "the/base", f"torch.{settings.compute_dtype}"
    how = [f'"{model}"', f"dtype={dtype}"]
    if base.revision:
        how.append(f'revision="{base.revision}"')
    lines = ["import torch"]
    if found.form == STACK:
        lines.append("import bs_cluster.stacks  # pip install 'bs-cluster[stacks]': makes the method known to PEFT")
    lines += ["from peft import PeftModel", "from transformers import AutoModelForCausalLM, BitsAndBytesConfig", ""]
    if settings.quantization == "nf4":
        lines += [
            "nf4 = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4",',
            f"    bnb_4bit_use_double_quant={settings.double_quant}, bnb_4bit_compute_dtype={dtype},",
            ")",
        ]
        how.append("quantization_config=nf4")
    else:
        lines[-2] = lines[-2].removesuffix(", BitsAndBytesConfig")
    lines += [
        f"base = AutoModelForCausalLM.from_pretrained({', '.join(how)})",
        'model = PeftModel.from_pretrained(base, "this/folder")',
    ]
    code = "\n".join(f"    {line}".rstrip() for line in lines)
    if found.form == LORA:
        return code
    return (
        f"{code}\n\nAnother domain beside it: `model.load_adapter(folder, name)`, then `model.set_adapter(name)` for "
        'that one alone, or `model.base_model.fire(["default", name])` for both.'
    )


def _prompt(source: Source, tokenizer: PreTrainedTokenizerBase) -> str:
    data = source.config.data
    if data.template == "chat":
        template = "Prompts were put into the tokenizer's own chat template."
    else:
        text = "\n".join(f"    {line}".rstrip() for line in TEMPLATES[data.template].split("\n")[:-1])
        template = f"Prompts were put into this text in the place of `{{}}`, its last line break included:\n\n{text}"
    bos = "before it" if tokenizer.bos_token_id is not None else "not used, there is none"
    return (
        f"{template}\n\nThe tokenizer is the base's. The token that begins a text: {bos}, once. An answer ends with "
        f"`{tokenizer.eos_token}`. Prompts in training had at most {data.max_prompt_length} tokens, rows "
        f"{data.max_length}."
    )


def _data(source: Source) -> str:
    lines = ["| domain | train | validation | sweep | from |", "| --- | ---: | ---: | ---: | --- |"]
    for domain, record in source.records.items():
        counts = [str(record.data_counts.get(split, 0)) for split in ("train", "validation", "sweep")]
        labels = [
            # A path of the machine where it was trained tells nobody else anything.
            f"{origin.kind_name()} {origin.path.rpartition('/')[2]}" if isinstance(origin, FileSource) else origin.label
            for origin in source.config.domain(domain).sources
        ]
        lines.append(f"| {' | '.join([domain, *counts, '; '.join(labels)])} |")
    return "\n".join(lines)


def _license(source: Source, base: BaseName) -> str:
    return source.wanted.license or base.license or "other"


def _licence(source: Source, base: BaseName) -> str:
    if source.wanted.license is not None:
        return f"`{source.wanted.license}`, says who exported it; the base's and the data's own terms hold beside it."
    if base.license is not None:
        return f"The base's, `{base.license}`; the data's own terms hold beside it."
    return "Not told when this was exported. The base's and the data's own terms hold."
