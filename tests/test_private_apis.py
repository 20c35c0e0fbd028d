"""Private names of other libraries: each is used in one module, which names the version, and still does what we use it for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import transformers
from omegaconf import OmegaConf
from torch import Tensor, nn

from llm_lightning.config.schema import child_sections
from llm_lightning.models.head import _initialize
from llm_lightning.models.layers import is_compiled, undo_compile

from .conftest import ROOT

ALLOWED = {
    "config.schema": {"_get_node", "_is_none"},
    "data.streaming": {"_utils", "_worker_info"},
    "inference.experts": {"_apply_gate"},
    "machine": {"_is_amx_tile_supported", "_is_avx512_bf16_supported"},
    "metrics.text": {"_aggregate_and_compute", "_extract_corpus_statistics"},
    "models.attention": {"_softmax_backward_data"},
    "models.batch_form": {"_attn_implementation"},
    "models.build": {"_model_mapping"},
    "models.flash_attention": {"_flash_attention_forward", "_scaled_dot_product_cudnn_attention"},
    "models.flat_check": {"_can_set_attn_implementation", "_is_stateful"},
    "models.head": {"_init_weights", "_is_hf_initialized"},
    "models.layers": {"_compiled_call_impl"},
    "models.small_copy": {"_attn_implementation_internal", "_from_config"},
    "sweep.study": {"_trial_id"},
    "sweep.sweep": {"_return_value"},
    "tracking.dashboard": {"_spec"},
    "tracking.energy": {"_hardware", "_mode", "_prepare_emissions_data"},
    "tracking.wandb_artifacts": {"_log_artifact"},
    "tracking.wandb_logger": {"_DummyExperiment"},
    "training.graphs": {"_foreach_zero_"},
    "training.parallel": {
        "_all_gather_result",
        "_all_reduce_state",
        "_comm_ctx",
        "_device",
        "_fsdp_common",
        "_fsdp_param_group",
        "_fsdp_param_groups",
        "_fully_shard",
        "_get_fsdp_state",
        "_get_sequence_number_for_group",
        "_partial_reduce_output",
        "_post_forward_indices",
        "_post_reduce_event",
        "_reshard_after_forward_event",
        "_state_ctx",
        "_to_sharded",
        "_training_state",
        "_unsharded_param",
    },
    "training.precision": {"_desired_input_dtype", "_foreach_add_", "_foreach_copy_", "_parameters", "_version"},
    "training.signals": {"_broadcast_sigterm_tensor"},
}
"""Module -> the private names of other libraries that it alone uses."""
DOCUMENTED = {"_exit", "_current_frames", "_target_"}
"""Names of Python and Hydra that begin with an underscore and are documented."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("llm_lightning."): path
    for folder in ("llm_lightning", "hydra_plugins")
    for path in (ROOT / folder).rglob("*.py")
}


def is_private(name: str) -> bool:
    return name.startswith("_") and bool(name.strip("_")) and not name.endswith("__") and name not in DOCUMENTED


def list_definitions(tree: ast.AST) -> Iterator[str]:
    """Yield the names of functions, classes and variables of a module, and of the attributes that its classes set on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def list_private_uses(tree: ast.AST, module_names: set[str], package_names: set[str]) -> Iterator[str]:
    """Yield private names that neither the module nor, for attributes of `self`, the package defines."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name):
                if name not in (package_names if ast.unparse(value) in ("self", "cls") else module_names):
                    yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                yield name
            case ast.Import(names=names):
                yield from (part for alias in names for part in alias.name.split("."))
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith("llm_lightning"):
                yield from (*module.split("."), *(alias.name for alias in names))


def test_each_private_name_of_a_library_has_one_module() -> None:
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    definitions = {module: set(list_definitions(tree)) for module, tree in trees.items()}
    package_names = set().union(*definitions.values())
    uses = {
        module: set(filter(is_private, list_private_uses(tree, definitions[module], package_names)))
        for module, tree in trees.items()
    }
    assert {module: names for module, names in uses.items() if names} == ALLOWED
    names = [name for names in ALLOWED.values() for name in names]
    assert len(names) == len(set(names))
    assert not set(ALLOWED) - {
        m for m, path in MODULES.items() if re.search(r"read in (\S+ )?\d", path.read_text(encoding="utf-8"))
    }


