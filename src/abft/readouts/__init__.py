"""What a prediction is read from: label words, attention, hidden states, or a blend of them.

Fitted on labelled texts; the language model itself does not change.
"""
