"""Name the files with a run's weights: one of the first two; the next two go with an adapter."""

FULL_RANK_FILE = "qk_weights.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
BASE_FILE = "abft_base.json"  # a few entries of the base model's weights, to recognise it
HEADS_FILE = "heads.json"  # of objectives that choose few
WEIGHT_FILES = (FULL_RANK_FILE, ADAPTER_FILE, BASE_FILE, "adapter_config.json", HEADS_FILE)
