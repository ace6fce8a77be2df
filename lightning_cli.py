"""Train and evaluate: python lightning_cli.py fit | validate | test | predict --config configs/base.yaml."""

from gca_lit.cli import main

if __name__ == "__main__":
    main()
