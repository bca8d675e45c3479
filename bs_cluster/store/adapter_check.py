"""What a stack's files must satisfy before they may be frozen for ever.

The format is that of ``bs_cluster.adapter_format``; here it is held against what lies in a folder.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bs_cluster.adapter_format import CONFIG_NAME, PARTS, WEIGHTS_NAME, parse_key
from bs_cluster.errors import IntegrityError


def check_adapter(directory: Path) -> None:
    """Raise ``IntegrityError`` unless ``directory`` holds one complete, finite stack with consistent shapes."""
    _check_config(directory / CONFIG_NAME)
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        raise IntegrityError(f"{directory} has no {WEIGHTS_NAME}; save the stack there before committing it")
    try:
        # Through torch, because NumPy has no bfloat16.
        with safe_open(path, framework="pt") as weights:
            check_sites(group_by_site({key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}))  # noqa: SIM118
            for key in weights.keys():  # noqa: SIM118 - the handle is no mapping
                if not torch.isfinite(weights.get_tensor(key)).all():
                    raise IntegrityError(f"{path}: {key} holds NaN or infinity; commit an earlier, finite snapshot")
    except SafetensorError as error:
        raise IntegrityError(f"{path} is not a whole safetensors file ({error}); save the stack again") from error


def group_by_site(shapes: dict[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """``{key: shape}`` to ``{site: {part: shape}}``. Raises ``IntegrityError`` for a key of no stack."""
    sites: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for key, shape in shapes.items():
        try:
            site, part = parse_key(key)
        except ValueError as error:
            raise IntegrityError(str(error)) from error
        sites[site][part] = shape
    return dict(sites)


def check_sites(sites: dict[str, dict[str, tuple[int, ...]]]) -> None:
    """Every site has every part, and the shapes of a site fit each other. Raises ``IntegrityError``."""
    if not sites:
        raise IntegrityError("the stack has no tensor at all; a stack wraps at least one site")
    for site, tensors in sites.items():
        if missing := sorted(set(PARTS) - set(tensors)):
            raise IntegrityError(f"site {site} lacks {missing}; it has {sorted(tensors)}, the stack is not complete")
        shape_A, shape_B = tensors["stack_A"], tensors["stack_B"]
        fits = (
            len(shape_A) == len(shape_B) == 3
            and shape_A[:2] == shape_B[:2]
            and tensors["stack_router"] == tensors["stack_noise"] == (shape_A[0], shape_A[2])
        )
        if not fits:
            raise IntegrityError(
                f"site {site} has the shapes {tensors}; "
                "stack_A (E,R,I), stack_B (E,R,O), stack_router (E,I), stack_noise (E,I) are wanted"
            )


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path.parent} has no {CONFIG_NAME}; a stack is a whole PEFT adapter") from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON ({error}); save the stack again") from error
    if not isinstance(config, dict):
        raise IntegrityError(f"{path} holds a {type(config).__name__}, a JSON object is wanted")
