"""Train, evaluate, generate: lightning_cli.py fit | validate | test | predict | generate --config configs/base.yaml."""

from gca_lit.cli import main

if __name__ == "__main__":
    main()
