"""`python -m abft`, and `accelerate launch -m abft`: the command line."""

from abft.cli.app import main

if __name__ == "__main__":
    main()
