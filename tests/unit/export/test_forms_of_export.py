"""Laws of an export: what stands in the folder is what the campaign measured, loaded without the campaign, and what it
loses is what it says that it loses."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bs_cluster.base.load import load_base
from bs_cluster.cli.main import main
from bs_cluster.data.frozen import DomainRows
from bs_cluster.export import run
from bs_cluster.export.record import Exported
from bs_cluster.inference.scoring import score_routed

ROOT = Path(__file__).parents[3]
IDS = torch.tensor([[2, 100, 101, 35, 102, 103], [2, 101, 100, 99, 98, 97]])


@pytest.fixture(scope="module")
def exported(bundled, tmp_path_factory):
    """Exports once for each set of words; (folder, the finding)."""
    done = {}

    def exported(*words: str) -> tuple[Path, Exported]:
        if words not in done:
            folder = tmp_path_factory.mktemp("exported") / "folder"
            assert main(["export", *place(bundled), "--to", str(folder), *words]) == 0
            done[words] = folder, Exported.from_dict(json.loads((folder / "export.json").read_text()))
        return done[words]

    return exported


def place(bundled) -> list[str]:
    return ["--store", bundled.store.uri, "--campaign", bundled.config.campaign]


def bare(bundled):
    return load_base(bundled.config.base, device="cpu").model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def under(bundled, **gates: float) -> torch.Tensor:
    """The campaign's own logits under these gates."""
    weights_BD = torch.tensor([[gates.get(domain, 0.0) for domain in ("aa", "bb")]] * len(IDS))
    with bundled.stacked.tuner.gates(weights_BD, ("aa", "bb")):
        return logits(bundled.stacked.base.model)


def test_all_rounds_of_a_domain_in_one_adapter_give_its_isolated_logits_to_the_bit(bundled, exported):
    folder, found = exported("--domain", "aa")
    loaded = PeftModel.from_pretrained(bare(bundled), folder)
    assert torch.equal(logits(loaded), under(bundled, aa=1.0))
    assert not torch.equal(logits(loaded), logits(bare(bundled)))
    assert [ref.stack.name for ref in found.stacks] == ["aa_r1", "aa_r2"]
    assert (found.losses[0].gap.mean, found.losses[0].gap.low, found.losses[0].gap.high) == (0.0, 0.0, 0.0)


def test_the_second_round_alone_is_another_model(bundled, exported, tmp_path):
    """Else the test above would say nothing of all rounds."""
    folder, _ = exported("--domain", "aa")
    second = next(manifest for _, manifest in bundled.store.stacks() if manifest.stack.name == "aa_r2")
    alone = PeftModel.from_pretrained(bare(bundled), bundled.store.materialize(second, tmp_path / "r2"))
    assert not torch.equal(logits(alone), logits(PeftModel.from_pretrained(bare(bundled), folder)))


def test_another_domain_loaded_beside_it_says_that_it_is_off_and_fires_when_it_is_turned_on(bundled, exported):
    both = PeftModel.from_pretrained(bare(bundled), exported("--domain", "aa")[0])
    both.load_adapter(exported("--domain", "bb")[0], "bb")
    with pytest.warns(UserWarning, match=r"bb was loaded and does not fire, only \['default'\] do"):
        assert torch.equal(logits(both), under(bundled, aa=1.0))
    both.set_adapter("bb")
    assert torch.equal(logits(both), under(bundled, bb=1.0))
    both.base_model.fire(["default", "bb"])
    assert torch.equal(logits(both), under(bundled, aa=1.0, bb=1.0))


def in_a_process(code: str, *folders: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_where_the_import_is_missing_the_error_says_so(bundled, exported):
    done = in_a_process(
        "import sys; from peft import PeftConfig; PeftConfig.from_pretrained(sys.argv[1])",
        folder := (exported("--domain", "aa")[0]),
    )
    assert done.returncode == 1
    assert (
        "pip install 'bs-cluster[stacks]', and import bs_cluster.stacks before loading" in done.stderr.splitlines()[-1]
    )
    assert folder.is_dir()


BLOCKED = """
import sys
for name in ("ray", "deepspeed", "mlflow", "trl", "datasets", "pyarrow", "pydantic"):
    sys.modules[name] = None
import bs_cluster.stacks
"""
LOADED = """
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.load(sys.argv[3])).logits, sys.argv[4])
"""


def test_it_loads_without_anything_that_trains(bundled, exported, tmp_path):
    torch.save(IDS, tmp_path / "ids.pt")
    words = (bundled.config.base.model, exported("--domain", "aa")[0], tmp_path / "ids.pt", tmp_path / "logits.pt")
    done = in_a_process(BLOCKED + LOADED, *words)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), under(bundled, aa=1.0))


