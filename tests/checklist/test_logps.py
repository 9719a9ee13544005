"""Checklist 6 to 17: what samples, what scores and what trains see the same distribution."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2ForSequenceClassification, TrainerCallback

from recipes.lib.generation.decoder import Decoder
from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate, pad_left
from recipes.lib.models.forward import Batch, logps_and_entropy
from recipes.lib.ppo.actor_critic import reference_logps, token_values
from tests.helpers import tiny

LONG = [[4], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6], [7, 8], [9, 9, 4]]


SAMPLERS = pytest.mark.parametrize("sampler", ["transformers", "graph"])


def say(sampler: str, model: Any, ids: Any, mask: Any, noise: Any, decoding: Decoding) -> Any:
    """Completions and their mask, by the name of a sampler."""
    if sampler == "graph":
        return Decoder(model, decoding, 1, 1).sample(ids, mask, noise)
    return generate(model, ids, mask, noise, decoding)


@pytest.fixture(scope="module", params=["transformers", "graph"])
def warm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """A trainer at temperature 0.7 whose policy has left its reference, and its rollout."""
    settings = {"temperature": 0.7, "critic": "head", "per_device_train_batch_size": 4}
    folder = tmp_path_factory.mktemp("warm")
    trainer = tiny.trainer(folder, sampler=request.param, **settings)
    tiny.shake(trainer.actor_critic.policy)
    return trainer, trainer.collector.rollout(0)


def test_item_06_the_sampler_divides_by_the_temperature(warm: tuple[Any, Any]) -> None:
    trainer, rollout = warm
    for number, (prompt, completion) in enumerate(tiny.sequences(rollout)):
        logps = tiny.log_probs(trainer.actor_critic.policy, prompt + completion, 0.7)
        uniforms = episode_uniforms(trainer.args.seed, [number], 6)[0]
        for t, token in enumerate(completion):
            cumulative = logps[len(prompt) - 1 + t].exp().cumsum(0)
            assert token == int((cumulative <= uniforms[t]).sum())


@pytest.mark.parametrize("role", ["policy", "reference"])
def test_item_06_the_log_probabilities_of_both_roles_do(warm: tuple[Any, Any], role: str) -> None:
    trainer, rollout = warm
    model = trainer.actor_critic.policy if role == "policy" else trainer.reference
    stored = rollout.old_logps if role == "policy" else rollout.ref_logps
    for row, (prompt, completion) in enumerate(tiny.sequences(rollout)):
        logps = tiny.log_probs(model, prompt + completion, 0.7)[len(prompt) - 1 : -1]
        expected = logps.gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert torch.allclose(stored[row, : len(completion)].double(), expected, atol=1e-5)


def test_item_06_and_those_of_training_do_too(warm: tuple[Any, Any]) -> None:
    trainer, _ = warm
    trainer.sums = {}
    trainer.compute_loss(trainer.model, next(iter(trainer.stream)))
    assert trainer.sums["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert trainer.sums["policy/approxkl_avg"] < 1e-9
    assert trainer.sums["policy/clipfrac_avg"] == 0.0


@SAMPLERS
def test_item_07_first_tokens_of_a_real_model_have_its_distribution(sampler: str) -> None:
    model, number = tiny.llama(vocab_size=64), 6000
    expected = tiny.log_probs(model, [4, 5], 0.8)[-1].exp().numpy()
    prompts = torch.tensor([[4, 5]] * number)
    uniforms = episode_uniforms(3, range(number), 1)
    mask, decoding = torch.ones_like(prompts), Decoding(1, 0.8, 1, 0)
    ids, _ = say(sampler, model, prompts, mask, uniforms, decoding)
    counts = torch.bincount(ids[:, 0], minlength=64).numpy()
    common = expected * number >= 5  # the rest as one bin
    observed = [*counts[common], counts[~common].sum()]
    # the end token and the rarest tokens are among them; one test at the 0.1 % level, fixed seed
    theory = [*expected[common] * number, expected[~common].sum() * number]
    assert len(observed) > 30
    assert chisquare(observed, theory).pvalue > 0.001


@SAMPLERS
def test_item_08_a_stored_generation_config_has_no_say(tmp_path: Path, sampler: str) -> None:
    words, ids = tiny.tokenizer(), []
    for name, settings in (
        ("plain", {}),
        ("loud", {"top_k": 1, "repetition_penalty": 2.0, "eos_token_id": 5, "min_new_tokens": 6}),
    ):
        folder = tmp_path / name
        tiny.llama().save_pretrained(folder)
        words.save_pretrained(folder)
        path = folder / "generation_config.json"
        stored = json.loads(path.read_text()) | {"do_sample": True} | settings
        path.write_text(json.dumps(stored))
        trainer = tiny.trainer(tmp_path, str(folder), sampler=sampler)
        ids.append(tiny.sequences(trainer.collector.rollout(0)))
        # and it is put back for whoever uses the model afterwards
        assert trainer.actor_critic.policy.generation_config.top_k == settings.get("top_k", None)
    assert ids[0] == ids[1]
    assert {len(completion) for _, completion in ids[0]} != {6}  # some end early, none is forced on


# Half a unit in the last place of a logit of size 1 to 4, through exp(): fp32, bf16 and fp16.
PRECISIONS = {"no": 1e-5, "bf16": 0.05, "fp16": 0.01}


@pytest.mark.parametrize("critic", ["head", "model"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_item_09_in_every_precision_a_first_mini_batch_has_ratio_one(
    tmp_path: Path, critic: str, precision: str
) -> None:
    settings = {"logging_steps": 1, "learning_rate": 1e-3, "critic": critic}
    mixed = {} if precision == "no" else {precision: True}
    trainer = tiny.trainer(tmp_path, **settings, **mixed)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "val/ratio" in row]
    assert len(rows) == 8
    for row in (rows[0], rows[4]):
        assert row["val/ratio"] == pytest.approx(1.0, abs=PRECISIONS[precision])
        assert row["policy/approxkl_avg"] < PRECISIONS[precision] ** 2
        assert row["policy/clipfrac_avg"] <= (0.05 if precision == "bf16" else 0.0)
    assert rows[7]["policy/approxkl_avg"] > 1e-9


@pytest.mark.parametrize("autocast", [False, True])
def test_item_10_a_16_bit_head_of_many_tokens_is_normalised_in_fp32(autocast: bool) -> None:
    torch.manual_seed(0)
    logits, ids = (4 * torch.randn(2, 3, 32_768)).bfloat16(), torch.randint(32_768, (2, 3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps, entropy = logps_and_entropy(logits, ids, 0.9)
    expected = (logits.double() / 0.9).log_softmax(-1)
    assert torch.allclose(
        logps.double(), expected.gather(2, ids[..., None])[..., 0], rtol=0, atol=1e-4
    )
    assert torch.allclose(
        entropy.double(), -(expected.exp() * expected).sum(-1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_item_10_a_policy_in_16_bits_trains_with_finite_numbers(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    trainer = tiny.trainer(tmp_path, tiny.llama().to(dtype), critic="head", learning_rate=1e-3)
    before = tiny.state(trainer.model)
    trainer.train()
    assert trainer.collector.rollout(0).old_logps.dtype == torch.float32
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all(abs(row["loss"]) < 10 and row["grad_norm"] > 0 for row in rows)
    after = tiny.state(trainer.model)
    assert not torch.equal(before["policy.lm_head.weight"], after["policy.lm_head.weight"])
    assert after["policy.lm_head.weight"].dtype == dtype


def test_item_11_tied_embeddings_stay_tied_through_start_training_saving_and_loading(
    tmp_path: Path,
) -> None:
    def is_tied(policy: Any) -> bool:
        return policy.lm_head.weight.data_ptr() == policy.get_input_embeddings().weight.data_ptr()

    trainer = tiny.trainer(tmp_path, tiny.llama(tie_word_embeddings=True), total_episodes=8)
    assert is_tied(trainer.actor_critic.policy)
    trainer.train()
    assert is_tied(trainer.actor_critic.policy)
    trainer.save_model(str(tmp_path / "checkpoint-1"), _internal_call=True)
    other = tiny.trainer(tmp_path, tiny.llama(seed=5, tie_word_embeddings=True))
    other._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert is_tied(other.actor_critic.policy)
    assert tiny.same(tiny.state(other.model), tiny.state(trainer.model))


class Witness(TrainerCallback):
    """Counts the calls of activation checkpointing in each model, and sees the mode of training."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.modes: set[bool] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name in ("policy", "critic"):
            self.calls[name] = 0
            for module in getattr(kwargs["model"], name).modules():
                if hasattr(module, "_gradient_checkpointing_func"):
                    module._gradient_checkpointing_func = self._counting(name, module)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.modes.add(kwargs["model"].training)

    def _counting(self, name: str, module: Any) -> Any:
        checkpoint = module._gradient_checkpointing_func

        def count(*args: Any) -> Any:
            self.calls[name] += 1
            return checkpoint(*args)

        return count


