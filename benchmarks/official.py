"""The official code of the papers, timed as it stands in a checkout that the user supplies.

Nothing of it is copied: the statements of the training script's innermost loop, up to and including
`optimizer.step()`, are cut out of the script's syntax tree and run in a namespace that holds what the script had made
by then: its own network class and loss module, imported from the checkout, an optimiser as in the script, and one
batch. What the script does after the optimiser's step (logging, saving, validation) is not timed, nor is its data
loading. `.cuda()` does nothing: the batch and the network are on the device already.

To add a paper: a row in `OFFICIAL` and a function that makes its namespace.
"""

import ast
import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn


def training_loop(script: Path) -> tuple[CodeType, int]:
    """The innermost loop's body up to `optimizer.step()`, compiled, and the number of its lines."""
    tree = ast.parse(script.read_text(), str(script))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For) and _last_step(node) is not None]
    if not loops:
        raise ValueError(f"{script.name} has no loop with optimizer.step()")
    loop = loops[-1]  # walked breadth first: the innermost comes last
    end = _last_step(loop)
    assert end is not None
    body = loop.body[: end + 1]
    module = ast.Module(body=body, type_ignores=[])
    return compile(module, str(script), "exec"), (body[-1].end_lineno or 0) - body[0].lineno + 1


def _last_step(loop: ast.For) -> int | None:
    """Index of the last `optimizer.step()` directly in the loop's body."""
    found = [
        index
        for index, statement in enumerate(loop.body)
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == "optimizer.step"
    ]
    return found[-1] if found else None


def crossmatch(
    width: int, x: Tensor, y: Tensor, u: Tensor, strong: tuple[Tensor, Tensor], boxes: tuple[Tensor, Tensor]
) -> Any:
    """CrossMatch, LA: 2 labelled, 2 unlabelled and 2 CutMix volumes; c0 0.75, AdamW 1e-3 (LA/code/train.sh)."""
    network_class = importlib.import_module("networks.vnet").VNet
    losses, ramps = importlib.import_module("utils.losses"), importlib.import_module("utils.ramps")
    torch.manual_seed(0)
    net = network_class(1, 2, width, normalization="batchnorm", has_dropout=True, pert_gap=0.5)
    net = net.to(x.device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
    args = Namespace(conf_thresh=0.75, temperature=1)
    fixed = dict(args=args, net=net, optimizer=optimizer, dice_loss=losses.dice_loss, ramps=ramps, eta=0.3)
    fixed |= dict(torch=torch, F=nn.functional, np=importlib.import_module("numpy"), iter_num=1000, conf_thresh=0.52)

    def fresh() -> dict[str, Any]:
        """The loop's variables; the body writes into some of these tensors."""
        s1, s2 = (view.clone() for view in strong)
        batch = dict(img_x=x, mask_x=y, img_u_w=u, img_u_s1=s1, img_u_s2=s2)
        batch |= dict(cutmix_box1=boxes[0].float(), cutmix_box2=boxes[1].float())
        return batch | dict(img_u_w_mix=u.flip(0), img_u_s1_mix=strong[0].flip(0), img_u_s2_mix=strong[1].flip(0))

    return net, fixed, fresh


# method -> (folder with the script's modules, script, what makes the namespace)
OFFICIAL: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "crossmatch": ("LA/code", "train_cross_match.py", crossmatch)
}


def official_step(method: str, checkout: Path, *batch: Any) -> tuple[nn.Module, Callable[[], dict[str, Any]], Any]:
    """The network, what prepares an iteration (not timed), and the iteration: run(prepared)."""
    folder, script, namespace = OFFICIAL[method]
    sys.path.insert(0, str(checkout / folder))
    for kind in (Tensor, nn.Module):
        kind.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    net, fixed, fresh = namespace(*batch)
    body, _ = training_loop(checkout / folder / script)

    def run(prepared: dict[str, Any]) -> None:
        exec(body, prepared)

    return net, lambda: fixed | fresh(), run