def test_a_plain_lora_needs_nothing_of_ours(bundled, exported, tmp_path):
    folder, found = exported("--domain", "aa", "--form", "lora")
    torch.save(IDS, tmp_path / "ids.pt")
    words = (bundled.config.base.model, folder, tmp_path / "ids.pt", tmp_path / "logits.pt")
    done = in_a_process("import sys\nsys.modules['bs_cluster'] = None" + LOADED, *words)
    assert done.returncode == 0, done.stderr
    ours = PeftModel.from_pretrained(bare(bundled), folder)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(ours))
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["bias"], settings["task_type"]) == ("LORA", "none", "CAUSAL_LM")
    assert settings["r"] == settings["lora_alpha"] == found.rank == 2 * 4 * 4  # rounds, experts, rank
    assert not settings["use_rslora"]
    assert set(settings["target_modules"]) == set(bundled.config.stack.target_modules)


def test_the_gap_that_is_told_is_that_of_what_stands_in_the_folder(bundled, exported):
    """Scored row by row by hand, with another evaluator's batches."""
    folder, found = exported("--domain", "aa", "--form", "lora")
    (told,) = found.losses
    model = PeftModel.from_pretrained(bare(bundled), folder).eval()
    nll, tokens = by_hand(model, held_out(bundled, "aa"))
    assert told.tokens == tokens
    assert told.exported.mean == pytest.approx(nll / tokens, abs=1e-5)
    losses = [score_routed(bundled.stacked, [row], [[1.0, 0.0]], ("aa", "bb"))[0] for row in held_out(bundled, "aa")]
    assert told.stacks.mean == pytest.approx(sum(loss.nll for loss in losses) / tokens, abs=1e-5)
    assert told.gap.mean == pytest.approx(told.exported.mean - told.stacks.mean, abs=1e-9)
    assert told.gap.rows == len(losses)


def held_out(bundled, domain: str):
    (record,) = [record for record in bundled.store.domains() if record.domain == domain]
    own = DomainRows.from_parquet(bundled.store.get_bytes(record.rows), "", {})
    assert not {row.id for row in (*own.sweep, *own.validation)} & {row.id for row in own.train}
    return [*own.sweep, *own.validation]


@torch.no_grad()
def by_hand(model, rows) -> tuple[float, int]:
    nll, tokens = 0.0, 0
    for row in rows:
        found = torch.log_softmax(model(input_ids=torch.tensor([row.input_ids])).logits[0].double(), dim=-1)
        for t in range(row.prompt_length, len(row.input_ids)):
            nll -= float(found[t - 1, row.input_ids[t]])
            tokens += 1
    return nll, tokens


