"""One self-contained HTML page about a run: what changed inside the model (`abft report`)."""
