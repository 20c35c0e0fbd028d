"""llm_lightning: pretrain and fine-tune language models on PyTorch Lightning."""
