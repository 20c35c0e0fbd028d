"""Share the work of a step between ranks: with DDP each has a copy of the model, with FSDP2 a part of it.

FSDP2 keeps fp32 shards of all weights on every rank. A layer's weights are gathered for its forward pass, freed, and gathered again
for its backward pass; in bf16-mixed they are gathered in bf16, and gradients are reduced in fp32. Embeddings and head, which both
ends of a step need, stay gathered from the first forward to the last backward pass of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from llm_lightning.models.layers import layers

UNREDUCED = 0.25
"""Share of a device's memory for unsharded fp32 gradients that wait to be reduced with the last micro-batch."""


def shard(model: nn.Module, mesh: DeviceMesh, precision: str, bf16_weights: bool = True) -> None:
    """Shard a model over the ranks of a mesh, layer by layer, unless it is sharded already; `precision` is that of the Trainer.

    `bf16_weights=False` gathers fp32 weights in bf16-mixed too, for a model that computes in bf16 by autocast.
    """
    if isinstance(model, FSDPModule):
        return
    policy = MixedPrecisionPolicy()
    if precision == "bf16-mixed" and bf16_weights:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    elif precision == "bf16-true":
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    blocks = [fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True) for block in layers(model)]
    root = fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    if mesh.device_type == "cpu":  # gloo of torch 2.8 returns the sum for the mean; this way FSDP2 divides the sum itself
        for module in (root, *blocks):
            module.set_force_sum_reduction_for_comms(True)
    for module, following in pairwise([root, *blocks]):
        module.set_modules_to_forward_prefetch([following])  # gathered while this one computes, as FSDP2 does by itself backwards


@contextlib.contextmanager
def gradient_sync(strategy: Any, model: nn.Module, last: bool) -> Iterator[None]:
    """Exchange the gradients between ranks in the `last` backward pass of a step; earlier passes keep them on the rank.

    Under FSDP2, waiting gradients are as large as the whole model in fp32. If that is too much for the device, each backward pass reduces
    its own.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or not _has_room_for_gradients(model))
        model.set_reshard_after_backward(last, recurse=False)  # embeddings and head: the next micro-batch begins with them
        yield
    elif last or not hasattr(strategy, "block_backward_sync"):
        yield
    else:
        with strategy.block_backward_sync():
            yield


def _has_room_for_gradients(model: nn.Module) -> bool:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained or trained[0].device.type != "cuda":
        return True
    memory = torch.cuda.get_device_properties(trained[0].device).total_memory
    return 4 * sum(parameter.numel() for parameter in trained) <= UNREDUCED * memory


def without_gradients(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Return the context to evaluate a model in.

    FSDP2 keeps the tensors that it gathers into; tensors made under `inference_mode` could not be trained with afterwards.
    """
    return torch.no_grad() if isinstance(model, FSDPModule) else torch.inference_mode()


def exchanges(strategy: Any, model: nn.Module) -> int | None:
    """Return how many collectives this rank has started in the groups that gradients and weights travel through.

    Ranks with the same number have started the same collectives, as all run the same program. 0 without a process group, None if the
    backend does not count.
    """
    if not torch.distributed.is_initialized():
        return 0
    groups: set[Any] = {torch.distributed.group.WORLD}
    if isinstance(model, FSDPModule):
        groups |= {group.mesh_info.shard_process_group for group in _groups(model._get_fsdp_state())}
    elif isinstance(getattr(strategy, "model", None), nn.parallel.DistributedDataParallel):
        groups.add(strategy.model.process_group)
    try:
        return sum(group._get_sequence_number_for_group() for group in groups)  # private; read in torch 2.13
    except (AttributeError, RuntimeError):
        return None


def discard_step(model: nn.Module) -> None:
    """Undo a step that broke off in a forward or backward pass: discard its gradients and FSDP2's pending work.

    `zero_grad` reaches the gradients of parameters. FSDP2 also keeps those of gathered weights, which are no parameters of the model
    once it is sharded again.
    """
    if isinstance(model, FSDPModule):
        _reset_fsdp(model)
    model.zero_grad()


def _reset_fsdp(model: FSDPModule) -> None:
    """Free gathered weights with their gradients and reset the passes that were begun.

    FSDP2's states are private; read in torch 2.13, whose `reset_iter_state` does all but the gradients. Torch 2.8 to 2.12 lack that
    function: there `_reset_states` does the same.
    """
    root: Any = model._get_fsdp_state()
    states = root._state_ctx.all_states
    if hasattr(model, "reset_iter_state"):
        model.reset_iter_state()
    else:
        _reset_states(root)
    for state in states:
        for group in _groups(state):
            for parameter in group.fsdp_params:
                parameter.unsharded_accumulated_grad = None
                if hasattr(parameter, "_unsharded_param"):
                    parameter._unsharded_param.grad = None


def _groups(state: Any) -> list[Any]:
    """Return the parameter groups of an FSDP state: torch 2.13 has several, earlier ones one or none."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def _reset_states(root: Any) -> None:
    """Do what `reset_iter_state` of torch 2.13 does, with the names of torch 2.8."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    if root._device.type == "cuda":
        torch.cuda.synchronize(root._device)  # all collectives that were started have ended
    comm, context = root._comm_ctx, root._state_ctx
    comm.all_gather_state = None
    if hasattr(comm, "reduce_scatter_state"):
        comm.reduce_scatter_state = None
    comm.post_forward_order.clear()
    for state in context.all_states:
        state._training_state = TrainingState.IDLE
        for group in _groups(state):
            if (result := group._all_gather_result) is not None and hasattr(result.all_gather_work, "wait"):
                result.all_gather_work.wait()
            group._all_gather_result = group._post_reduce_event = group._reshard_after_forward_event = None
            group._all_reduce_state = group._partial_reduce_output = None
            group._post_forward_indices.clear()
            group._training_state = TrainingState.IDLE
            group._to_sharded()
    context.iter_forward_root = None
    context.post_backward_final_callback_queued = False