def find_parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


# ---- Lightning ----


def test_lightning_calls_the_exchange_of_signals_that_we_replace() -> None:
    loop = lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop
    assert list(inspect.signature(loop._broadcast_sigterm_tensor).parameters) == ["self"]
    assert any(
        "_broadcast_sigterm_tensor" in function.__code__.co_names for _, function in inspect.getmembers(loop, inspect.isfunction)
    )


def test_the_progress_in_lightning_s_checkpoints_has_the_keys_that_we_set() -> None:
    loop = lightning.Trainer(barebones=True).fit_loop.state_dict()
    for key in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        for counts in ("total", "current"):
            assert loop[key][counts] == {"ready": 0, "completed": 0, "started": 0, "processed": 0}


def test_lightning_s_precision_and_dummy_run() -> None:
    from lightning.fabric.loggers.logger import _DummyExperiment

    assert lightning.pytorch.plugins.HalfPrecision("bf16-true")._desired_input_dtype == torch.bfloat16
    assert _DummyExperiment().log({"loss": 1.0}) is None


# ---- torch ----


def test_a_compiled_layer_is_told_and_undone() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    layer, calls = Layer(), []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    assert not is_compiled(layer)
    layer.compile(backend=backend)
    assert is_compiled(layer)
    layer(torch.ones(2))
    assert len(calls) == 1
    undo_compile(layer)
    assert not is_compiled(layer)
    layer(torch.ones(2, 2))
    assert len(calls) == 1


def test_torch_has_the_operators_that_we_call() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    slope, probabilities = torch.randn(3, 5, dtype=torch.float64), x.softmax(-1)
    (expected,) = torch.autograd.grad(probabilities, x, slope)
    assert torch._softmax_backward_data(slope, probabilities, -1, torch.float64).allclose(expected)

    a, b = [torch.ones(2), torch.ones(3)], [torch.full((2,), 2.0), torch.full((3,), 3.0)]
    versions = [tensor._version for tensor in a]
    torch._foreach_add_(a, b)
    assert [tensor.tolist() for tensor in a] == [[3.0] * 2, [4.0] * 3]
    torch._foreach_copy_(a, b)
    assert [tensor.tolist() for tensor in a] == [[2.0] * 2, [3.0] * 3]
    torch._foreach_zero_(a)
    assert not any(tensor.any() for tensor in a)
    assert [tensor._version - before for tensor, before in zip(a, versions, strict=True)] == [3, 3]

    kernels = {
        "_flash_attention_forward": "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask",
        "_scaled_dot_product_cudnn_attention": "query key value attn_bias compute_log_sumexp dropout_p is_causal return_debug_mask",
    }
    options = {"_flash_attention_forward": {"scale", "window_size_left", "window_size_right"}}
    for name, positional in kernels.items():
        arguments = [argument.name for argument in getattr(torch.ops.aten, name).default._schema.arguments]
        assert arguments[: len(positional.split())] == positional.split()
        assert options.get(name, {"scale"}) <= set(arguments)

    assert {torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()} <= {True, False}


def test_a_worker_of_torch_s_loader_is_known_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = object()
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", worker)
    assert torch.utils.data.get_worker_info() is worker


def test_a_hidden_parameter_is_still_among_the_module_s_parameters() -> None:
    layer = nn.Linear(2, 2)
    master, copy = layer.weight, torch.zeros(2, 2)
    layer.__dict__["weight"] = copy
    assert layer.weight is copy
    assert layer._parameters["weight"] is master


