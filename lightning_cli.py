"""Train, evaluate, generate: lightning_cli.py fit | validate | test | predict | generate --config configs/base.yaml."""

import sys

if __name__ == "__main__":
    try:
        from gca_lit.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)
