# %% [markdown]
# # A tour: two tiny domains, a third one, a proof, a server, and the way out
#
#     python examples/tour.py [--folder FOLDER]
#
# or cell by cell, as VS Code and Jupyter open this file. It takes three minutes on two CPU cores, downloads nothing
# and writes to one folder. The model is 370,000 random weights that learn for seconds, so do not expect wit; what
# happens to it is what happens to Gemma 3 under `make run`, by the same commands.

# %%
import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import shorten
from typing import Any

import requests

from bs_cluster.quiet import quieten

quieten()  # the libraries, that is
parser = argparse.ArgumentParser(description="A tour of bs_cluster, in a few minutes.", allow_abbrev=False)
parser.add_argument("--folder", type=Path, help="new or empty (default: a temporary one)")
asked, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own

FOLDER = (asked.folder or Path(tempfile.mkdtemp(prefix="bs_cluster_tour_"))).resolve()
FOLDER.mkdir(parents=True, exist_ok=True)
if any(FOLDER.iterdir()):
    raise SystemExit(f"--folder {FOLDER}: there is something already; name a folder that is new or empty")
STORE = FOLDER / "stacks_store"
BS_CLUSTER = [sys.executable, "-m", "bs_cluster.cli"]  # what `bs_cluster` is in a terminal
os.environ.setdefault("RAY_ADDRESS", "local")  # a run starts a Ray of its own, unless this names a cluster


def heading(words: str) -> None:
    print(f"\n\n── {words} {'─' * (96 - len(words))}", flush=True)


def sh(command: str, show: str = "") -> str:
    """Runs a command of ours in the folder; prints the lines that begin with ``show`` as they come, and returns all."""
    print(f"\n$ {command}", flush=True)
    said, errors = "", FOLDER / "stderr.log"
    with errors.open("w") as log:
        words = [*BS_CLUSTER, *shlex.split(command)[1:]]
        process = subprocess.Popen(words, cwd=FOLDER, stdout=subprocess.PIPE, stderr=log, text=True)
        for line in process.stdout or ():
            said += line
            if line.startswith(show):
                print(line, end="", flush=True)
    if process.wait() != 0:
        raise RuntimeError(f"{command}\n{said}\n{errors.read_text()}")
    return said


# %%
# Three domains. A row is a prompt and its completion: here JSONL, and Parquet or a Hub dataset will do as well.
heading("Three tiny domains")

NAMES = "Ada Alan Alonzo Barbara Claude Dennis Donald Edsger Emmy Frances Grace Hedy John Karen Kurt Lynn Mary Niklaus"
DOMAINS = {
    "animals": (
        "what does the {} say?",
        "{0}, {0}, {0}!",
        "cow moo, cat meow, dog woof, duck quack, sheep baa, owl hoot, bee buzz, pig oink",
    ),
    "days": (
        "which day comes after {}?",
        "It is {0}.",
        "Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday, Saturday Sunday, "
        "Sunday Monday",
    ),
    "capitals": (
        "{} has which capital?",
        "The capital is {0}.",
        "France Paris, Italy Rome, Japan Tokyo, Kenya Nairobi, Peru Lima, Norway Oslo, Cuba Havana, Egypt Cairo",
    ),
}


FACTS = {domain: [pair.split() for pair in pairs.split(", ")] for domain, (_, _, pairs) in DOMAINS.items()}


def prompt(name: str, domain: str, of: str) -> str:
    return f"{name} asks: {DOMAINS[domain][0].format(of)}"


def both(animal: str, day: str) -> str:
    """A prompt that asks for two domains at once."""
    return f"{prompt('Ada', 'animals', animal)} And {DOMAINS['days'][0].format(day)}"


QUESTIONS = {  # to be asked below, and in no file
    "animals": prompt("Ada", "animals", "duck"),
    "days": prompt("Ada", "days", "Friday"),
    "capitals": prompt("Ada", "capitals", "Peru"),
    "both": both("owl", "Monday"),
}