def test_fsdp_has_the_attributes_that_a_discarded_step_resets() -> None:
    """tests/training/test_step.py runs the reset; `_fsdp_param_group` is the name up to torch 2.12 of `_fsdp_param_groups`."""
    import torch.distributed.fsdp._fully_shard as package

    source = "\n".join(path.read_text(encoding="utf-8") for path in Path(package.__path__[0]).glob("*.py"))
    names = ALLOWED["training.parallel"] - {"_get_sequence_number_for_group", "_fully_shard", "_fsdp_common"}
    missing = {name for name in names if not re.search(rf"\b{name}\b", source)}
    assert missing <= {"_fsdp_param_group", "_fsdp_param_groups"}
    assert len(missing) < 2
    assert hasattr(package._fsdp_common.TrainingState, "IDLE")
    assert hasattr(torch.distributed.ProcessGroup, "_get_sequence_number_for_group")


# ---- transformers ----

TINY = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def test_transformers_keeps_the_attention_in_the_config() -> None:
    model = transformers.LlamaForCausalLM._from_config(transformers.LlamaConfig(**TINY), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == model.config._attn_implementation_internal == name
    assert model._can_set_attn_implementation()
    assert transformers.MambaForCausalLM._is_stateful
    assert not model._is_stateful


def test_transformers_initialises_a_layer_that_is_not_marked_as_loaded() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, initializer_range=0.5))
    layer = nn.Linear(8, 400)
    for parameter in layer.parameters():
        parameter._is_hf_initialized = True
    before = layer.weight.detach().clone()
    model._init_weights(layer)
    assert layer.weight.equal(before)
    _initialize(model, layer)
    assert layer.weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_transformers_maps_configs_to_heads_and_gates_experts() -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    mapping = transformers.AutoModelForQuestionAnswering._model_mapping
    assert transformers.BertConfig in mapping
    assert transformers.MarianConfig not in mapping
    experts = MixtralExperts(transformers.MixtralConfig(**TINY, num_local_experts=2))
    assert experts._apply_gate(torch.ones(3, 16)).shape == (3, 8)


# ---- others ----


def test_omegaconf_s_nodes_are_read_without_resolving_them() -> None:
    node = OmegaConf.create({"a": {"b": 1}, "c": "${nowhere}", "d": None, "e": [1]})
    assert [(name, dict(child)) for name, child in child_sections(node)] == [("a", {"b": 1})]


def test_hydra_s_job_raises_its_error_by_the_public_name_alone() -> None:
    from hydra.core.utils import JobReturn, JobStatus

    job = JobReturn(status=JobStatus.FAILED, _return_value=ValueError("lost"))
    assert str(job._return_value) == "lost"
    with pytest.raises(ValueError, match="lost"):
        _ = job.return_value


def test_sacrebleu_s_counts_add_up_to_its_score() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    texts, references = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog barks"]
    for metric in (BLEU(), CHRF()):
        counts = np.array(metric._extract_corpus_statistics(texts, [references]))
        expected = metric.corpus_score(texts, [references]).score
        assert metric._aggregate_and_compute([counts.sum(0).tolist()]).score == pytest.approx(expected)


def test_optuna_s_trial_is_opened_again_by_its_number() -> None:
    import optuna

    study = optuna.create_study()
    study.ask().suggest_float("lr", 0, 1)
    (unfinished,) = study.get_trials(deepcopy=False)
    assert optuna.trial.Trial(study, unfinished._trial_id).params == unfinished.params


def test_codecarbon_s_tracker_has_its_figures_and_hardware() -> None:
    from codecarbon.emissions_tracker import BaseEmissionsTracker
    from codecarbon.external.hardware import CPU

    assert find_parameters(BaseEmissionsTracker._prepare_emissions_data) <= {"self", "delta"}
    assert re.search(r"self\._hardware\b", inspect.getsource(inspect.getmodule(BaseEmissionsTracker)))  # type: ignore[arg-type]
    assert "self._mode" in inspect.getsource(CPU)


def test_wandb_takes_an_input_artifact_without_the_server() -> None:
    from wandb.sdk.wandb_run import Run
    from wandb_workspaces.workspaces import Workspace

    assert {"is_user_created", "use_after_commit"} <= find_parameters(Run._log_artifact)
    assert Workspace(entity="me", project="mine", sections=[])._spec
