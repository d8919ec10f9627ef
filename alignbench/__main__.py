"""`python -m alignbench`."""

from alignbench.cli.main import main

if __name__ == "__main__":
    main()
