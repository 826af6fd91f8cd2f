"""``python -m lossforge`` is the command line."""

from lossforge.cli import main

if __name__ == "__main__":
    main()
