"""Check that nothing in a config voids the guarantee of differentially private training."""

from __future__ import annotations

from collections.abc import Iterator

from llm_lightning.config.schema import Config


def check_privacy(config: Config) -> Iterator[str]:
    if config.privacy.kind == "none":
        return
    if config.task not in ("finetune", "pretrain", "check"):
        return
    if config.batch.tokens is not None:
        yield f"batch.tokens={config.batch.tokens}: not together with privacy=dp, which samples rows; give batch.sequences."
    if config.data.packing != "none":
        yield f"data.packing={config.data.packing}: not together with privacy=dp: a gradient would belong to several documents; use none."
    if config.data.long == "windows":
        yield "data.long=windows: not together with privacy=dp, which records one sequence a row; cut the texts (data.long=cut)."
    if config.data.folds is not None:
        yield f"data.folds={config.data.folds}: not together with privacy=dp: epsilon would hold for each of their runs alone."
    if config.data.streaming:
        yield "data.streaming=true: not together with privacy=dp, which draws each step from all rows."
    if config.trainer.strategy == "fsdp":
        yield "trainer=fsdp: not together with privacy=dp; use trainer=ddp."
    if config.trainer.compile is True:
        yield "trainer.compile=true: not together with privacy=dp, which records the gradients of each module; leave it out."
    if config.trainer.precision in ("16-mixed", "fp8"):
        yield f"trainer.precision={config.trainer.precision}: not together with privacy=dp; use bf16-mixed or 32-true."
    if config.objective.get("class_weights") == "balanced":
        yield (
            "objective.class_weights=balanced: the weights would tell how many rows each class has, which privacy=dp does not cover; give "
            "a list."
        )
    if not (config.model.name_or_path or config.model.init_from or config.privacy.public_tokenizer):
        yield (
            "privacy=dp: a tokenizer trained on the training text tells of it. Take one from a checkpoint (model.name_or_path, "
            "model.init_from), or say that it may: privacy.public_tokenizer=true."
        )