def test_item_12_dropout_is_off_while_training_mode_and_checkpointing_are_on(
    tmp_path: Path,
) -> None:
    rates = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    witness = Witness()
    trainer = tiny.trainer(
        tmp_path,
        tiny.gpt2(**rates),
        gradient_checkpointing=True,
        total_episodes=8,
        callbacks=[witness],
    )
    trainer.model.train()
    inputs = torch.tensor([[4, 5, 6, 7, 8]] * 2), torch.ones(2, 5).long(), 3, 1.0
    tiny.shake(trainer.actor_critic.critic.score)
    once, twice = trainer.model(*inputs), trainer.model(*inputs)
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[2], twice[2])
    assert once[2].abs().max() > 0
    trainer.train()
    assert witness.modes == {True}
    # two layers, eight micro-batches; the backward pass recomputes without calling again
    assert witness.calls == {"policy": 16, "critic": 16}
    untouched = tiny.trainer(tmp_path, tiny.gpt2(**rates), disable_dropout=False)
    untouched.model.train()
    assert not torch.equal(untouched.model(*inputs)[0], untouched.model(*inputs)[0])
    untouched.train()  # with it no ratio of 1 can be asked for


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_left(rows, 0, "cpu")


@pytest.mark.parametrize("critic", ["head", "model"])
def test_item_13_absolute_positions_count_tokens_and_not_padding(
    tmp_path: Path, critic: str
) -> None:
    trainer = tiny.trainer(tmp_path, tiny.gpt2(), critic=critic)
    module = trainer.actor_critic.eval()
    tiny.shake(module)
    rows, ids = [[*row, 4, 5, 6] for row in LONG], torch.tensor([4, 5, 6])
    with torch.no_grad():
        logps, _, values = module(*padded(rows), 3, 1.0)
        reference = reference_logps(module, trainer.reference, Batch(*padded(rows), 3), 1.0)
        for i, row in enumerate(rows):
            plain = module.policy(input_ids=torch.tensor([row])).logits[0, -4:-1]
            assert torch.allclose(logps[i], logps_and_entropy(plain, ids, 1.0)[0], atol=1e-5)
            plain = trainer.reference(input_ids=torch.tensor([row])).logits[0, -4:-1]
            assert torch.allclose(reference[i], logps_and_entropy(plain, ids, 1.0)[0], atol=1e-5)
            alone = module(torch.tensor([row]), torch.ones(1, len(row)).long(), 3, 1.0)[2]
            assert torch.allclose(values[i], alone[0], atol=1e-5)
            if critic == "model":
                hidden = module.critic.transformer(input_ids=torch.tensor([row]))
                plain = module.critic.score(hidden.last_hidden_state)[0, -4:-1, 0]
                assert torch.allclose(values[i], plain, atol=1e-5)


