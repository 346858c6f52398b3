import pytest

from abft.data.builtin import TASKS, load_task
from abft.data.encoding import label_tokens
from abft.data.other_tasks import other_prompts
from abft.errors import AbftError
from abft.runs.config import RunConfig, check_effect


def test_every_other_task_gives_its_share(bpe):
    prompts = other_prompts(load_task("TREC"), bpe, nd=20, k=2, seed=0)
    assert len(prompts) == 20
    answers = {token: name for name, task in TASKS.items() for token in label_tokens(bpe, task)}
    seen = {answers[prompt.answer] for prompt in prompts}
    assert not seen & {"TREC"}
    assert all(
        prompt.input_ids[position] in answers
        for prompt in prompts
        for position in prompt.label_positions
    )
    assert all(len(prompt.label_positions) == 2 for prompt in prompts)
    starts = {bpe.decode(prompt.input_ids[:12]).split(":")[0] for prompt in prompts}
    assert starts == {"sentence", "review", "news", "tweet"}  # TREC's would be "question"
    assert other_prompts(load_task("TREC"), bpe, nd=20, k=2, seed=1) != prompts

    # In turn: the first nine are of nine tasks, with four templates.
    turns = other_prompts(load_task("TREC"), bpe, nd=18, k=2, seed=0)
    assert len({bpe.decode(p.input_ids[:12]).split(":")[0] for p in turns[:9]}) == 4


def test_own_data_has_no_other_tasks():
    with pytest.raises(AbftError, match="built-in task"):
        check_effect(RunConfig(data="reviews.csv", train_on="others"))
    with pytest.raises(AbftError, match="lora_targets"):
        RunConfig(lora_targets="all-linear", lora_r=4)
    with pytest.raises(AbftError, match="lora_targets"):
        RunConfig(lora_targets="all-linear", objective="e2e")
