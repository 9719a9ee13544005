from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.data.prompts import completion_text
from recipes.lib.errors import UserError
from recipes.lib.generation.completions import complete, fits
from recipes.lib.models import likelihood
from recipes.lib.models.likelihood import completion_logps, perplexity

PROMPTS = ["the cat", "who found the old book on the red road ?", "a bird sang and", "the"]


def greedy_by_hand(model: Any, tokenizer: Any, prompt: str, count: int) -> list[int]:
    """One prompt, no padding, no cache: the likeliest token again and again."""
    ids = tokenizer(prompt)["input_ids"]
    made: list[int] = []
    while len(made) < count and tokenizer.eos_token_id not in made:
        with torch.no_grad():
            made.append(int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


def texts_of(
    model: Any, tokenizer: Any, prompts: list[Any], length: int = 64, *more: float, **named: int
) -> list[str]:
    temperature = more[0] if more else 1.0
    made = complete(
        model, tokenizer, prompts, max_new_tokens=length, temperature=temperature, **named
    )
    return [completion.text for completion in made]


def test_greedy_completions_of_a_padded_batch_are_those_of_single_prompts(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    made = complete(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=8, temperature=0)
    for prompt, completion in zip(PROMPTS, made, strict=True):
        assert completion.ids == greedy_by_hand(tiny_model, tiny_tokenizer, prompt, 8)
        assert completion.prompt_ids == tiny_tokenizer(prompt)["input_ids"]


def test_the_batch_size_does_not_change_greedy_completions(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [
        texts_of(tiny_model, tiny_tokenizer, PROMPTS, 8, 0.0, batch_size=size) for size in (1, 2, 4)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_the_models_own_generation_config_has_no_say(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = texts_of(tiny_model, tiny_tokenizer, PROMPTS, 8, 1.0, seed=3)
    own = tiny_model.generation_config
    own.update(top_k=1, repetition_penalty=5.0, eos_token_id=7, min_new_tokens=8, do_sample=True)
    assert texts_of(tiny_model, tiny_tokenizer, PROMPTS, 8, 1.0, seed=3) == before
    assert tiny_model.generation_config is own
    assert own.top_k == 1


def test_sampling_follows_the_whole_softmax(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    count = 4000
    made = complete(
        tiny_model,
        tiny_tokenizer,
        ["the cat"] * count,
        max_new_tokens=1,
        temperature=2.0,
        batch_size=1000,
    )
    ids = torch.tensor([tiny_tokenizer("the cat")["input_ids"]])
    with torch.no_grad():
        expected = (tiny_model(input_ids=ids).logits[0, -1] / 2.0).softmax(-1)
    drawn = torch.bincount(torch.tensor([c.ids[0] for c in made]), minlength=len(expected)) / count
    # Largest deviation of 4,000 draws: under 5 standard errors of the likeliest token.
    assert (drawn - expected).abs().max() < 5 * (expected.max() / count).sqrt()
    assert (drawn > 0).sum() > 50  # transformers' own top_k would leave 50


def test_a_seed_gives_the_same_texts_and_leaves_the_callers_random_state(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model.train()
    state = torch.get_rng_state()
    first = texts_of(tiny_model, tiny_tokenizer, PROMPTS, 8, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert tiny_model.training
    assert texts_of(tiny_model, tiny_tokenizer, PROMPTS, 8, seed=1) == first
    assert texts_of(tiny_model, tiny_tokenizer, PROMPTS, 8, seed=2) != first


def test_completions_end_at_the_eos_token(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    made = complete(tiny_model, tiny_tokenizer, PROMPTS * 50, max_new_tokens=20, temperature=5.0)
    eos = tiny_tokenizer.eos_token_id
    assert {c.has_ended for c in made} == {True, False}
    for completion in made:
        assert completion.has_ended == (completion.ids[-1] == eos)
        assert eos not in completion.ids[:-1]
        assert "<eos>" not in completion.text


def test_messages_are_rendered_with_the_generation_prompt(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    messages = [{"role": "user", "content": "tell me"}]
    made = complete(tiny_model, tiny_tokenizer, [messages], max_new_tokens=1)
    words = tiny_tokenizer.convert_ids_to_tokens(made[0].prompt_ids)
    assert words == ["<user>", "tell", "me", "<assistant>"]
    tiny_tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        texts_of(tiny_model, tiny_tokenizer, [messages])


def test_a_completion_beyond_the_context_is_refused(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    # The context is 128; "the cat" has two tokens.
    assert fits(tiny_model, tiny_tokenizer, "the cat", 126)
    assert not fits(tiny_model, tiny_tokenizer, "the cat", 127)
    with pytest.raises(UserError, match="longest prompt has 2 tokens and the model's context 128"):
        texts_of(tiny_model, tiny_tokenizer, ["the cat"], 127)


def test_the_space_before_a_completion_is_kept(shared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "TinyStories-656K")
    prompt = tokenizer("Once upon a time")["input_ids"]
    made = tokenizer(" there was", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(made) == "there was"  # the trap
    assert completion_text(tokenizer, prompt, made) == " there was"


def test_logps_of_a_padded_batch_are_those_of_single_sequences(
    tiny_model: LlamaForCausalLM,
) -> None:
    prompts, completions = [[6, 7], [8], [9, 10, 11]], [[12, 13, 14], [15], [16, 17]]
    together = completion_logps(tiny_model, prompts, completions, temperature=0.7)
    for prompt, completion, logps in zip(prompts, completions, together, strict=True):
        with torch.no_grad():
            logits = tiny_model(input_ids=torch.tensor([prompt + completion])).logits[0]
        expected = [
            float(torch.log(torch.softmax(logits[len(prompt) + n - 1] / 0.7, -1)[token]))
            for n, token in enumerate(completion)
        ]
        assert logps.tolist() == pytest.approx(expected, abs=1e-5)


def test_perplexity_weighs_every_token_alike(tiny_model: LlamaForCausalLM) -> None:
    rows = [[6, 7, 8, 9, 10, 11, 12], [13, 14, 15]]
    labels = [[-100, *rows[0][1:]], [-100, -100, 15]]
    losses = []
    for row, label in zip(rows, labels, strict=True):
        with torch.no_grad():  # transformers' own loss: a mean over the labelled tokens of a row
            ids, target = torch.tensor([row]), torch.tensor([label])
            losses.append(float(tiny_model(input_ids=ids, labels=target).loss))
    # Six tokens in the first row and one in the second, not two rows of equal weight.
    expected = torch.tensor((6 * losses[0] + losses[1]) / 7).exp()
    assert perplexity(tiny_model, rows, labels, batch_size=2) == pytest.approx(float(expected))
    assert perplexity(tiny_model, rows, labels, batch_size=1) == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", ["plain", "capped", "mixed"])
def test_logps_come_in_pieces_of_logits_and_are_those_of_all_logits(
    kind: str, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model
    if kind == "capped":  # what is done to logits behind the head is only in whole ones
        forward = model.forward

        def capped(**given: Any) -> Any:
            out = forward(**given)
            out.logits = 0.1 * torch.tanh(out.logits / 0.1)
            return out

        model.forward = capped
    if kind == "mixed":  # as accelerate wraps a model
        model.forward = convert_outputs_to_fp32(
            torch.autocast("cpu", torch.bfloat16)(model.forward)
        )
    rows = [[6, 7, 8, 9, 10, 11, 12], [13, 14, 15]]
    labels = [[-100, *rows[0][1:]], [-100, -100, 15]]
    expected = []
    for row, label in zip(rows, labels, strict=True):
        with torch.no_grad():
            log_probs = (model(input_ids=torch.tensor([row])).logits[0] / 0.7).log_softmax(-1)
        expected.append([log_probs[n - 1, t].item() for n, t in enumerate(label) if t != -100])
    seen: list[torch.Size] = []
    kinds: set[torch.dtype] = set()
    head = model.lm_head.forward

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = head(hidden)
        seen.append(out.shape)
        kinds.add(out.dtype)
        return out

    model.lm_head.forward = watched
    size = model.config.vocab_size
    monkeypatch.setattr(likelihood, "MAX_CHUNK_LOGITS", 2 * size)
    found = likelihood.label_logps(model, rows, labels, temperature=0.7)
    tolerance = 1e-2 if kind == "mixed" else 1e-5
    for logps, wanted in zip(found, expected, strict=True):
        assert logps.tolist() == pytest.approx(wanted, abs=tolerance)
    assert kinds == {torch.bfloat16 if kind == "mixed" else torch.float32}
    # Behind the probe of eight tokens: the seven that count, two at a time, and one for each row.
    pieces = [2, 2, 2, 1, 2] if kind != "capped" else [2 * 7]
    assert [shape.numel() // size for shape in seen[-len(pieces) :]] == pieces


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(
    tiny_model: LlamaForCausalLM,
) -> None:
    torch.nn.init.zeros_(tiny_model.lm_head.weight)
    size = tiny_model.config.vocab_size
    assert perplexity(tiny_model, [[6, 7, 8]], [[6, 7, 8]]) == pytest.approx(size)
