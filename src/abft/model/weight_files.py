"""Name the files of a run's weights: full-rank ones or an adapter, which has two more files."""

FULL_RANK_FILE = "qk_weights.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
BASE_FILE = "abft_base.json"  # a few entries of the base model's weights, to recognise it
HEADS_FILE = "heads.json"  # of objectives that choose a few heads
WEIGHT_FILES = (FULL_RANK_FILE, ADAPTER_FILE, BASE_FILE, "adapter_config.json", HEADS_FILE)