def test_a_merged_model_is_the_plain_lora_up_to_bf16(bundled, exported):
    folder, found = exported("--gates", "aa=1,bb=0.5", "--form", "merged")
    lora, _ = exported("--gates", "aa=1,bb=0.5", "--form", "lora")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(bare(bundled), lora).merge_and_unload()
    for (name, tensor), (other, want) in zip(merged.named_parameters(), wanted.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(tensor, want.to(torch.bfloat16).float()), name
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert [losses.domain for losses in found.losses] == ["aa", "bb"]
    assert found.gates == {"aa": 1.0, "bb": 0.5}


def test_a_lora_of_two_domains_holds_their_stacks_side_by_side_each_at_its_weight(bundled, exported):
    """Mean gates of a stack's experts sum to one: what they weigh in B sums to the stack's scale times that weight."""
    folder, found = exported("--gates", "aa=1,bb=0.5", "--form", "lora")
    tensors = load_file(folder / "adapter_model.safetensors")
    stack = bundled.config.stack
    for place, ref in enumerate(found.stacks):
        stored = bundled.store.load_stack(bundled.store.manifest(ref.manifest)).tensors
        own = slice(place * stack.experts * stack.rank, (place + 1) * stack.experts * stack.rank)
        for key in (key for key in tensors if key.endswith("lora_A.weight")):
            site = key.removesuffix(".lora_A.weight")
            assert torch.equal(tensors[key][own], stored[f"{site}.stack_A"].flatten(0, 1))
            b_ERO = tensors[f"{site}.lora_B.weight"][:, own].t().unflatten(0, (stack.experts, stack.rank))
            stored_ERO = stored[f"{site}.stack_B"]
            weight_E = (b_ERO * stored_ERO).sum((1, 2)) / stored_ERO.square().sum((1, 2))
            torch.testing.assert_close(b_ERO, weight_E[:, None, None] * stored_ERO)
            scale = stack.alpha / stack.rank**0.5
            assert float(weight_E.sum()) == pytest.approx(scale * found.gates[ref.stack.domain], rel=1e-4)


def test_a_compressed_lora_has_its_rank_and_a_gap_of_its_own(exported):
    whole = exported("--domain", "aa", "--form", "lora")[1]
    folder, small = exported("--domain", "aa", "--form", "lora", "--rank", "2")
    assert small.rank == json.loads((folder / "adapter_config.json").read_text())["r"] == 2
    assert small.losses[0].gap.mean != whole.losses[0].gap.mean


def test_the_card_says_what_a_reader_needs(bundled, exported):
    folder, found = exported("--domain", "aa", "--form", "lora", "--license", "mit")
    card = (folder / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", card, flags=re.S)[1]
    assert "library_name: peft" in front
    assert "license: mit" in front
    (losses,) = found.losses
    for said in (
        "aa_r1, aa_r2",
        f"{losses.gap.mean:+.3f}".replace("-", "−"),
        f"aa ({losses.base.rows})",
        "{}",
        "<eos>",
    ):
        assert said in card
    assert "aa.jsonl" in card
    assert str(Path(bundled.config.base.model).parent) not in card  # no path of the machine where it was trained


class TestRefusals:
    @pytest.fixture
    def refused(self, bundled, tmp_path, capsys, monkeypatch):
        """Runs an export that must end before a base is loaded; what it says."""
        monkeypatch.delattr(run, "StackedBase")
        capsys.readouterr()

        def refused(*words: str, to: Path = tmp_path / "new") -> str:
            try:
                code = main(["export", *place(bundled), "--to", str(to), *words])
            except SystemExit as ended:
                code = ended.code
            assert code == 2
            assert not (tmp_path / "new").exists()
            return capsys.readouterr().err

        return refused

    def test_a_domain_or_bundle_that_is_not_there(self, refused):
        assert "domain 'math' is not in bundle 2; it has aa, bb" in refused("--domain", "math")
        assert "has no bundle 7" in refused("--domain", "aa", "--bundle", "7")

    def test_no_domain_or_an_unknown_form(self, refused):
        assert "--domain --gates" in refused()
        assert "invalid choice: 'gguf'" in refused("--domain", "aa", "--form", "gguf")

    def test_a_rank_that_is_none(self, refused):
        assert "--rank is of a plain LoRA" in refused("--domain", "aa", "--rank", "4")
        assert "name 1 to 32" in refused("--domain", "aa", "--form", "lora", "--rank", "33")
        assert "name 1 to 32" in refused("--domain", "aa", "--form", "lora", "--rank", "0")

    @pytest.mark.parametrize("gates", ["aa=2", "aa=x", "aa=1,aa=1", "aa=0", "", "aa=nan"])
    def test_gates_that_are_none(self, refused, gates):
        assert "with a weight above 0 to 1" in refused("--gates", gates, "--form", "merged")

    def test_fixed_gates_in_the_form_that_keeps_them(self, refused):
        assert "one domain at full strength" in refused("--gates", "aa=1,bb=1")

    def test_a_folder_that_holds_something(self, refused, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        assert "new or empty" in refused("--domain", "aa", to=tmp_path / "full")
        assert "new or empty" in refused("--domain", "aa", to=tmp_path / "full" / "x")

    def test_an_upload_to_nowhere(self, refused):
        assert "--hub" in refused("--domain", "aa", "--dry-run")
        assert "user/name" in refused("--domain", "aa", "--hub", "name", "--dry-run")
        assert "--hub a/b/c" in refused("--domain", "aa", "--hub", "a/b/c", "--dry-run")


def test_a_dry_run_says_what_would_go_and_asks_nobody(bundled, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    capsys.readouterr()
    folder = tmp_path / "out"
    words = ["--domain", "aa", "--to", str(folder), "--hub", "somebody/aa", "--dry-run", "--json"]
    assert main(["export", *place(bundled), *words]) == 0
    upload = json.loads(capsys.readouterr().out)["upload"]
    assert upload["repo"] == "somebody/aa"
    assert upload["url"] is None
    assert upload["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(upload["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "export.json"}


def test_an_export_that_fails_leaves_nothing_behind(bundled, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "card", fail)
    assert main(["export", *place(bundled), "--domain", "aa", "--to", str(tmp_path / "out")]) == 130
    assert list(tmp_path.iterdir()) == []
