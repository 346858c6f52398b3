"""Read-outs: what predictions come from (label words, attention, hidden states, a blend of them).

They are fitted on labelled texts; the language model itself does not change.
"""
