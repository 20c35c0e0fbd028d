"""Train a language model: `python train.py --help` shows what can be chosen."""

from llm_lightning.cli import main

if __name__ == "__main__":
    main()