@SAMPLERS
def test_item_13_sampling_counts_tokens_too(sampler: str) -> None:
    model, uniforms, decoding = tiny.gpt2(), episode_uniforms(1, range(4), 6), Decoding(6, 1, 1, 0)
    together, mask = say(sampler, model, *padded(LONG), uniforms, decoding)
    for i, row in enumerate(LONG):
        noise = uniforms[i : i + 1]
        alone, alone_mask = say(sampler, model, *padded([row]), noise, decoding)
        assert together[i][mask[i].bool()].tolist() == alone[0][alone_mask[0].bool()].tolist()


@SAMPLERS
def test_item_14_padding_with_the_end_token_gives_identical_advantages(
    tmp_path: Path, sampler: str
) -> None:
    rollouts = []
    for pad in ("<pad>", "<eos>"):
        model = tiny.llama(pad_token_id=0 if pad == "<pad>" else 1)
        model.load_state_dict(tiny.llama().state_dict())  # a padding row starts as zeros
        words = tiny.tokenizer(pad=pad)
        settings = {"missing_eos_penalty": 1.0, "sampler": sampler}
        trainer = tiny.trainer(tmp_path, model, tokenizer=words, **settings)
        tiny.shake(trainer.model)
        rollouts.append(trainer.collector.rollout(0))
    one, two = rollouts
    assert one.completion_mask.sum(1).min() < 6  # some end, so that padding stands behind an end
    assert tiny.sequences(one) == tiny.sequences(two)
    for name in ("completion_mask", "old_logps", "ref_logps", "old_values", "advantages"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_item_16_what_belongs_to_the_rollout_has_no_gradient(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    rollout = trainer.collector.rollout(0)
    assert [n for n, tensor in vars(rollout).items() if tensor.requires_grad] == []
    assert trainer.model.critic.score.weight.requires_grad


def test_item_17_sampler_and_scorer_see_the_same_ids_also_those_without_a_word(
    tmp_path: Path,
) -> None:
    # sixteen words, twenty rows of embeddings: the last id has no word and all the probability
    model = tiny.llama(vocab_size=20)
    head = torch.nn.Linear(16, 20)
    head.weight.data.copy_(model.lm_head.weight.data)
    head.bias.data.zero_()[19] = 1e4
    model.lm_head = head
    rollout = tiny.trainer(tmp_path, model).collector.rollout(0)
    assert (rollout.completion_ids == 19).all()
    assert torch.equal(rollout.old_logps, torch.zeros(8, 6))


def test_item_13_a_value_model_from_a_classifier_reads_as_the_classifier_does() -> None:
    model = tiny.gpt2(kind=GPT2ForSequenceClassification, num_labels=1).eval()
    ids, mask = padded(LONG)
    values = token_values(model, ids, mask)[:, -1]
    for i, row in enumerate(LONG):
        expected = copy.deepcopy(model)(input_ids=torch.tensor([row])).logits[0, 0]
        assert torch.allclose(values[i], expected, atol=1e-5)
