"""Run the command line with `python -m abft` or `accelerate launch -m abft`."""

from abft.cli.app import main

if __name__ == "__main__":
    main()