def write(name: str, rows: dict[str, str]) -> None:
    """Completions by prompt, as JSONL."""
    kept = [{"prompt": asks, "completion": said} for asks, said in rows.items() if asks not in QUESTIONS.values()]
    (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    print(f"{name:<9}{len(kept):>4} rows   {kept[0]['prompt']}  →  {kept[0]['completion']}")


for domain, (_, answer, _) in DOMAINS.items():
    write(domain, {prompt(name, domain, of): answer.format(is_) for name in NAMES.split() for of, is_ in FACTS[domain]})
# No domain trains on these. They teach the meta-router that there are prompts of two domains.
write(
    "both",
    {
        both(a, d): f"{said}, {said}, {said}! It is {next_}."
        for a, said in FACTS["animals"]
        for d, next_ in FACTS["days"]
    },
)

# %%
# A campaign is one YAML file. docs/config.md has all settings; those that are not here keep their defaults.
CONFIG = FOLDER / "tour.yaml"
CONFIG.write_text(f"""\
campaign: tour
base: # four layers of random weights, frozen, in NF4; a token is a byte
  model: random:llama
  random: {{layers: 4, hidden: 128, heads: 4, intermediate: 256, std: 0.08}}
  compute_dtype: float32
  cache_dir: {FOLDER}/cache
store: {{uri: {STORE}}}
registry: {{tracking_uri: sqlite:///{FOLDER}/mlflow.db}}
data:
  template: plain
  max_length: 128
  max_prompt_length: 96
  validation_rows: 24 # choose a round's snapshot, and decide whether it is kept
  sweep_rows: 16 # teach the meta-router, and judge it
  near_duplicates: null # only names tell many of these rows apart
  decontaminate: false
domains: # two, for now
  - name: animals
    sources: [{{kind: jsonl, path: {FOLDER}/animals.jsonl}}]
  - name: days
    sources: [{{kind: jsonl, path: {FOLDER}/days.jsonl}}]
stack: {{rank: 8, alpha: 11.3, router_init_std: 0.1}}
training:
  num_workers: 1
  use_gpu: false
  cpus_per_worker: 1
  threads_per_worker: 1
  steps: 80
  max_rounds: 1
  global_batch: 16
  per_device_batch: 16
  learning_rate: 3.0e-3
  warmup_steps: 5
  eval_every: 20
  noise: false
  context: isolated
sweep:
  evaluators: 1
  cpus_per_evaluator: 1
  gpus_per_evaluator: 0
  threads_per_evaluator: 1
  answer_rows: 0
  mixed: [{{name: both, rows: 32, source: {{kind: jsonl, path: {FOLDER}/both.jsonl}}}}]
promotion: {{tolerance: 0.1}} # nats by which the next bundle may serve a group of so few rows worse
""")

# %%
# Train. Each domain gets a stack, mixture-of-experts LoRA on every projection. Then rows are measured under all
# combinations of domains, and a meta-router learns which to fire for a prompt. Interrupted, the command would go on.
heading("Train two of them, and route")


def report() -> dict[str, Any]:
    """The last run's report, and its losses as a table."""
    found = json.loads((STORE / "tour/report/report.json").read_text())
    print(f"\n{'nats per byte':<14}{'base':>8}{'alone':>8}{'routed':>8}   on rows that no stack was trained on")
    for domain in found["domains"]:
        base, alone, routed = (found["loss"][mode][domain] for mode in ("base", "isolated", "routed"))
        print(f"{domain:<14}{base:>8.3f}{alone:>8.3f}{routed:>8.3f}")
    return found


sh("bs_cluster run --config tour.yaml", show="[")
first = report()

# %%
# Ask. The gates say which domains fire for a prompt, and how strongly. Two at once talk nonsense on a base that knows
# no language; README.md has what they are worth on Gemma 3, under mixed rows.
heading("Ask, and look at the gates")


def show(prompt: str, answer: str, gates: dict[str, float]) -> None:
    print(f"\n> {prompt}\n  {answer[:80]!r}")
    for domain, weight in gates.items():
        print(f"    {domain:<10}{weight:.3f}  {'█' * round(8 * weight)}".rstrip())


def ask(*prompts: str) -> list[dict[str, Any]]:
    answers = json.loads(sh(f"bs_cluster generate --campaign tour --json {shlex.join(prompts)}", show="nothing"))
    for answer in answers:
        show(answer["prompt"], answer["completion"], answer["gates"])
    return answers


before = ask(QUESTIONS["animals"], QUESTIONS["days"], QUESTIONS["both"])

# %%
# Add a domain. The command looks at the rows first, and then writes the entry; with `--dry-run` it only looks.
heading("A month later: a third domain")
sh(f"bs_cluster domains add --config tour.yaml --name capitals --data '{FOLDER}/capitals.jsonl'")
sh("bs_cluster run --config tour.yaml", show="[")
second = report()
print(f"\nisolated_drift_max = {second['isolated_drift_max']}, the largest change of the loss of any row of before")
after = ask(*QUESTIONS.values())

# %%
# Prove it. From the store alone, logits and losses are computed again, and held against what the runs wrote down.
heading("Prove that nothing moved")
certified = json.loads(sh("bs_cluster certify --campaign tour --json", show="nothing"))
lines = certified["lines"]
for line in lines:
    if line["recomputed"] in ("holds", "fails", "cannot be judged"):
        print(f"{line['recomputed']:<17} {line['what']:<55} {shorten(line['why'], 60)}")
agree = sum(line["verdict"] == "agrees" for line in lines)
print(f"{agree} of {len(lines)} lines of the certificate come out again, from {certified['scored']} losses")

# %%
# Serve: OpenAI's API, with the gates beside each answer.
heading("Serve")
print("\n$ bs_cluster serve --campaign tour --port 0", flush=True)
serve = [*BS_CLUSTER, "serve", "--campaign", "tour", "--port", "0"]
with (FOLDER / "server.log").open("w") as log:
    server = subprocess.Popen(serve, cwd=FOLDER, stdout=subprocess.PIPE, stderr=log, text=True)
served = []
try:
    assert server.stdout is not None
    told = server.stdout.readline()  # serving tour at http://127.0.0.1:…
    assert told, (FOLDER / "server.log").read_text()
    print(told, end="")
    for question in QUESTIONS.values():
        asks = {
            "model": "tour",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 48,
            "temperature": 0,
        }
        answer = requests.post(f"{told.split()[-1]}/v1/chat/completions", json=asks, timeout=60).json()
        show(question, answer["choices"][0]["message"]["content"], answer["gates"])
        served.append(answer)
finally:
    server.terminate()  # answers that run would end first
    server.wait()

# %%
# Leave. A domain becomes a folder for PEFT with its model card, and needs nothing of the cluster any more.
heading("Leave with a domain")
sh("bs_cluster export --campaign tour --domain animals --to animals_adapter")

import torch
from peft import PeftModel

import bs_cluster.stacks  # noqa: F401 - makes the method known to PEFT
from bs_cluster.base.load import load_base
from bs_cluster.config import load_config
from bs_cluster.serving.runtime import DomainRuntime
from bs_cluster.store import Store

base = load_base(load_config(CONFIG).base, device="cpu").model
exported = PeftModel.from_pretrained(base, FOLDER / "animals_adapter")
store = Store(str(STORE), "tour")
rounds = [ref for ref, _ in store.stacks() if ref.stack.domain == "animals"]
inside = DomainRuntime(store, rounds, "cpu").stacked.base
tokens = inside.tokenizer(QUESTIONS["animals"], return_tensors="pt").input_ids
with torch.no_grad():
    logits = {"the campaign's": inside.model.eval()(tokens).logits, "exported": exported.eval()(tokens).logits}
    with exported.disable_adapter():
        logits["the bare base's"] = exported(tokens).logits
print()
for whose in ("the campaign's", "the bare base's"):
    difference = (logits["exported"] - logits[whose]).abs().max()
    print(f"exported logits differ from {whose:<16} by {difference:.3g} at most")

# %%
heading("All of it is still there")
print(f"""
{STORE}/tour/report/report.html
mlflow server --backend-store-uri sqlite:///{FOLDER}/mlflow.db
cd {FOLDER} && bs_cluster chat --campaign tour""")
